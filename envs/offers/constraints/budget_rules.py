"""Budget rules: they keep a policy's requests within budget and stock (envs/offers/README.md §7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.offers.constraints.budget_account import DAYS_PER_WEEK, BudgetAccount
from envs.offers.constraints.purchase_queue import SLACK, accepted, affordable, cut_at_stock, expected_totals
from envs.offers.planning.knapsack import Increments, clear, compact
from envs.offers.world.catalogue import Catalogue

Redeems = Callable[[Tensor], Tensor]  # flat actions [N] that are sent, at most one a customer → who redeems, bool [N]


class BudgetRule(ABC):
    """A rule that decides which increments (customers' upgrades to dearer actions) are bought in a week.

    A rule is a frozen dataclass, because the evaluator compares rules with `==`: where both tables have one rule, the
    second table is left out. A file of conf/env/budget/ names a rule under `rule`.
    """

    def check(self, catalogue: Catalogue) -> None:  # noqa: B027 - most rules fit every catalogue
        """Raise ValueError where the rule doesn't fit a catalogue."""

    @abstractmethod
    def __str__(self) -> str:
        """Complete the sentence "money …" of a report's title, as "spent in expectation" does."""

    @abstractmethod
    def allocate(self, account: BudgetAccount, steps: Increments, redeems: Redeems) -> tuple[Tensor, Tensor]:
        """Buy increments of the week that the account has opened; return flat actions [N] and the clearing price [].

        The rule debits the account itself, by `withdraw`, `reserve` or `pay`. It may call `redeems` once for each send,
        with the actions of that send, to learn who redeems.
        """


@dataclass(frozen=True, kw_only=True)
class ExpectedSpend(BudgetRule):
    """Keep the expected spend within the budget; the realised spend may exceed it.

    Money that rolls over and stock are debited by expected use, too.
    """

    def __str__(self) -> str:
        return "spent in expectation"

    def allocate(self, account: BudgetAccount, steps: Increments, redeems: Redeems) -> tuple[Tensor, Tensor]:
        """Accept increments by falling price until the expected spend reaches the money."""
        money = account.left.clamp_min(0)
        if account.has_stock_limits:
            queue, cut = cut_at_stock(steps, account, account.stock, lambda q: (q.spend.cumsum(0), money))
            action, price = accepted(queue, cut, len(steps.price))
        else:
            action, price = clear(steps, money)
        account.withdraw(*expected_totals(steps, action, account.catalogue))
        return action, price


@dataclass(frozen=True, kw_only=True)
class BufferedSpend(BudgetRule):
    """Keep the expected spend plus z standard deviations within the budget: a chance constraint.

    The variance assumes that customers redeem independently of each other.
    """

    z: float

    def __post_init__(self):
        if self.z < 0:
            raise ValueError(f"env.budget.rule.z: expected a number from 0, got {self.z}")

    def __str__(self) -> str:
        return f"spent in expectation, {self.z:g} standard deviations below"

    def allocate(self, account: BudgetAccount, steps: Increments, redeems: Redeems) -> tuple[Tensor, Tensor]:
        """Accept increments by falling price until the buffered spend reaches the money."""
        money = account.left.clamp_min(0)

        def buffered(queue):
            return queue.spend.cumsum(0) + self.z * queue.variance.cumsum(0).clamp_min(0).sqrt(), money

        action, price = accepted(*cut_at_stock(steps, account, account.stock, buffered), len(steps.price))
        account.pay(action, redeems(action))
        return action, price


@dataclass(frozen=True, kw_only=True)
class ReservedSpend(BudgetRule):
    """Reserve face value and message cost when an offer is sent: the budget is never exceeded.

    A reservation is settled when the offer is redeemed and released when its validity ends. A week has `sends_per_week`
    sends, spread over its days; each send can use the money that earlier sends released. `validity_days` counts the day
    of sending, and is one number for all offers, or {offer: days}.
    """

    sends_per_week: int
    validity_days: int | dict[str, int]

    def __post_init__(self):
        if not 1 <= self.sends_per_week <= DAYS_PER_WEEK:
            raise ValueError(
                f"env.budget.rule.sends_per_week: expected 1 to {DAYS_PER_WEEK} a week, got {self.sends_per_week}"
            )
        each = self.validity_days.values() if isinstance(self.validity_days, dict) else [self.validity_days]
        for days in each:
            if isinstance(days, bool) or not isinstance(days, int) or days < 1:
                raise ValueError(f"env.budget.rule.validity_days: expected whole days from 1, got {days}")

    def __str__(self) -> str:
        return f"reserved when sent, {self.sends_per_week} sends a week: never exceeded"

    def check(self, catalogue: Catalogue) -> None:
        """Raise ValueError where the offers with a validity are not those of the catalogue."""
        self.validity(catalogue)

    def validity(self, catalogue: Catalogue) -> Tensor:
        """Days [O+1] that each offer is valid."""
        given = self.validity_days
        days: int | list[int]
        if isinstance(given, dict):
            if set(given) != set(catalogue.offers[1:]):
                raise ValueError(
                    f"env.budget.rule.validity_days: expected {', '.join(catalogue.offers[1:])}, got {', '.join(given)}"
                )
            days = [1, *(given[name] for name in catalogue.offers[1:])]
        else:
            days = given
        return torch.as_tensor(days, device=catalogue.value.device).expand(len(catalogue.offers))

    def allocate(self, account: BudgetAccount, steps: Increments, redeems: Redeems) -> tuple[Tensor, Tensor]:
        """In each send, plan for all remaining sends, send what can be reserved now, and observe who redeems."""
        catalogue = account.catalogue
        validity = self.validity(catalogue)
        longest = int(validity.max())
        slack = SLACK * account.budget.sum()
        steps = compact(steps)
        sent = torch.zeros_like(steps.action[:, 0])
        monday = DAYS_PER_WEEK * account.week
        days = [monday + DAYS_PER_WEEK * send // self.sends_per_week for send in range(self.sends_per_week)]
        for send, day in enumerate(days):
            money, pieces = account.available(day, longest)
            money = (money - slack).clamp_min(0)
            turns = min(self.sends_per_week - send, 1 + (days[-1] - day) // longest)

            def recycled(queue, money=money, turns=turns):
                spend, charge = queue.spend.cumsum(0), queue.charge.cumsum(0)
                redeemed = (spend / charge.clamp_min(1e-12)).clamp(0, 1)
                return spend, money * (1 - (1 - redeemed) ** turns)  # paid by money reserved `turns` times over

            asked = steps._replace(price=torch.where((sent == 0)[:, None], steps.price, -torch.inf))
            queue, cut = cut_at_stock(asked, account, pieces, recycled)
            wanted, price = accepted(queue, cut, len(sent))
            action = affordable(wanted, queue.row, money, pieces, catalogue)
            redeemed = redeems(action)
            account.pay(action, redeemed)
            account.reserve(day, action, redeemed, validity)
            sent = torch.where(action > 0, action, sent)
        return sent, price
