"""What a package decides from: the parts of it that a plan asks for, a table's customers, and their memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.live.decide import DecisionInputs, Scores
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.offers.constraints.contact_policy import ContactOptions, ContactPolicy, Exclusion
from envs.offers.constraints.contact_rules import ContactRules
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import SeenWeek


class PolicyPackage(Protocol):
    """An exported policy (envs/live/plan/inputs/exported.py), as far as a plan needs it."""

    catalogue: Catalogue  #: in float64
    contact_rules: dict[str, Any]
    prices: Tensor  #: falling, [G]
    weeks: int  #: of a season
    version: str
    observes_price: bool  #: whether its logits are those at a price, and not action values less price · spend

    def features(self, numbers: Tensor, levels: Tensor) -> Tensor:
        """Return features [N, F] of numbers [N, A] and codes of levels [N, L]."""

    def start_memory(self, customers: int) -> Tensor:
        """Return the memory [N, M] of customers without history."""

    def remember(self, memory: Tensor, features: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Return the memory after a week of the season."""

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory with which customers go into a next season, as the policy's training had it."""

    def score(self, inputs: DecisionInputs, prices: Tensor | None = None) -> Scores:
        """Score the inputs at prices, falling [G]; None: the package's."""


@dataclass(frozen=True)
class Customers:
    """The N customers of a table, what rules allow them, and what the shop's log has of them."""

    ids: list[str]
    numbers: Tensor  #: columns of numbers as the package reads them, float64 [N, A]
    levels: Tensor  #: codes of the levels of columns of text, int64 [N, L]
    past: PastWeeks
    contact_policy: ContactPolicy
    options: ContactOptions
    subscribed: Tensor  #: bool [N]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, row: int) -> Customers:
        """Take one of the customers."""
        rows = slice(row, row + 1)
        return Customers(
            [self.ids[row]],
            self.numbers[rows],
            self.levels[rows],
            self.past.of(np.array([row])),
            self.contact_policy.take(rows),
            self.options.take(rows),
            self.subscribed[rows],
        )

    @property
    def eligible(self) -> Tensor:
        """Customers who may be sent something, bool [N]."""
        return self.options.action_mask[:, 1:].any(1)


class Table(NamedTuple):
    """The customers of a file: what contact rules read, and what the package read."""

    ids: list[str]
    columns: Mapping[str, np.ndarray]
    numbers: Tensor
    levels: Tensor
    has_left: np.ndarray | None = None  #: by a column of dates, bool [N]; None: the file says nothing of it
    is_to_join: np.ndarray | None = None  #: the same of customers who join after the planned week


def allowed_now(catalogue: Catalogue, rules: dict[str, Any], table: Table, past: PastWeeks) -> Customers:
    """Apply contact rules, the keys of conf/env/contact_rules, to the customers of a table.

    Who has left, or joins after the planned week, is sent nothing. Whether customers have left the table says, where it
    has dates of leaving, else the log.
    """
    n = len(table.ids)
    policy = ContactRules(catalogue, table, **rules).policy_of(torch.arange(n), n, torch.device("cpu"))
    subscribed, left, to_join = past.subscribed(), past.left(), past.is_to_join()
    if table.has_left is not None:
        left = torch.from_numpy(table.has_left)
    if table.is_to_join is not None:
        to_join |= torch.from_numpy(table.is_to_join)
    absent = (Exclusion("left the shop", None, None, left), Exclusion("joins later", None, None, to_join))
    policy = replace(policy, exclusions=(*absent, *policy.exclusions))
    longest = max((cap.weeks for cap in policy.caps), default=1)
    options = policy(subscribed & ~left & ~to_join, past.contacted(longest - 1))
    return Customers(table.ids, table.numbers, table.levels, past, policy, options, subscribed)


def memory_of(package: PolicyPackage, past: PastWeeks, rows: slice, numbers: Tensor, levels: Tensor) -> Tensor:
    """Carry the memory of customers through the weeks of the log, season after season."""
    memory = package.start_memory(len(numbers))
    if past.log is None or not memory.shape[1]:
        return memory
    features = package.features(numbers, levels)
    for week in range(past.week):
        number = week % package.weeks
        memory = package.next_season(memory) if week and number == 0 else memory
        after = package.remember(memory, features, number, past.seen(week, rows))
        memory = torch.where(past.present(week, rows)[:, None], after, memory)
    return package.next_season(memory) if past.week and past.week % package.weeks == 0 else memory


def inputs_of(
    package: PolicyPackage, customers: Customers, rows: slice | Tensor, memory: Tensor | None = None
) -> DecisionInputs:
    """Return what the decisions on some of the customers depend on; `memory` spares a slice its weeks of the log."""
    numbers, levels = customers.numbers[rows], customers.levels[rows]
    if memory is None:
        assert isinstance(rows, slice)
        memory = memory_of(package, customers.past, rows, numbers, levels)
    return DecisionInputs(
        numbers=numbers,
        levels=levels,
        memory=memory,
        caps_left=customers.options.caps_left[rows].float(),
        week=torch.tensor(customers.past.week % package.weeks),
        action_mask=customers.options.action_mask[rows],
    )
