"""The dynamic program of one customer: expected value of actions, organic value, best plan at prices, expected spend."""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.offers.catalogue import Catalogue
from envs.offers.world import (CHURNED, EXPECTATIONS, FATIGUES, HABITS, SUBSCRIBED, Customers, State, World, attention,
                               churn, habit_gain, leave, outcome, purchase_if_seen, utility)


class Values(NamedTuple):
    """A value for every state: subscribed [6, 4, 3, N], unsubscribed [6, N]; a churned customer is worth nothing."""

    subscribed: Tensor
    unsubscribed: Tensor

    def at(self, state: State) -> Tensor:
        """Value of the state that each customer is in, [N]."""
        rows = torch.arange(len(state.habit), device=state.habit.device)
        inside = self.subscribed[state.habit, state.fatigue, state.expectation, rows]
        value = torch.where(state.status == SUBSCRIBED, inside, self.unsubscribed[state.habit, rows])
        return torch.where(state.status == CHURNED, 0.0, value)

    def take(self, rows: slice) -> Values:
        """Take some of the customers."""
        return Values(self.subscribed[..., rows], self.unsubscribed[..., rows])


class Successors(NamedTuple):
    """Expected value of next week by what happens in this one, before churn and opt-out: habit and expectation are
    this week's, fatigue is the next one's; shaped like the states."""

    none: Tensor
    buy: Tensor
    redeem: Tensor


class Near(NamedTuple):
    """A table of next week's values as habit stays, falls and rises, with expectation falling by chance; and with it risen
    (…_keen) as habit stays and rises."""

    stay: Tensor
    down: Tensor
    up: Tensor
    stay_keen: Tensor
    up_keen: Tensor


class Grid:
    """Every subscribed state of every customer; shapes broadcast to [6, 4, 3, N]."""

    def __init__(self, like: Tensor):
        h, f, d = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (HABITS, FATIGUES, EXPECTATIONS))
        self.h, self.f, self.d = h.view(-1, 1, 1, 1), f.view(-1, 1, 1), d.view(-1, 1)

    def near(self, c: Customers, v: Tensor) -> Near:
        """Look around in a table [6, 4, 3, N]."""
        calm, keen = torch.lerp(v, shift(v, 2, -1), c.delta_d.expand_as(v)), shift(v, 2, +1)
        return Near(calm, shift(calm, 0, -1), shift(calm, 0, +1), keen, shift(keen, 0, +1))

    def near_outside(self, v: Tensor) -> Near:
        """Look around in a table [6, N]."""
        up = shift(v, 0, +1)
        return Near(v, shift(v, 0, -1), up, v, up)

    def inside(self, c: Customers, v: Tensor) -> Callable[[int], Successors]:
        """Mix a table [6, 4, 3, N] for any fatigue, moved by so many steps."""
        mixed = mix(c, self.h, self.near(c, v))

        def moved(step: int) -> Successors:
            index = (torch.arange(FATIGUES, device=v.device) + step).clamp(0, FATIGUES - 1)
            return Successors(*(x[:, index] for x in mixed))
        return moved

    def outside(self, c: Customers, v: Tensor) -> Successors:
        """Mix a table [6, N]."""
        return Successors(*(x[:, None, None] for x in mix(c, self.h[:, 0, 0], self.near_outside(v))))


class Visited:
    """The states that N customers are in, as if all were subscribed; shapes are [N]."""

    def __init__(self, state: State, like: Tensor):
        self.state, self.rows = state, torch.arange(len(state.habit), device=like.device)
        self.h, self.f, self.d = (x.to(like.dtype) for x in state[:3])

    def near(self, c: Customers, v: Tensor, step: int | Tensor) -> Near:
        """Look around in a table [6, 4, 3, N] with the fatigue moved by `step`."""
        fatigue, d = (self.state.fatigue + step).clamp(0, FATIGUES - 1), self.state.expectation

        def look(move, expectation):
            return v[self._habit(move), fatigue, expectation, self.rows]

        def calm(move):
            return torch.lerp(look(move, d), look(move, (d - 1).clamp_min(0)), c.delta_d)
        keen = (d + 1).clamp_max(EXPECTATIONS - 1)
        return Near(calm(0), calm(-1), calm(+1), look(0, keen), look(+1, keen))

    def _habit(self, move: int) -> Tensor:
        return (self.state.habit + move).clamp(0, HABITS - 1)

    def inside(self, c: Customers, v: Tensor) -> Callable[[int | Tensor], Successors]:
        """Mix a table [6, 4, 3, N] for any fatigue, moved by so many steps."""
        return lambda step: mix(c, self.h, self.near(c, v, step))

    def outside(self, c: Customers, v: Tensor) -> Successors:
        """Mix a table [6, N]."""
        stay, down, up = (v[self._habit(move), self.rows] for move in (0, -1, +1))
        return mix(c, self.h, Near(stay, down, up, stay, up))


