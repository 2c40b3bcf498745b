"""The dynamic program of one customer: action values, V⁰ of no contact, the best plan at prices, its expected use."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.planning.state_values import Contacts, StateGrid, StateValues, SuccessorValues, VisitedStates, shift
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, SUBSCRIBED, Customers, CustomerState, World
from envs.offers.world.response import (
    attention,
    churn_probability,
    opt_out_probability,
    outcome,
    purchase_if_seen,
    utility,
)
from envs.offers.world.transition import habit_gain


def action_values(
    c: Customers,
    world: World,
    week: int | Tensor,
    at: StateGrid | VisitedStates,
    price: Tensor | float,
    then: StateValues | None,
    scarcity: Tensor | None = None,
    contacts: Contacts | None = None,
) -> tuple[Tensor, Tensor]:
    """Expected r − price·spend + value of next week: of nothing [*S] and of contacts [O, C, *S].

    `contacts` are the contacts to evaluate, by default all of the catalogue. `then` has next week's values; None leaves
    out the future. `week` is a number or a tensor [1] or [*S]; `price` is a number or broadcasts to [*S]. `scarcity`
    [O+1] is the price of a redemption of each offer with scarce stock. A contact's value is affine in q·p1, so each of
    the O × C contacts costs two operations.
    """
    reward, catalogue = world.reward, world.catalogue
    g = c.margin + reward.trips
    b = utility(c, at.h, at.d, world.season[week])
    p0 = torch.sigmoid(b)
    lost = churn_probability(c, at.h, at.f)
    stay, stay_buy = 1 - lost, 1 - 0.25 * lost
    none = none_contact = -reward.churn_cost * lost
    buy = buy_contact = redeem_contact = 0.25 * none

    every = contacts or Contacts.all(c, catalogue, at)
    q = attention(every.omega, c, at.f)
    p1 = purchase_if_seen(c, b, at.d, every.value)

    if then is not None:
        moved, gone = at.inside(c, then.subscribed), at.outside(c, then.unsubscribed)
        out, tired = opt_out_probability(c, at.f, every.opt_out), moved(0)
        rest = SuccessorValues(*(x + c.delta_f * (y - x) for x, y in zip(tired, moved(-1))))
        sent = SuccessorValues(*(x + out * (y - x) for x, y in zip(every.by_fatigue_steps(moved), gone)))

        none_contact = none + stay * sent.none
        buy_contact = buy + stay_buy * sent.buy
        redeem_contact = buy + stay_buy * sent.redeem
        none, buy = none + stay * rest.none, buy + stay_buy * rest.buy

    nothing = none + p0 * (g + buy - none)
    bought = g + buy_contact - none_contact
    annoyed = reward.fatigue_penalty * (at.f >= reward.fatigue_limit).to(p0.dtype)
    unseen = none_contact + (1 - q) * p0 * bought - (1 + price) * every.cost - annoyed
    gain = q * (bought + c.mu * (redeem_contact - buy_contact))
    paid = (1 + price) * c.mu * q
    given = every.value.unsqueeze(1) * paid
    if scarcity is not None:
        given = given + scarcity[1:].view(every.value.shape).unsqueeze(1) * (c.mu * q)
    return nothing, torch.addcmul(unseen, p1.unsqueeze(1), gain - given)


def no_contact_values(c: Customers, world: World) -> list[StateValues]:
    """V⁰, the value of never contacting, of weeks 1..T+1; the last is V_end, the value of `tail_weeks` more weeks."""
    unsubscribed = StateGrid(c.alpha)
    unsubscribed.f, unsubscribed.d = unsubscribed.f[:1], unsubscribed.d[:1]
    inside, outside = (_no_contact_values(c, world, at) for at in (StateGrid(c.alpha), unsubscribed))
    return [StateValues(v, w[:, 0, 0]) for v, w in zip(inside, outside)]


def _no_contact_values(c: Customers, world: World, at: StateGrid) -> list[Tensor]:
    shape = (HABITS, at.f.shape[0], at.d.shape[0], len(c))
    lost, g, reward = churn_probability(c, at.h, at.f), c.margin + world.reward.trips, world.reward

    def moves(season):
        p0 = torch.sigmoid(utility(c, at.h, at.d, season))
        up = p0 * (1 - 0.25 * lost) * habit_gain(c, at.h, False)
        down = (1 - p0) * (1 - lost) * c.pi_minus
        return p0, up, down, 1 - lost * (1 - 0.75 * p0) - up - down

    def back(value, margin, up, down, same, discount):
        y = torch.lerp(value, shift(value, 2, -1), c.delta_d.expand(shape))
        y = torch.lerp(y, shift(y, 1, -1), c.delta_f.expand(shape))
        new = same * y
        new[:-1].addcmul_(up[:-1], y[1:])
        new[-1:].addcmul_(up[-1:], y[-1:])
        new[1:].addcmul_(down[1:], y[:-1])
        new[:1].addcmul_(down[:1], y[:1])
        return torch.add(margin, new, alpha=discount)

    p0, up, down, same = moves(torch.ones_like(world.season[0]))
    value = torch.zeros(shape, device=p0.device, dtype=p0.dtype)
    for _ in range(world.tail_weeks):
        value = back(value, p0 * g, up, down, same, world.tail_discount)
    values = [reward.terminal * value]
    for season in reversed(world.season):
        p0, up, down, same = moves(season)
        margin = p0 * g - reward.churn_cost * lost * (1 - 0.75 * p0)
        values.append(back(values[-1], margin, up, down, same, 1.0))
    return values[::-1]


def best_plan(
    c: Customers,
    world: World,
    v0: list[StateValues],
    price: Tensor,
    scarcity: Tensor | None = None,
    *,
    contacts: Tensor | None = None,
    since: int = 0,
) -> tuple[list[StateValues], list[Tensor]]:
    """V^λ of the best plan at prices, weeks 1..T+1, and its flat actions, [6, 4, 3, N] a week (0 for nothing).

    `price` [T] is the price of money, `scarcity` [O+1] that of a redemption of each offer. Weeks before `since` (from
    0) are left out. `contacts`, bool [O·C, 1, 1, 1, N], are the contacts that contact rules allow, by default all. An
    unsubscribed customer keeps the value of no contact.
    """
    at, codec = StateGrid(c.alpha), world.catalogue.action_codec
    values, actions = [v0[-1]], []
    for t in reversed(range(since, world.weeks)):
        nothing, contact = action_values(c, world, t, at, price[t], values[-1], scarcity)
        contact = contact.flatten(0, 1)
        best, action = (contact if contacts is None else contact.masked_fill(~contacts, -torch.inf)).max(0)
        actions.append(torch.where(best > nothing, codec.nth_contact(action), 0))
        values.append(StateValues(torch.maximum(best, nothing), v0[t].unsubscribed))
    return values[::-1], actions[::-1]


def expected_use(
    c: Customers, world: World, start: CustomerState, actions: list[Tensor], stocked: tuple[int, ...]
) -> Tensor:
    """Expected use of each week's money and of each `stocked` offer by every customer under a plan, [T + S, N].

    The use of an offer is its redemptions in all weeks. One forward pass of state occupancies computes the use.
    """
    at, n, spends = StateGrid(c.alpha), len(c), []
    taken = [torch.zeros_like(c.alpha) for _ in stocked]
    mass = torch.zeros(HABITS, FATIGUES, EXPECTATIONS, n, device=c.alpha.device, dtype=c.alpha.dtype)
    rows = torch.arange(n, device=mass.device)
    mass[start.habit, start.fatigue, start.expectation, rows] = (start.status == SUBSCRIBED).to(mass.dtype)
    lost = churn_probability(c, at.h, at.f)
    up, up_redeemed = habit_gain(c, at.h, False), habit_gain(c, at.h, True)
    for t, action in enumerate(actions):
        offer, channel = world.catalogue.action_codec.decode(action)
        contacted = offer > 0
        o = outcome(c, world, t, at.h, at.f, at.d, offer, channel)
        spends.append((mass * o.spend).sum((0, 1, 2)))
        taken = [x + (mass * o.redeem * (offer == k)).sum((0, 1, 2)) for x, k in zip(taken, stocked)]
        mass = mass * (1 - opt_out_probability(c, at.f, world.catalogue.opt_out[channel]) * contacted)
        steps = world.catalogue.fatigue_steps[channel] * contacted
        redeem, buy, none = (
            _raise_fatigue(mass * share, steps, c.delta_f)
            for share in (o.redeem * (1 - 0.25 * lost), o.buy * (1 - 0.25 * lost), (1 - o.redeem - o.buy) * (1 - lost))
        )
        rest = _push(buy, 0, +1, up) + _push(none, 0, -1, c.pi_minus)
        mass = _push(rest, 2, -1, c.delta_d) + _push(_push(redeem, 0, +1, up_redeemed), 2, +1, 1.0)
    return torch.stack(spends + taken)


def _push(mass: Tensor, dim: int, step: int, share: Tensor | float) -> Tensor:
    """Move a share of the mass one step along `dim`; mass that would leave the grid stays at its end."""
    n = mass.shape[dim]
    moved = mass * share
    stays = mass - moved
    source, target, edge = (1, 0, 0) if step < 0 else (0, 1, n - 1)
    stays.narrow(dim, target, n - 1).add_(moved.narrow(dim, source, n - 1))
    stays.narrow(dim, edge, 1).add_(moved.narrow(dim, edge, 1))
    return stays


def _raise_fatigue(mass: Tensor, steps: Tensor, delta_f: Tensor) -> Tensor:
    """Move mass along fatigue: up by `steps` after a contact, else down with probability `delta_f`."""
    moved = _push(mass * (steps == 0), 1, -1, delta_f)
    risen = torch.zeros_like(mass)
    for k in range(FATIGUES - 1, 0, -1):
        risen = _push(risen + mass * (steps == k), 1, +1, 1.0)
    return moved + risen
