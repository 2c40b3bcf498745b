"""The rules of money: how what a policy asks for is kept within budget and stock (envs/offers/README.md §7)."""
from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from envs.offers.constraints.budget_account import DAYS, Purse
from envs.offers.constraints.purchase_queue import SLACK, affordable, bought, forecast, within_stock
from envs.offers.planning.knapsack import Increments, clear, compact
from envs.offers.world.catalogue import Catalogue


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
