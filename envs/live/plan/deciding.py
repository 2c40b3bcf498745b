"""What a package decides from: the parts of it that a plan asks for, and its scores of a table's customers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.live.decide import DecisionInputs, Scores
from envs.live.plan.arms import HOLDOUT, RL
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.reasons import RuleNames
from envs.offers.constraints.contact_policy import ContactOptions, ContactPolicy, Exclusion
from envs.offers.constraints.contact_rules import ContactRules
from envs.offers.planning.knapsack import Increments, compact, concat_increments, demand_curve
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import SeenWeek


class PolicyPackage(Protocol):
    """An exported policy (envs/live/plan/inputs/exported.py), as far as a plan needs it."""

    catalogue: Catalogue  #: in float64
    contact_rules: dict[str, Any]
    prices: Tensor  #: falling, [G]
    weeks: int  #: of a season
    version: str

    def features(self, numbers: Tensor, levels: Tensor) -> Tensor:
        """Return features [N, F] of numbers [N, A] and codes of levels [N, L]."""

    def start_memory(self, customers: int) -> Tensor:
        """Return the memory [N, M] of customers without history."""

    def remember(self, memory: Tensor, features: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Return the memory after a week of the season."""

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory with which customers go into a next season."""

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


def allowed_now(catalogue: Catalogue, rules: dict[str, Any], table: Table, past: PastWeeks) -> Customers:
    """Apply contact rules, the keys of conf/env/contact_rules, to the customers of a table.

    Who has left, by the log, is sent nothing.
    """
    n = len(table.ids)
    policy = ContactRules(catalogue, table, **rules).policy_of(torch.arange(n), n, torch.device("cpu"))
    subscribed, left = past.subscribed(), past.left()
    policy = replace(policy, exclusions=(Exclusion("left the shop", None, None, left), *policy.exclusions))
    longest = max((weeks for weeks, _ in policy.caps), default=1)
    options = policy(subscribed & ~left, past.contacted(longest - 1))
    return Customers(table.ids, table.numbers, table.levels, past, policy, options, subscribed)


@dataclass
class Scored:
    """Scores of the customers who may be sent something, by blocks, and the inputs of those whom a rule refuses."""

    eligible: np.ndarray  #: rows of the table, int64 [E]
    steps: Increments  #: [E, K]
    spend: Tensor  #: expected, corrected by the forecast, float32 [E, P]
    inputs: list[tuple[np.ndarray, DecisionInputs]] = field(default_factory=list)  #: rows, and their inputs


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


def score_customers(
    package: PolicyPackage, customers: Customers, factor: Tensor, arm: np.ndarray, block: int
) -> Scored:
    """Score the customers outside the holdout, by blocks; `factor` [P] corrects what is given on redemption."""
    mask = customers.options.action_mask
    eligible = customers.eligible.numpy() & (arm != HOLDOUT)
    refused = (package.catalogue.valid.flatten() & ~mask).any(1).numpy() & (arm == RL)
    pairs = package.catalogue.action_codec.num_actions
    steps, spends = [no_steps(0)], [torch.zeros(0, pairs)]
    scored = Scored(np.flatnonzero(eligible), steps[0], spends[0])
    week = torch.tensor(customers.past.week % package.weeks)
    for start in range(0, len(customers), block):
        rows = slice(start, min(start + block, len(customers)))
        numbers, levels = customers.numbers[rows], customers.levels[rows]
        inputs = DecisionInputs(
            numbers=numbers,
            levels=levels,
            memory=memory_of(package, customers.past, rows, numbers, levels),
            caps_left=customers.options.caps_left[rows].float(),
            week=week,
            action_mask=mask[rows],
        )
        kept = np.flatnonzero(refused[rows])
        scored.inputs.append((kept + start, inputs.take(torch.from_numpy(kept))))
        here = torch.from_numpy(np.flatnonzero(eligible[rows]))
        if len(here):
            scores = package.score(inputs.take(here))
            spends.append(corrected(scores.spend, factor, package.catalogue))
            steps.append(steps_of(scores.logits, spends[-1], package.prices))
    scored.steps, scored.spend = concat_increments(steps), torch.cat(spends)
    return scored


def steps_of(logits: Tensor, spend: Tensor, prices: Tensor) -> Increments:
    """Return the compact `demand_curve` [N, K]; it is not made for who is sent nothing at any price, most customers."""
    buyers = (logits.argmax(-1) > 0).any(0).nonzero()[:, 0]
    if not len(buyers):
        return no_steps(len(spend))
    found = compact(demand_curve(logits[:, buyers], spend[buyers], prices))
    n, k = len(spend), found.price.shape[1]
    whole = Increments(torch.full((n, k), -torch.inf), torch.zeros(n, k), torch.zeros(n, k, dtype=torch.long))
    for every, theirs in zip(whole, found):
        every[buyers] = theirs
    return whole


def no_steps(n: int) -> Increments:
    """Return increments of n customers, none of whom is ever bought anything."""
    return Increments(torch.full((n, 1), -torch.inf), torch.zeros(n, 1), torch.zeros(n, 1, dtype=torch.long))


def corrected(spend: Tensor, factor: Tensor, catalogue: Catalogue) -> Tensor:
    """Multiply what pairs give on redemption, [N, P], by a factor [P], up to their face value."""
    if bool((factor == 1).all()):
        return spend
    offer, channel = catalogue.action_codec.decode(torch.arange(spend.shape[1]))
    message = (catalogue.cost[channel] * (offer > 0)).to(spend)
    face = catalogue.value[offer].to(spend)
    return torch.minimum((spend - message).clamp_min(0) * factor.to(spend), face) + message


def best_refused(
    package: PolicyPackage, customers: Customers, scored: Scored, price: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that each customer would be sent at a price if no rule stood against it, and the rule that does.

    Both are int64 [N]: a flat action, 0 where the rules allow the pair, and an index into RuleNames.
    """
    action = torch.zeros(len(customers), dtype=torch.long)
    if price == np.inf:  # without money the policy would send nothing
        return action.numpy(), np.zeros(len(customers), dtype=np.int64)
    valid = package.catalogue.valid.flatten()
    at = torch.tensor([price], dtype=torch.float32).clamp(float(package.prices[-1]), float(package.prices[0]))
    for rows, inputs in scored.inputs:
        if len(rows):
            every = valid.expand_as(inputs.action_mask).contiguous()
            free = DecisionInputs(**{**inputs._asdict(), "action_mask": every})
            best = package.score(free, at).logits[0].argmax(1)
            action[rows] = torch.where(inputs.action_mask.gather(1, best[:, None])[:, 0], 0, best)
    policy = customers.contact_policy
    rule = RuleNames(policy).refusing(policy, customers.options, customers.subscribed, action)
    return action.numpy(), rule
