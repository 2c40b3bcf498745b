"""Next week's state of customers, drawn from uniforms: pure functions of tensors (envs/offers/README.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.world.customers import (
    CHURNED,
    EXPECTATIONS,
    FATIGUES,
    HABITS,
    SUBSCRIBED,
    UNSUBSCRIBED,
    Customers,
    CustomerState,
    World,
)
from envs.offers.world.response import Outcome, churn_probability, opt_out_probability, outcome


def habit_gain(c: Customers, h: Tensor, redeemed: bool) -> Tensor:
    """u, P(habit up | bought), slower where an offer paid for the purchase."""
    u = c.pi_plus * (1 + c.nu * (h <= 1))
    if redeemed:
        u = u * torch.where(h >= 3, 1 - c.chi, 1 - 0.4 * c.chi)
    return u.clamp_max(0.95)


def transition(
    c: Customers, world: World, week: int | Tensor, state: CustomerState, offer: Tensor, channel: Tensor, u: Tensor
) -> tuple[CustomerState, Tensor, Tensor, Outcome]:
    """Draw a week of N customers from uniforms u [6, N]: the next state, bought, redeemed (bool [N]), the Outcome.

    A customer who is not subscribed gets nothing, whatever the action is. An unsubscribed customer still buys and
    churns. A churned customer stays churned and buys nothing.
    """
    status, alive = state.status, state.status != CHURNED
    offer = torch.where(status == SUBSCRIBED, offer, 0)
    contacted = offer > 0
    h, f, d = (x.to(u.dtype) for x in state[:3])
    o = outcome(c, world, week, h, f, d, offer, channel)
    o = o._replace(buy=o.buy * alive)
    redeemed = u[0] < o.redeem
    bought = u[0] < o.redeem + o.buy
    lost = churn_probability(c, h, f)
    churned = ~alive | (u[4] < torch.where(bought, 0.25 * lost, lost))
    left = contacted & (u[5] < opt_out_probability(c, f, world.catalogue.opt_out[channel]))
    return next_state(c, world, state, contacted, channel, bought, redeemed, churned, left, u), bought, redeemed, o


def next_state(
    c: Customers,
    world: World,
    state: CustomerState,
    contacted: Tensor,
    channel: Tensor,
    bought: Tensor,
    redeemed: Tensor,
    churned: Tensor,
    left: Tensor,
    u: Tensor,
) -> CustomerState:
    """Draw next week's state given the week's events, bool [N] each: `left` is an opt-out.

    Of the uniforms u [≥ 4, N] the rows 1 to 3 are used.
    """
    h = state.habit.to(u.dtype)
    gain = torch.where(redeemed, habit_gain(c, h, True), habit_gain(c, h, False))
    habit = torch.where(bought, state.habit + (u[1] < gain).long(), state.habit - (u[1] < c.pi_minus).long())
    fatigue = torch.where(
        contacted, state.fatigue + world.catalogue.fatigue_steps[channel], state.fatigue - (u[2] < c.delta_f).long()
    )
    expectation = torch.where(redeemed, state.expectation + 1, state.expectation - (u[3] < c.delta_d).long())
    status = torch.where(churned, CHURNED, torch.where(left, UNSUBSCRIBED, state.status))
    subscribed = status == SUBSCRIBED
    return CustomerState(
        habit=torch.where(status != CHURNED, habit.clamp(0, HABITS - 1), 0),
        fatigue=torch.where(subscribed, fatigue.clamp(0, FATIGUES - 1), 0),
        expectation=torch.where(subscribed, expectation.clamp(0, EXPECTATIONS - 1), 0),
        status=status,
    )
