"""Spending a week's budget: what customers would get at falling prices, and the cut where the money ends."""
from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from envs.offers.planning.lagrangian_bound import alone, unconstrained_spend
from envs.offers.world.catalogue import Catalogue
from envs.offers.planning.state_values import Values
from envs.offers.world.customers import Customers, State, World
from rlcore.backends import distributed as parallel


LARGEST = 2**63 - 1  # of whole numbers in 64 bits


class Increments(NamedTuple):
    """What each customer's next steps up would cost, in the order in which falling prices reach them; all [N, K].

    A step with price −inf is none. Prices do not rise along a row; `spend` is the step's own, `action` the flat pair
    that holds after it.
    """

    price: Tensor
    spend: Tensor
    action: Tensor


def clear(steps: Increments, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Accept steps in the order of price until the budget is spent; return actions [N] and the marginal price.

    The price is that of the first step refused, 0 where the budget covers all.
    """
    price, order = steps.price.flatten().sort(descending=True, stable=True)
    real = price > -torch.inf
    accepted = real & (torch.where(real, steps.spend.flatten()[order], 0.0).cumsum(0) <= budget)
    return latest(steps, order, accepted), torch.where(real & ~accepted, price, 0.0).clamp_min(0).amax()


def clear_together(steps: Increments, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `clear` does with the customers of all processes under one budget; return this one's actions [N], and the price.

    Sums alone are passed on: the price where the money ends is found by bisection over all floats, a sum for each of 64
    bits; of the steps at that price those of the processes before come first.
    """
    price, order = steps.price.double().flatten().sort(descending=True, stable=True)
    real = price > -torch.inf
    spent = torch.where(real, steps.spend.flatten()[order], 0.0).double().cumsum(0)
    spent = torch.cat((torch.zeros_like(spent[:1]), spent))  # by the first steps, however many
    place = -ordered(price)  # rises where prices fall
    low, high = place.new_tensor([-LARGEST, LARGEST])
    for _ in range(64):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        within = parallel.total(spent[torch.searchsorted(place, middle, right=True)]) <= budget
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    before, until = (torch.searchsorted(place, high, right=right) for right in (False, True))
    ties = spent.new_zeros(parallel.size())
    ties[parallel.rank()] = spent[until] - spent[before]
    elsewhere = parallel.total(spent[before]) - spent[before] + parallel.total(ties)[:parallel.rank()].sum()
    covered = parallel.total(spent[-1]) <= budget
    accepted = real & (covered | (place < high) | ((place == high) & (elsewhere + spent[1:] <= budget)))
    refused = torch.where(covered, 0.0, ordered(-high).view(torch.float64)).clamp_min(0)
    return latest(steps, order, accepted), refused.to(steps.price)


def ordered(x: Tensor) -> Tensor:
    """Turn float64 into whole numbers of the same order, or such numbers into the bits of the floats."""
    bits = x.view(torch.int64)
    return bits ^ ((bits >> 63) & LARGEST)


def latest(steps: Increments, order: Tensor, accepted: Tensor) -> Tensor:
    """Return the pair [N] that each customer holds after the accepted of all steps in an order, [N·K] both."""
    n, k = steps.price.shape
    last = torch.zeros(n, dtype=torch.long, device=order.device).scatter_reduce_(
        0, order // k, torch.where(accepted, order % k + 1, 0), "amax")
    return torch.where(last > 0, steps.action.gather(1, (last - 1).clamp_min(0)[:, None])[:, 0], 0)


def permitted(steps: Increments, pairs: Tensor) -> Increments:
    """Refuse every step to a pair that is not allowed, pairs bool [N, P], and those after it, which build on it."""
    within = pairs.gather(1, steps.action).cummin(1).values
    return steps._replace(price=steps.price.masked_fill(~within, -torch.inf))


def hull(value: Tensor, spend: Tensor) -> Increments:
    """Exact multiple-choice knapsack: each customer's upper concave hull of (spend, value), column 0 being nothing.

    value, spend [N, P], invalid pairs at value −inf. The price of a step is its efficiency, Δvalue / Δspend; cutting
    all customers' steps at one price solves the linear relaxation (Sinha & Zoltners 1979).
    """
    at_value, at_spend = value[:, :1], spend[:, :1]
    steps = []
    for _ in range(value.shape[1] - 1):
        cost = spend - at_spend
        efficiency = torch.where((value > at_value) & (cost >= 0), (value - at_value) / cost.clamp_min(1e-12), -torch.inf)
        price = efficiency.amax(1, keepdim=True)
        # Of equally efficient steps the longest: the shorter ones lie on the way to it.
        best = torch.where(efficiency == price, cost, -1.0).argmax(1, keepdim=True)
        steps.append((price, cost.gather(1, best), best))
        at_value, at_spend = (torch.where(price > -torch.inf, x.gather(1, best), y)
                              for x, y in ((value, at_value), (spend, at_spend)))
        if not (price > -torch.inf).any():
            break
    price, spend, action = (torch.cat(x, 1) for x in zip(*steps))
    return Increments(price.cummin(1).values, spend, action)  # but for rounding, prices fall along a row


def ranked(score: Tensor, spend: Tensor, action: Tensor) -> Increments:
    """One step a customer, in order of score; all [N], score −inf where there is none."""
    return Increments(score[:, None], spend[:, None], action[:, None])


def switches(logits: Tensor, spend: Tensor, prices: Tensor) -> Increments:
    """What a policy buys as the price falls: logits [G, N, P] on a grid of falling prices [G], spend [N, P].

    Its choice at a price is the mode. Spend is made monotone: a customer counts as buying from the highest price from
    which down the policy keeps spending at least as much. Between two grid points a switch lies where the logits of
    old and new choice, linear in the logarithm of the price, cross.
    """
    choice = logits.argmax(-1)  # [G, N]
    cost = spend.gather(1, choice.T).T
    # Lower envelope from below: what is still bought at every lower price.
    kept = cost.flip(0).cummin(0).values.flip(0)
    nothing = torch.zeros_like(choice[0])
    choice = torch.where(kept >= cost, choice, -1)
    now, paid, steps = nothing, torch.zeros_like(cost[0]), []
    log_price = prices.log()
    for g in range(len(prices)):
        new = torch.where((choice[g] >= 0) & (cost[g] > paid), choice[g], now)
        change = new != now

        def margin(at):
            return (logits[at].gather(1, new[:, None]) - logits[at].gather(1, now[:, None]))[:, 0]

        after, before = margin(g), margin(max(g - 1, 0))
        share = torch.where(after > before, after / (after - before).clamp_min(1e-12), 0.0).clamp(0, 1)
        crossing = (log_price[g] + share * (log_price[max(g - 1, 0)] - log_price[g])).exp()
        price = torch.where(change, crossing, -torch.inf)
        cost_now = spend.gather(1, new[:, None])[:, 0]
        steps.append((price, cost_now - paid, new))
        now, paid = new, cost_now
    return Increments(*(torch.stack(x, 1) for x in zip(*steps)))


def compact(steps: Increments) -> Increments:
    """Leave out the columns of a table that no row needs."""
    real = steps.price > -torch.inf
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, :max(int(real.sum(1).max()), 1)]
    return Increments(*(x.gather(1, order) for x in steps))


def stacked(parts: list[Increments]) -> Increments:
    """Put the steps of several blocks of customers below each other."""
    width = max(part.price.shape[1] for part in parts)

    def padded(x, value):
        return functional.pad(x, (0, width - x.shape[1]), value=value)
    return Increments(*(torch.cat([padded(x, value) for x in field]) for field, value in
                        zip(zip(*parts), (-torch.inf, 0.0, 0))))


class Budget:
    """What a season may cost, and the `rule` (envs/offers/constraints/budget_rules.py) that keeps what is sent within it.

    Every week has the same: `weekly` money a customer, or without it `share` of what the best unconstrained plan spends
    in a week. With `rollover` a week can spend what earlier ones left; `seasonal` money is there from the first week
    on. `stock` {offer: redemptions a customer and season} limits offers.
    """

    def __init__(self, *, share: float, weekly: float | None, seasonal: bool, rollover: bool, stock: dict | None, rule):
        if weekly is None and not 0 < share <= 1:
            raise ValueError(f"env.budget.share: expected a share in (0, 1], got {share}")
        if weekly is not None and weekly <= 0:
            raise ValueError(f"env.budget.weekly: expected money, above 0, got {weekly}")
        for offer, pieces in (stock or {}).items():
            if isinstance(pieces, bool) or not isinstance(pieces, (int, float)) or not 0 <= pieces < math.inf:
                raise ValueError(f"env.budget.stock.{offer}: expected redemptions a customer, from 0, got {pieces}")
        self.share, self.weekly, self.seasonal, self.rollover = share, weekly, seasonal, rollover or seasonal
        self.stock, self.rule = stock or {}, rule

    def check(self, catalogue: Catalogue) -> None:
        """Raise ValueError where stock or rule don't fit the catalogue."""
        self.pieces(0, catalogue)
        self.rule.check(catalogue)

    def at(self, share: float) -> Budget:
        """Return the same with another share."""
        return Budget(share=share, weekly=None, seasonal=self.seasonal, rollover=self.rollover, stock=self.stock,
                      rule=self.rule)

    def weekly_amounts(self, c: Customers, world: World, v0: list[Values] | None, start: State,
                       contacts: Tensor | None = None, *, total: Callable[[Tensor], Tensor] = alone) -> Tensor:
        """Budget [T] of a population, of all whom `total` adds up; the best plan that a share is of keeps to the contacts
        that rules allow."""
        if self.weekly is not None:
            amounts = self.weekly * total(torch.full_like(world.season, len(c)))
        else:
            spend = unconstrained_spend(c, world, v0, start, contacts=contacts, total=total)
            amounts = self.share * spend.mean().expand(world.weeks)
        if not self.seasonal:
            return amounts
        return torch.cat((amounts.sum()[None], torch.zeros_like(amounts[1:])))

    def pieces(self, n: int, catalogue: Catalogue) -> Tensor:
        """Redemptions that n customers can be given of each offer [O+1], inf without a limit."""
        unknown = set(self.stock) - set(catalogue.offers[1:])
        if unknown:
            raise ValueError(f"env.budget.stock: no such offer: {', '.join(sorted(unknown))}")
        each = [self.stock.get(offer, math.inf) for offer in catalogue.offers]
        return torch.tensor([x if x == math.inf else x * n for x in each]).to(catalogue.value)
