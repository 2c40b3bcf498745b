"""The rules of money: how what a policy asks for is kept within budget and stock (envs/offers/README.md §7)."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from envs.offers.planning.knapsack import Increments, clear, compact
from envs.offers.world.catalogue import Catalogue

DAYS = 7  # of a week
SLACK = 1e-9  # share of a budget that is left alone: more than what adding up its parts rounds


class Purse:
    """Money and stock of one season: what is left of them, and what is reserved until which day.

    budget [T]; stock [O+1], inf without a limit. With `rollover` a week starts with what the last one left, too.
    """

    def __init__(self, budget: Tensor, stock: Tensor, rollover: bool, catalogue: Catalogue):
        # In float64 whatever the world computes in: sums of money must not round.
        self.budget, self.stock, self.rollover = budget.double(), stock.double(), rollover
        self.catalogue = catalogue.to(budget.device, torch.float64)
        self.left, self.stocked = torch.zeros_like(self.budget[0]), bool(stock.isfinite().any())
        self.reservations: list[tuple[int, Tensor, Tensor]] = []  # day of lapse, money, pieces of each offer [O+1]
        self.week = -1

    def open(self, week: int) -> None:
        """Start a week."""
        self.week, self.left = week, self.budget[week] + (self.left if self.rollover else 0)

    def reserved(self, day: int) -> tuple[Tensor, Tensor]:
        """Return money and pieces [O+1] whose reservations outlast the start of a day."""
        zero = (torch.zeros_like(self.left), torch.zeros_like(self.stock))
        held = [r for r in self.reservations if r[0] > day]
        return tuple(sum((r[k + 1] for r in held), start=zero[k]) for k in (0, 1))

    def available(self, day: int, validity: int) -> tuple[Tensor, Tensor]:
        """Return money and pieces [O+1] that can be reserved on a day for `validity` days, and paid for certain."""
        money, pieces = self.reserved(day)
        free = self.left - money
        if not self.rollover:  # what is reserved beyond the week must be covered by the next ones' budgets as well
            for week in range(self.week + 1, min((day + validity - 1) // DAYS + 1, len(self.budget))):
                free = torch.minimum(free, self.budget[week] - self.reserved(week * DAYS)[0])
        return free, self.stock - pieces

    def count(self, money: Tensor, pieces: Tensor) -> None:
        """Take money and pieces [O+1] out."""
        self.left, self.stock = self.left - money, self.stock - pieces

    def pay(self, action: Tensor, redeemed: Tensor) -> None:
        """Settle flat pairs [N] that were sent: the message at once, face values and pieces where redeemed."""
        offer, channel = self.catalogue.action_codec.decode(action)
        self.count(self.catalogue.spend(offer, channel, redeemed).sum(),
                   torch.zeros_like(self.stock).index_add(0, offer, (redeemed & (offer > 0)).to(self.stock)))

    def reserve(self, day: int, action: Tensor, redeemed: Tensor, validity: Tensor) -> None:
        """Hold face value and piece of flat pairs [N] that were not redeemed until their validity [O+1] ends."""
        self.reservations = [r for r in self.reservations if r[0] > day]
        offer = self.catalogue.action_codec.offer_of(action)
        pieces = torch.zeros_like(self.stock).index_add(0, offer, (~redeemed & (offer > 0)).to(self.stock))
        for days in validity.unique().tolist():
            held = torch.where(validity == days, pieces, 0.0)
            self.reservations.append((day + days, (held * self.catalogue.value).sum(), held))


class Rule:
    """How a week's steps are bought."""

    def check(self, catalogue: Catalogue) -> None:
        """Raise ValueError where the rule doesn't fit a catalogue."""

    @abstractmethod
    def week(self, purse: Purse, steps: Increments, redeems: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Spend the week that the purse has opened: return flat pairs [N] and the price at which it cleared.

        `redeems` says who redeems which of the pairs [N] that are sent; each customer is sent one at most.
        """


@dataclass(frozen=True, kw_only=True)
class Expected(Rule):
    """Expected spend within the budget; what is paid can pass it. Expectations are what roll-over and stock count, too."""

    def __str__(self) -> str:
        return "spent in expectation"

    def week(self, purse: Purse, steps: Increments, redeems: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Buy in the order of price until the expected spend reaches the money."""
        money = purse.left.clamp_min(0)
        if purse.stocked:
            action, price = bought(*within_stock(steps, purse, purse.stock, lambda q: (q.spend.cumsum(0), money)),
                                   len(steps.price))
        else:
            action, price = clear(steps, money)
        purse.count(*forecast(steps, action, purse.catalogue))
        return action, price


@dataclass(frozen=True, kw_only=True)
class Buffered(Rule):
    """Expected spend and z of its standard deviations within the budget; customers redeem independently."""

    z: float

    def __post_init__(self):
        if self.z < 0:
            raise ValueError(f"env.budget.rule.z: expected a number from 0, got {self.z}")

    def __str__(self) -> str:
        return f"spent in expectation, {self.z:g} standard deviations below"

    def week(self, purse: Purse, steps: Increments, redeems: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Buy in the order of price until the buffered spend reaches the money."""
        def need(q):
            return q.spend.cumsum(0) + self.z * q.variance.cumsum(0).clamp_min(0).sqrt(), purse.left.clamp_min(0)
        action, price = bought(*within_stock(steps, purse, purse.stock, need), len(steps.price))
        purse.pay(action, redeems(action))
        return action, price


@dataclass(frozen=True, kw_only=True)
class Reserved(Rule):
    """Face value and message reserved when sent, settled when redeemed, released when validity lapses: certain.

    A week sends in `waves`, spread over its days, each with what the earlier ones released. `validity_days` of every
    offer, the day of sending included.
    """

    waves: int
    validity_days: int | dict

    def __post_init__(self):
        if not 1 <= self.waves <= DAYS:
            raise ValueError(f"env.budget.rule.waves: expected 1 to {DAYS} a week, got {self.waves}")
        each = self.validity_days.values() if isinstance(self.validity_days, dict) else [self.validity_days]
        for days in each:
            if isinstance(days, bool) or not isinstance(days, int) or days < 1:
                raise ValueError(f"env.budget.rule.validity_days: expected whole days from 1, got {days}")

    def __str__(self) -> str:
        return f"reserved when sent, in {self.waves} waves a week: never passed"

    def check(self, catalogue: Catalogue) -> None:
        """Raise ValueError where validity is not that of the catalogue's offers."""
        self.validity(catalogue)

    def validity(self, catalogue: Catalogue) -> Tensor:
        """Return the days [O+1] that each offer is valid."""
        days = self.validity_days
        if isinstance(days, dict):
            if set(days) != set(catalogue.offers[1:]):
                raise ValueError(f"env.budget.rule.validity_days: expected {', '.join(catalogue.offers[1:])}, "
                                 f"got {', '.join(days)}")
            days = [1, *(days[name] for name in catalogue.offers[1:])]
        return torch.as_tensor(days, device=catalogue.value.device).expand(len(catalogue.offers))

    def week(self, purse: Purse, steps: Increments, redeems: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Before each wave plan what the waves left can send, send the first of it that can be reserved, and learn."""
        catalogue, validity = purse.catalogue, self.validity(purse.catalogue)
        longest, slack = validity.max().item(), SLACK * purse.budget.sum()
        steps, sent = compact(steps), torch.zeros_like(steps.action[:, 0])
        days = [DAYS * purse.week + DAYS * wave // self.waves for wave in range(self.waves)]
        for wave, day in enumerate(days):
            money, pieces = purse.available(day, longest)
            money = (money - slack).clamp_min(0)
            turns = min(self.waves - wave, 1 + (days[-1] - day) // longest)

            def need(q, money=money, turns=turns):
                spend, charge = q.spend.cumsum(0), q.charge.cumsum(0)
                redeemed = (spend / charge.clamp_min(1e-12)).clamp(0, 1)
                return spend, money * (1 - (1 - redeemed) ** turns)  # money reserved `turns` times over pays this

            asked = steps._replace(price=torch.where((sent == 0)[:, None], steps.price, -torch.inf))
            queue, cut = within_stock(asked, purse, pieces, need)
            wanted, price = bought(queue, cut, len(sent))
            action = affordable(wanted, queue.row, money, pieces, catalogue)
            redeemed = redeems(action)
            purse.pay(action, redeemed)
            purse.reserve(day, action, redeemed, validity)
            sent = torch.where(action > 0, action, sent)
        return sent, price


# ── steps in the order in which falling prices reach them ───────────────────────────────────────────────────────────
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
