"""The account of one season: money and stock left, reserved and available."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue

DAYS_PER_WEEK = 7


class Reservation(NamedTuple):
    """Money and pieces that are reserved until the start of a day."""

    lapses: int  # day of the season, from 0
    money: Tensor
    pieces: Tensor  # of each offer [O+1]


class BudgetAccount:
    """Money and stock of one season.

    budget [T] is the money of each week. stock [O+1] is the number of redemptions of each offer, inf without a limit.
    With `rollover` a week starts with what the week before left.
    """

    def __init__(self, budget: Tensor, stock: Tensor, rollover: bool, catalogue: Catalogue):
        # In float64, whatever the type of the world: sums of money must not round.
        self.budget = budget.double()
        self.stock = stock.double()
        self.rollover = rollover
        self.catalogue = catalogue.to(budget.device, torch.float64)
        self.left = torch.zeros_like(self.budget[0])
        self.has_stock_limits = bool(stock.isfinite().any())
        self.reservations: list[Reservation] = []
        self.week = -1

    def open(self, week: int) -> None:
        """Start a week."""
        self.week = week
        self.left = self.budget[week] + (self.left if self.rollover else 0)

    def reserved(self, day: int) -> tuple[Tensor, Tensor]:
        """Money and pieces [O+1] whose reservations outlast the start of a day."""
        held = [reservation for reservation in self.reservations if reservation.lapses > day]
        money = sum((reservation.money for reservation in held), start=torch.zeros_like(self.left))
        pieces = sum((reservation.pieces for reservation in held), start=torch.zeros_like(self.stock))
        return money, pieces

    def available(self, day: int, validity: int) -> tuple[Tensor, Tensor]:
        """Money and pieces [O+1] that can be reserved on a day for `validity` days, with certainty."""
        money, pieces = self.reserved(day)
        free = self.left - money
        if not self.rollover:  # reservations that outlast the week must be covered by the next weeks' budgets as well
            for week in range(self.week + 1, min((day + validity - 1) // DAYS_PER_WEEK + 1, len(self.budget))):
                free = torch.minimum(free, self.budget[week] - self.reserved(week * DAYS_PER_WEEK)[0])
        return free, self.stock - pieces

    def withdraw(self, money: Tensor, pieces: Tensor) -> None:
        """Take money and pieces [O+1] out."""
        self.left = self.left - money
        self.stock = self.stock - pieces

    def pay(self, action: Tensor, redeemed: Tensor) -> None:
        """Pay for flat actions [N] that were sent: the messages, and face values and pieces where `redeemed` [N]."""
        offer, channel = self.catalogue.action_codec.decode(action)
        pieces = torch.zeros_like(self.stock).index_add(0, offer, (redeemed & (offer > 0)).to(self.stock))
        self.withdraw(self.catalogue.spend(offer, channel, redeemed).sum(), pieces)

    def reserve(self, day: int, action: Tensor, redeemed: Tensor, validity: Tensor) -> None:
        """Reserve face value and piece of flat actions [N] that are not redeemed yet, for `validity` [O+1] days."""
        self.reservations = [reservation for reservation in self.reservations if reservation.lapses > day]
        offer = self.catalogue.action_codec.offer_of(action)
        pieces = torch.zeros_like(self.stock).index_add(0, offer, (~redeemed & (offer > 0)).to(self.stock))
        for days in validity.unique().tolist():
            held = torch.where(validity == days, pieces, 0.0)
            self.reservations.append(Reservation(day + days, (held * self.catalogue.value).sum(), held))
