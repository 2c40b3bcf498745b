"""Money and stock of one season: what is left, what is reserved, what is available."""
from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue


DAYS = 7  # of a week


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