class Contacts(NamedTuple):
    """Offers and channels with which customers are contacted: what an offer has is [O, *S], what a channel has [C, *S]."""

    omega: Tensor
    value: Tensor
    cost: Tensor
    opt_out: Tensor
    steps: tuple[int, ...] | Tensor  # of fatigue, by channel [C]; or [N], a customer's own

    @classmethod
    def all(cls, c: Customers, catalogue: Catalogue, at: Grid | Visited) -> Contacts:
        """Every offer through every channel."""
        each = (-1, *(1,) * at.h.dim())  # broadcast over the states
        return cls(c.omega.view(len(catalogue.cost), *each[2:], -1), catalogue.value[1:].view(each), catalogue.cost.view(each),
                   catalogue.opt_out.view(each), catalogue.steps)

    @classmethod
    def each(cls, c: Customers, catalogue: Catalogue, offer: Tensor, channel: Tensor) -> Contacts:
        """One offer [N] through one channel [N] for each customer, who are where they are: O = C = 1."""
        return cls(c.omega.gather(0, channel[None]), *(x[None] for x in (
            catalogue.value[offer], catalogue.cost[channel], catalogue.opt_out[channel])), catalogue.tires[channel])


def shift(table: Tensor, dim: int, step: int) -> Tensor:
    """Read the neighbour at `step` (±1) along `dim`, the end standing for what lies beyond it."""
    n = table.shape[dim]
    if step > 0:
        return torch.cat((table.narrow(dim, 1, n - 1), table.narrow(dim, n - 1, 1)), dim)
    return torch.cat((table.narrow(dim, 0, 1), table.narrow(dim, 0, n - 1)), dim)


def mix(c: Customers, h: Tensor, near: Near) -> Successors:
    """Mix next week's values over the moves of habit h."""
    stay, keen = near.stay, near.stay_keen
    up, up_redeemed = (habit_gain(c, h, redeemed).expand_as(stay) for redeemed in (False, True))
    return Successors(torch.lerp(stay, near.down, c.pi_minus.expand_as(stay)), torch.lerp(stay, near.up, up),
                      torch.lerp(keen, near.up_keen, up_redeemed))


def action_values(c: Customers, world: World, week: int, at: Grid | Visited, price: Tensor | float, then: Values | None,
                  scarcity: Tensor | None = None, contacts: Contacts | None = None) -> tuple[Tensor, Tensor]:
    """Expected r − price·spend + value of next week: of nothing [*S], of `contacts` (without, of all there are) [O, C, *S].

    With next week's values given, a contact is affine in q·p1, so each of the O × C costs two operations.
    `then=None` leaves the future out. `price` is a number or a tensor that broadcasts to [*S]; `scarcity` [O+1] is the
    price of a redemption of each offer, where its stock is short.
    """
    reward, catalogue = world.reward, world.catalogue
    g = c.margin + reward.trips
    b = utility(c, at.h, at.d, world.season[week])
    p0 = torch.sigmoid(b)
    lost = churn(c, at.h, at.f)
    stay, stay_buy = 1 - lost, 1 - 0.25 * lost
    none = none_contact = -reward.churn_cost * lost
    buy = buy_contact = redeem_contact = 0.25 * none

    every = contacts or Contacts.all(c, catalogue, at)
    q = attention(every.omega, c, at.f)
    p1 = purchase_if_seen(c, b, at.d, every.value)

    if then is not None:
        moved, gone = at.inside(c, then.subscribed), at.outside(c, then.unsubscribed)
        out, tired = leave(c, at.f, every.opt_out), moved(0)
        rest = Successors(*(x + c.delta_f * (y - x) for x, y in zip(tired, moved(-1))))
        if isinstance(every.steps, tuple):
            by_step = {k: moved(k) for k in set(every.steps)}
            sent = Successors(*(torch.stack(x) for x in zip(*(by_step[k] for k in every.steps))))
        else:
            sent = Successors(*(x[None] for x in moved(every.steps)))
        sent = Successors(*(x + out * (y - x) for x, y in zip(sent, gone)))

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


def organic(c: Customers, world: World) -> list[Values]:
    """V⁰, the value of never contacting, of weeks 1..T+1; the last is V_end: what `tail_weeks` more are worth."""
    rested = Grid(c.alpha)
    rested.f, rested.d = rested.f[:1], rested.d[:1]
    inside, outside = (_organic(c, world, at) for at in (Grid(c.alpha), rested))
    return [Values(v, w[:, 0, 0]) for v, w in zip(inside, outside)]


