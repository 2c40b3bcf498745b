"""The no-contact value as one Triton kernel; without Triton, the plain function of dynamic_program.py."""

from __future__ import annotations

from typing import no_type_check

import torch

from envs.offers.planning import dynamic_program as program
from envs.offers.planning.state_values import StateValues
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, World
from rlcore.backends.triton_gae import tl, triton

BLOCK_SIZE = 128  # customers of a program, one a lane: its whole table lies in registers
# The fields of θ that the kernel reads, in the order of its parameters.
PARAMETERS = (
    "alpha",
    "kappa",
    "xi",
    "margin",
    "c0",
    "gamma_h",
    "gamma_f",
    "pi_plus",
    "pi_minus",
    "nu",
    "delta_f",
    "delta_d",
)

if triton:
    H, F, D = tl.constexpr(HABITS), tl.constexpr(FATIGUES), tl.constexpr(EXPECTATIONS)

    # What Triton compiles is not Python: a loop over tl.static_range is written out, and a tuple may grow in it.
    @no_type_check
    @triton.jit
    def _after_rest(value, delta_f, delta_d, h: tl.constexpr):
        """Return a habit's values [F·D] before a week without contact: expectation may fall, then fatigue."""
        decayed = ()
        for f in tl.static_range(F):
            for d in tl.static_range(D):
                here = value[(h * F + f) * D + d]
                if d > 0:
                    here += delta_d * (value[(h * F + f) * D + d - 1] - here)
                decayed = decayed + (here,)
        after_rest = ()
        for f in tl.static_range(F):
            for d in tl.static_range(D):
                here = decayed[f * D + d]
                if f > 0:
                    here += delta_f * (decayed[(f - 1) * D + d] - here)
                after_rest = after_rest + (here,)
        return after_rest

    @triton.jit
    def _week(p, earned, gone, stay, up, down, gain, loss, cost, discount):
        """Value of a state, from next week's values by what habit does: `stay`, `up` or `down`.

        p is P(buy), `gone` is P(churn | no purchase). `gain` and `loss` of habit are discounted already.
        """
        rise = p * (gain - 0.25 * gain * gone)
        fall = (1 - p) * (loss - loss * gone)
        leave = gone * (1 - 0.75 * p)
        return earned + discount * stay + rise * (up - stay) + fall * (down - stay) - leave * (cost + discount * stay)

    @no_type_check
    @triton.jit
    def _no_contact_kernel(
        alpha,
        kappa,
        xi,
        margin,
        c0,
        gamma_h,
        gamma_f,
        pi_plus,
        pi_minus,
        nu,
        delta_f,
        delta_d,
        season,
        stride,
        inside,
        outside,
        trips,
        churn_cost,
        terminal,
        tail_discount,
        steps,
        tail,
        n,
        BLOCK: tl.constexpr,
    ):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        there = i < n
        alpha, kappa, xi = tl.load(alpha + i, mask=there), tl.load(kappa + i, mask=there), tl.load(xi + i, mask=there)
        c0 = tl.load(c0 + i, mask=there)
        gamma_h = tl.load(gamma_h + i, mask=there)
        gamma_f = tl.load(gamma_f + i, mask=there)
        delta_f, delta_d = tl.load(delta_f + i, mask=there), tl.load(delta_d + i, mask=there)
        earned, pi_minus = tl.load(margin + i, mask=there) + trips, tl.load(pi_minus + i, mask=there)
        slow = tl.load(pi_plus + i, mask=there)
        quick = tl.minimum(slow * (1 + tl.load(nu + i, mask=there)), 0.95)  # of new customers
        slow = tl.minimum(slow, 0.95)
        lost, value, out = (), (), ()
        for h in tl.static_range(H):
            for f in tl.static_range(F):
                lost = lost + (tl.minimum(c0 * tl.exp(gamma_f * f - gamma_h * h), 0.5),)
                for _ in tl.static_range(D):
                    value = value + (tl.full([BLOCK], 0.0, tl.float32),)
            out = out + (tl.full([BLOCK], 0.0, tl.float32),)
        for back in range(steps):  # the tail first, then the season from its end
            week = steps - 1 - back
            index, cost, discount, scale = 1.0, 0.0, tail_discount, 1.0
            if back >= tail:
                index, cost, discount = tl.load(season + week), churn_cost, 1.0
            if back == tail - 1:
                scale = terminal
            g, discount = earned * scale, discount * scale
            loss = pi_minus * discount
            now, now_out = (), ()
            here = _after_rest(value, delta_f, delta_d, 0)
            down = here
            for h in tl.static_range(H):
                up = here
                if h < H - 1:
                    up = _after_rest(value, delta_f, delta_d, h + 1)
                gain = slow * discount
                if h <= 1:
                    gain = quick * discount
                p = ()
                for d in tl.static_range(D):
                    p = p + (1 / (1 + tl.exp(xi * (d / 2) - alpha - kappa * (h / 5) - 2 * tl.log(index))),)
                for f in tl.static_range(F):
                    for d in tl.static_range(D):
                        now = now + (
                            _week(
                                p[d],
                                p[d] * g,
                                lost[h * F + f],
                                here[f * D + d],
                                up[f * D + d],
                                down[f * D + d],
                                gain,
                                loss,
                                cost,
                                discount,
                            ),
                        )
                now_out = now_out + (
                    _week(
                        p[0],
                        p[0] * g,
                        lost[h * F],
                        out[h],
                        out[min(h + 1, H - 1)],
                        out[max(h - 1, 0)],
                        gain,
                        loss,
                        cost,
                        discount,
                    ),
                )
                down = here
                here = up
            value, out = now, now_out
            if back >= tail - 1:
                # computed anew each week, else a compiler keeps all multiples in registers
                far = tl.load(stride + week)
                for k in tl.static_range(H * F * D):
                    tl.store(inside + (week * (H * F * D) + k) * far + i, value[k], mask=there)
                for h in tl.static_range(H):
                    tl.store(outside + (week * H + h) * far + i, out[h], mask=there)


def fast_no_contact_values(c: Customers, world: World, out: list[StateValues] | None = None) -> list[StateValues]:
    """V⁰ of weeks 1..T+1, equal to `dynamic_program.no_contact_values`; for float32 customers on a GPU one kernel.

    The kernel writes to `out`, if given: the result of an earlier call for the same number of customers.
    """
    if triton is None or not c.alpha.is_cuda or c.alpha.dtype != torch.float32 or not world.tail_weeks:
        return program.no_contact_values(c, world)
    return no_contact_values_kernel(c, world, out)


def no_contact_values_kernel(c: Customers, world: World, out: list[StateValues] | None = None) -> list[StateValues]:
    """V⁰ of weeks 1..T+1 by the kernel."""
    n, reward, weeks = len(c), world.reward, world.weeks
    if out is None:
        tables = (
            torch.empty(weeks + 1, *shape, n, device=c.alpha.device)
            for shape in ((HABITS, FATIGUES, EXPECTATIONS), (HABITS,))
        )
        out = list(map(StateValues, *tables))
    # int64: tables can have more numbers than 32 bits count
    stride = torch.full((weeks + 1,), n, device=c.alpha.device)
    _no_contact_kernel[(triton.cdiv(n, BLOCK_SIZE),)](
        *(getattr(c, name).contiguous() for name in PARAMETERS),
        world.season,
        stride,
        *out[0],
        *map(float, (reward.trips, reward.churn_cost, reward.terminal, world.tail_discount)),
        weeks + world.tail_weeks,
        world.tail_weeks,
        n,
        BLOCK=BLOCK_SIZE,
    )
    return out
