"""All customers' increments in the order in which falling prices reach them, cut where money or stock ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.planning.knapsack import Increments
from envs.offers.world.catalogue import Catalogue

SLACK = 1e-9  # share of a budget that is never spent: more than the rounding of its sums


class PurchaseQueue(NamedTuple):
    """M increments by falling price, [M] each: customer, flat action after the increment, and additions to each sum."""

    price: Tensor
    row: Tensor
    action: Tensor
    spend: Tensor  # expected
    variance: Tensor  # of the spend
    charge: Tensor  # face value and message cost
    pieces: Tensor  # expected redemptions by offer, [O+1, M]; empty without stock limits


class HeldTotals(NamedTuple):
    """What each customer has after each of K increments, [N, K]: the offer, and sums in float64."""

    offer: Tensor
    spend: Tensor  # expected
    share: Tensor  # probability of a redemption
    variance: Tensor  # of the spend
    charge: Tensor  # face value and message cost


Limit = Callable[[PurchaseQueue], tuple[Tensor, Tensor]]  # a running sum [M] over the queue, and its limit [] or [M]


def totals_after(steps: Increments, catalogue: Catalogue) -> HeldTotals:
    """Sum a customer's increments up; the catalogue is in float64."""
    offer, channel = catalogue.action_codec.decode(steps.action)
    held = steps.price > -torch.inf
    # spend of the action that is held after the step
    total = torch.where(held, steps.spend, 0.0).cumsum(1).to(catalogue.value)
    face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
    given = torch.minimum((total - message).clamp_min(0), face)
    share = torch.where(face > 0, given / face.clamp_min(1e-12), 1.0) * (offer > 0)
    return HeldTotals(offer, total, share, given * (face - given), face + message)


def price_queue(steps: Increments, floor: Tensor, account: BudgetAccount) -> PurchaseQueue:
    """Sort increments by falling price; leave out those with a price at or below the `floor` [O+1] of their offer."""
    catalogue = account.catalogue
    held = steps.price > -torch.inf
    after = totals_after(steps, catalogue)
    offer = after.offer
    sums = [after.spend, after.variance, after.charge]
    if account.has_stock_limits:
        sums += [after.share * (offer == o) for o in range(len(catalogue.offers))]

    real = held & (steps.price > floor[offer])
    column = torch.arange(real.shape[1], device=real.device).expand_as(real)
    last = torch.where(real, column, -1).cummax(1).values
    before = torch.cat((torch.full_like(last[:, :1], -1), last[:, :-1]), 1)  # the increment before each
    added = [x - torch.where(before >= 0, x.gather(1, before.clamp_min(0)), 0.0) for x in sums]
    price, order = torch.where(real, steps.price, -torch.inf).flatten().sort(descending=True, stable=True)
    order = order[: int(real.sum())]
    spend, variance, charge, *pieces = (x.flatten()[order] for x in added)
    return PurchaseQueue(
        price=price[: len(order)],
        row=order // real.shape[1],
        action=steps.action.flatten()[order],
        spend=spend,
        variance=variance,
        charge=charge,
        pieces=torch.stack(pieces) if account.has_stock_limits else spend[:0],
    )


def expected_totals(steps: Increments, action: Tensor, catalogue: Catalogue) -> tuple[Tensor, Tensor]:
    """Expected spend [] of flat actions [N] among increments, and the expected redemptions of each offer [O+1]."""
    real = steps.price > -torch.inf
    total = torch.where(real, steps.spend, 0.0).cumsum(1).to(catalogue.value)
    spend = torch.where(real & (steps.action == action[:, None]), total, 0.0).amax(1)
    offer, channel = catalogue.action_codec.decode(action)
    face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
    share = torch.where(face > 0, (spend - message) / face.clamp_min(1e-12), 1.0).clamp(0, 1) * (offer > 0)
    return spend.sum(), torch.zeros_like(catalogue.value).index_add(0, offer, share)


def cut_at_stock(steps: Increments, account: BudgetAccount, stock: Tensor, limit: Limit) -> tuple[PurchaseQueue, int]:
    """Return the queue and the number of accepted increments: those before the first one that exceeds the `limit`.

    From the price down at which an offer's expected redemptions exceed its `stock` [O+1], nobody gets the offer.
    """
    floor = torch.full_like(stock, -torch.inf)
    while True:
        queue = price_queue(steps, floor, account)
        total, most = limit(queue)
        cut = first_true(total > most)
        short = torch.tensor(
            [first_true(used[:cut].cumsum(0) > stock[offer] + SLACK) for offer, used in enumerate(queue.pieces)]
        )
        if not account.has_stock_limits or short.min() >= cut:
            return queue, cut
        floor[short.argmin()] = queue.price[short.min()]


def first_true(condition: Tensor) -> int:
    """Index of the first element of a bool tensor [M] that is true, M if none is."""
    return int(condition.to(torch.uint8).argmax()) if bool(condition.any()) else len(condition)


def accepted(queue: PurchaseQueue, cut: int, n: int) -> tuple[Tensor, Tensor]:
    """Flat action [n] that each customer holds after the first `cut` increments, and the price of the next one."""
    place = torch.arange(1, cut + 1, device=queue.row.device)
    last = torch.zeros(n, dtype=torch.long, device=place.device).scatter_reduce_(0, queue.row[:cut], place, "amax")
    action = torch.where(last > 0, queue.action[(last - 1).clamp_min(0)], 0) if cut else last
    price = queue.price[cut].clamp_min(0) if cut < len(queue.price) else torch.zeros_like(queue.charge.sum())
    return action, price


def affordable(wanted: Tensor, row: Tensor, money: Tensor, pieces: Tensor, catalogue: Catalogue) -> Tensor:
    """Keep the wanted flat actions [N] that `money` [] and `pieces` [O+1] cover in full; replace others by nothing.

    Customers are served in the order of their first position in a queue, `row` [M].
    """
    offer, channel = catalogue.action_codec.decode(wanted)
    charge = catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)
    place = torch.full_like(wanted, len(row)).scatter_reduce_(0, row, torch.arange(len(row), device=row.device), "amin")
    waiting = place.argsort(dim=0, stable=True)
    waiting = waiting[wanted[waiting] > 0]
    for o in pieces.isfinite().nonzero()[:, 0].tolist():
        theirs = offer[waiting] == o
        waiting = waiting[~theirs | (theirs.cumsum(0) <= pieces[o])]
    covered = torch.zeros_like(wanted)
    # an action that is too dear for the money left does not stop cheaper ones behind it; at most one pass a charge
    while len(waiting):
        fits = charge[waiting].cumsum(0) <= money
        chosen, waiting = waiting[fits], waiting[~fits]
        covered[chosen] = wanted[chosen]
        money = money - charge[chosen].sum()
        waiting = waiting[charge[waiting] <= money]
    return covered
