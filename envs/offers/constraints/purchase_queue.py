"""Steps of all customers in the order in which falling prices reach them, cut where money or stock ends."""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.budget_account import Purse
from envs.offers.planning.knapsack import Increments
from envs.offers.world.catalogue import Catalogue


SLACK = 1e-9  # share of a budget that is left alone: more than what adding up its parts rounds


class Queue(NamedTuple):
    """Real steps by falling price, [M] each: customer, pair after the step, and what the step adds to each sum."""

    price: Tensor
    row: Tensor
    action: Tensor
    spend: Tensor  # expected
    variance: Tensor  # of the spend
    charge: Tensor  # face value and message
    pieces: Tensor  # expected redemptions by offer, [O+1, M]; only where there are stocks


def line_up(steps: Increments, floor: Tensor, purse: Purse) -> Queue:
    """Sort real steps by price; those to an offer at or below its `floor` [O+1] are left out."""
    catalogue = purse.catalogue
    offer, channel = catalogue.action_codec.decode(steps.action)
    held = steps.price > -torch.inf
    total = torch.where(held, steps.spend, 0.0).cumsum(1).to(purse.budget)  # spend of the pair held after the step
    face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
    given = torch.minimum((total - message).clamp_min(0), face)
    share = torch.where(face > 0, given / face.clamp_min(1e-12), 1.0) * (offer > 0)
    sums = [total, given * (face - given), face + message]
    if purse.stocked:
        sums += [share * (offer == o) for o in range(len(catalogue.offers))]

    real = held & (steps.price > floor[offer])
    column = torch.arange(real.shape[1], device=real.device).expand_as(real)
    last = torch.where(real, column, -1).cummax(1).values
    before = torch.cat((torch.full_like(last[:, :1], -1), last[:, :-1]), 1)  # the real step before each
    added = [x - torch.where(before >= 0, x.gather(1, before.clamp_min(0)), 0.0) for x in sums]
    price, order = torch.where(real, steps.price, -torch.inf).flatten().sort(descending=True, stable=True)
    order = order[:int(real.sum())]
    parts = [x.flatten()[order] for x in added]
    pieces = torch.stack(parts[3:]) if purse.stocked else parts[0][:0]
    return Queue(price[:len(order)], order // real.shape[1], steps.action.flatten()[order], *parts[:3], pieces)


def forecast(steps: Increments, action: Tensor, catalogue: Catalogue) -> tuple[Tensor, Tensor]:
    """Return the expected spend of pairs [N] among steps, and the expected redemptions of each offer [O+1]."""
    real = steps.price > -torch.inf
    total = torch.where(real, steps.spend, 0.0).cumsum(1).to(catalogue.value)
    spend = torch.where(real & (steps.action == action[:, None]), total, 0.0).amax(1)
    offer, channel = catalogue.action_codec.decode(action)
    face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
    share = torch.where(face > 0, (spend - message) / face.clamp_min(1e-12), 1.0).clamp(0, 1) * (offer > 0)
    return spend.sum(), torch.zeros_like(catalogue.value).index_add(0, offer, share)


def within_stock(steps: Increments, purse: Purse, stock: Tensor, need: Callable) -> tuple[Queue, int]:
    """Return the queue and how much of it is bought: to the first step where `need`, a sum and its limit, passes.

    An offer whose expected redemptions would pass its `stock` [O+1] is given to nobody from that price down.
    """
    floor = torch.full_like(stock, -torch.inf)
    while True:
        queue = line_up(steps, floor, purse)
        total, limit = need(queue)
        cut = first(total > limit)
        short = torch.tensor([first(used[:cut].cumsum(0) > stock[o] + SLACK) for o, used in enumerate(queue.pieces)])
        if not purse.stocked or short.min() >= cut:
            return queue, cut
        floor[short.argmin()] = queue.price[short.min()]


def first(where: Tensor) -> int:
    """Return the first place where a condition [M] holds, M if nowhere."""
    return int(where.to(torch.uint8).argmax()) if bool(where.any()) else len(where)


def bought(queue: Queue, cut: int, n: int) -> tuple[Tensor, Tensor]:
    """Return the pair [n] that each customer holds after the first `cut` steps, and the price of the first refused."""
    place = torch.arange(1, cut + 1, device=queue.row.device)
    last = torch.zeros(n, dtype=torch.long, device=place.device).scatter_reduce_(0, queue.row[:cut], place, "amax")
    action = torch.where(last > 0, queue.action[(last - 1).clamp_min(0)], 0) if cut else last
    price = queue.price[cut].clamp_min(0) if cut < len(queue.price) else torch.zeros_like(queue.charge.sum())
    return action, price


def affordable(wanted: Tensor, queue: Tensor, money: Tensor, pieces: Tensor, catalogue: Catalogue) -> Tensor:
    """Keep of the pairs wanted [N] those that `money` and `pieces` [O+1] cover in full, the first of a queue first."""
    offer, channel = catalogue.action_codec.decode(wanted)
    charge = catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)
    place = torch.full_like(wanted, len(queue)).scatter_reduce_(
        0, queue, torch.arange(len(queue), device=queue.device), "amin")
    waiting = place.argsort(dim=0, stable=True)
    waiting = waiting[wanted[waiting] > 0]
    for o in pieces.isfinite().nonzero()[:, 0].tolist():
        theirs = offer[waiting] == o
        waiting = waiting[~theirs | (theirs.cumsum(0) <= pieces[o])]
    kept = torch.zeros_like(wanted)
    while len(waiting):  # who is too dear for what is left does not stop the cheaper behind; a pass for each charge at most
        fits = charge[waiting].cumsum(0) <= money
        chosen, waiting = waiting[fits], waiting[~fits]
        kept[chosen] = wanted[chosen]
        money = money - charge[chosen].sum()
        waiting = waiting[charge[waiting] <= money]
    return kept
