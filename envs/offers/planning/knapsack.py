"""The weekly knapsack accepts changes of action in falling order of profit per unit of money, within the budget."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Increments(NamedTuple):
    """Up to K changes for each of N customers; all fields are [N, K].

    A change, also called a step, replaces the customer's action by one that spends at least as much. A step is worth
    its spend where the price of money (the budget's Lagrange multiplier, docs/glossary.md) is at or below the step's
    own price. The prices of existing steps never rise along a row. A step with price −inf does not exist.
    """

    price: Tensor  # the price of money at or below which the step is worth its spend
    spend: Tensor  # what the step adds to the expected spend
    action: Tensor  # the action after the step, a flat index over all pairs of offer and channel


def clear(steps: Increments, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Accept steps in the order of price until the budget is spent; return actions [N] and the marginal price.

    The marginal price is that of the first refused step, and at least 0; it is 0 where the budget covers all steps.
    """
    price, order = steps.price.flatten().sort(descending=True, stable=True)
    real = price > -torch.inf
    accepted = real & (torch.where(real, steps.spend.flatten()[order], 0.0).cumsum(0) <= budget)
    return latest(steps, order, accepted), torch.where(real & ~accepted, price, 0.0).clamp_min(0).amax()


def latest(steps: Increments, order: Tensor, accepted: Tensor) -> Tensor:
    """Return each customer's flat action [N] after the accepted steps.

    `order` [N·K] has the flat indices of the steps by falling price; `accepted` [N·K] is in that order."""
    n, k = steps.price.shape
    last = torch.zeros(n, dtype=torch.long, device=order.device).scatter_reduce_(
        0, order // k, torch.where(accepted, order % k + 1, 0), "amax"
    )
    return torch.where(last > 0, steps.action.gather(1, (last - 1).clamp_min(0)[:, None])[:, 0], 0)


def allowed_increments(steps: Increments, action_mask: Tensor) -> Increments:
    """Drop every step to an action that is not allowed, and all later steps of that customer.

    action_mask is bool [N, P] over flat actions, true where the action is allowed."""
    within = action_mask.gather(1, steps.action).cummin(1).values
    return steps._replace(price=steps.price.masked_fill(~within, -torch.inf))


def upper_hull(value: Tensor, spend: Tensor) -> Increments:
    """Return the steps along each customer's upper concave hull of the points (spend, value).

    value and spend are [N, P]; column 0 is the action "nothing", and an action that is not allowed has value −inf. The
    price of a step is its efficiency, Δvalue / Δspend. To accept all customers' steps down to one price solves the
    linear relaxation of the multiple-choice knapsack (Sinha & Zoltners 1979).
    """
    at_value, at_spend = value[:, :1], spend[:, :1]
    steps = []
    for _ in range(value.shape[1] - 1):
        cost = spend - at_spend
        better = (value > at_value) & (cost >= 0)
        efficiency = torch.where(better, (value - at_value) / cost.clamp_min(1e-12), -torch.inf)
        price = efficiency.amax(1, keepdim=True)
        # Of equally efficient steps take the longest: the shorter steps lie on the way to it.
        best = torch.where(efficiency == price, cost, -1.0).argmax(1, keepdim=True)
        steps.append((price, cost.gather(1, best), best))
        at_value, at_spend = (
            torch.where(price > -torch.inf, x.gather(1, best), y) for x, y in ((value, at_value), (spend, at_spend))
        )
        if not (price > -torch.inf).any():
            break
    price, spend, action = (torch.cat(x, 1) for x in zip(*steps))
    return Increments(
        price.cummin(1).values, spend, action
    )  # exact prices fall along a row; rounding can make one rise


def ranked(score: Tensor, spend: Tensor, action: Tensor) -> Increments:
    """Return one step a customer. The step's price is the score; −inf means no step. All arguments are [N]."""
    return Increments(score[:, None], spend[:, None], action[:, None])


def demand_curve(logits: Tensor, spend: Tensor, prices: Tensor) -> Increments:
    """Return a policy's steps as the price falls: logits [G, N, P] on a grid of falling prices [G], spend [N, P].

    The policy's choice at a price is the mode. A customer's spend never falls as the price falls: the choice at a grid
    price is kept only if the choice at every lower grid price costs at least as much. A choice that is kept becomes a
    step where it costs more than the customer's action so far. Between two grid points the choice changes where the
    logits of the old and the new choice cross, interpolated linearly in the logarithm of the price. Steps are [N, G],
    with price −inf at grid points without a change (`compact` moves these to the right, and drops the columns that have
    no step).
    """
    choice = logits.argmax(-1)  # [G, N]
    cost = spend.gather(1, choice.T).T
    # The smallest spend at this price and at all lower grid prices.
    kept = cost.flip(0).cummin(0).values.flip(0)
    nothing = torch.zeros_like(choice[0])
    choice = torch.where(kept >= cost, choice, -1)
    now, paid, steps = nothing, torch.zeros_like(cost[0]), []
    log_price = prices.log()
    for g in range(len(prices)):
        new = torch.where((choice[g] >= 0) & (cost[g] > paid), choice[g], now)
        change = new != now
        after, before = (logit_margin(logits[at], new, now) for at in (g, max(g - 1, 0)))
        share = torch.where(after > before, after / (after - before).clamp_min(1e-12), 0.0).clamp(0, 1)
        crossing = (log_price[g] + share * (log_price[max(g - 1, 0)] - log_price[g])).exp()
        price = torch.where(change, crossing, -torch.inf)
        cost_now = spend.gather(1, new[:, None])[:, 0]
        steps.append((price, cost_now - paid, new))
        now, paid = new, cost_now
    return Increments(*(torch.stack(x, 1) for x in zip(*steps)))


def logit_margin(logits: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the logit of the new choice less that of the old one, [N]; logits [N, P], choices [N]."""
    return (logits.gather(1, new[:, None]) - logits.gather(1, old[:, None]))[:, 0]


def compact(steps: Increments) -> Increments:
    """Move each row's existing steps to the left, and drop the columns that are then empty."""
    real = steps.price > -torch.inf
    order = (~real).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(int(real.sum(1).max()), 1)]
    return Increments(*(x.gather(1, order) for x in steps))


def concat_increments(parts: list[Increments]) -> Increments:
    """Concatenate the steps of one or more blocks of customers."""
    if len(parts) == 1:
        return parts[0]
    return Increments(*(torch.cat(field) for field in zip(*padded(parts))))


def padded(parts: list[Increments]) -> list[Increments]:
    """Give several blocks as many steps, with steps that do not exist."""
    width = max(part.price.shape[1] for part in parts)

    def wide(x: Tensor, value: float) -> Tensor:
        return functional.pad(x, (0, width - x.shape[1]), value=value)

    return [Increments(wide(x.price, -torch.inf), wide(x.spend, 0.0), wide(x.action, 0)) for x in parts]