def _organic(c: Customers, world: World, at: Grid) -> list[Tensor]:
    shape = (HABITS, at.f.shape[0], at.d.shape[0], len(c))
    lost, g, reward = churn(c, at.h, at.f), c.margin + world.reward.trips, world.reward

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

    p0, *rates = moves(torch.ones_like(world.season[0]))
    value = torch.zeros(shape, device=p0.device, dtype=p0.dtype)
    for _ in range(world.tail_weeks):
        value = back(value, p0 * g, *rates, world.tail_discount)
    values = [reward.terminal * value]
    for season in reversed(world.season):
        p0, *rates = moves(season)
        values.append(back(values[-1], p0 * g - reward.churn_cost * lost * (1 - 0.75 * p0), *rates, 1.0))
    return values[::-1]


def best_plan(c: Customers, world: World, v0: list[Values], price: Tensor, scarcity: Tensor | None = None, *,
              contacts: Tensor | None = None, since: int = 0) -> tuple[list[Values], list[Tensor]]:
    """V^λ of the best plan at prices [T] of money and [O+1] of stock, weeks 1..T+1, and its actions, [6, 4, 3, N] a week.

    What was before the week `since` (from 0) is left out.

    Actions are flat pairs offer·C + channel, 0 for nothing. Who is unsubscribed keeps the organic value. `contacts`,
    bool [O·C, 1, 1, 1, N], are those that rules allow; without it all are.
    """
    at, channels = Grid(c.alpha), len(world.catalogue.channels)
    values, actions = [v0[-1]], []
    for t in reversed(range(since, world.weeks)):
        nothing, contact = action_values(c, world, t, at, price[t], values[-1], scarcity)
        contact = contact.flatten(0, 1)
        best, action = (contact if contacts is None else contact.masked_fill(~contacts, -torch.inf)).max(0)
        actions.append(torch.where(best > nothing, action + channels, 0))
        values.append(Values(torch.maximum(best, nothing), v0[t].unsubscribed))
    return values[::-1], actions[::-1]


def expected_spend(c: Customers, world: World, start: State, actions: list[Tensor]) -> Tensor:
    """Expected spend of every customer in every week under a plan, [T, N]."""
    return expected_use(c, world, start, actions, ())


def expected_use(c: Customers, world: World, start: State, actions: list[Tensor], stocked: tuple[int, ...]) -> Tensor:
    """Expected use that every customer makes under a plan of each week's money and each `stocked` offer, [T + S, N].

    An offer's use is its redemptions in all weeks. One pass of occupancies.
    """
    at, n, spends = Grid(c.alpha), len(c), []
    taken = [torch.zeros_like(c.alpha) for _ in stocked]
    mass = torch.zeros(HABITS, FATIGUES, EXPECTATIONS, n, device=c.alpha.device, dtype=c.alpha.dtype)
    rows = torch.arange(n, device=mass.device)
    mass[start.habit, start.fatigue, start.expectation, rows] = (start.status == SUBSCRIBED).to(mass.dtype)
    lost = churn(c, at.h, at.f)
    up, up_redeemed = habit_gain(c, at.h, False), habit_gain(c, at.h, True)
    for t, action in enumerate(actions):
        offer, channel = action // len(world.catalogue.channels), action % len(world.catalogue.channels)
        contacted = offer > 0
        o = outcome(c, world, t, at.h, at.f, at.d, offer, channel)
        spends.append((mass * o.spend).sum((0, 1, 2)))
        taken = [x + (mass * o.redeem * (offer == k)).sum((0, 1, 2)) for x, k in zip(taken, stocked)]
        mass = mass * (1 - leave(c, at.f, world.catalogue.opt_out[channel]) * contacted)
        steps = world.catalogue.tires[channel] * contacted
        redeem, buy, none = (
            _tire(mass * share, steps, c.delta_f) for share in
            (o.redeem * (1 - 0.25 * lost), o.buy * (1 - 0.25 * lost), (1 - o.redeem - o.buy) * (1 - lost)))
        rest = _push(buy, 0, +1, up) + _push(none, 0, -1, c.pi_minus)
        mass = _push(rest, 2, -1, c.delta_d) + _push(_push(redeem, 0, +1, up_redeemed), 2, +1, 1.0)
    return torch.stack(spends + taken)


def _push(mass: Tensor, dim: int, step: int, share: Tensor | float) -> Tensor:
    """Move a share of the mass one step along `dim`; what would leave the grid stays at its end."""
    n = mass.shape[dim]
    moved = mass * share
    stays = mass - moved
    source, target, edge = (1, 0, 0) if step < 0 else (0, 1, n - 1)
    stays.narrow(dim, target, n - 1).add_(moved.narrow(dim, source, n - 1))
    stays.narrow(dim, edge, 1).add_(moved.narrow(dim, edge, 1))
    return stays


def _tire(mass: Tensor, steps: Tensor, delta_f: Tensor) -> Tensor:
    """Move mass along fatigue: up by `steps` where contacted, down by chance where not."""
    moved = _push(mass * (steps == 0), 1, -1, delta_f)
    risen = torch.zeros_like(mass)
    for k in range(FATIGUES - 1, 0, -1):
        risen = _push(risen + mass * (steps == k), 1, +1, 1.0)
    return moved + risen
