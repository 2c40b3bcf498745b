"""A small shop's exported policy without its network: values by a formula, so that every decision can be recomputed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from envs.live.columns import TableColumns
from envs.live.decide import DecisionInputs, Scores
from envs.live.plan.arm_plans import PlanSetting
from envs.live.plan.arms import Arms
from envs.live.plan.channel_capacity import Capacity
from envs.live.plan.deciding import Customers, Table, allowed_now
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.python_api import default_keys
from envs.live.plan.run import PlanRequest
from envs.live.plan.weekly_plan import WeekPlan, plan_week
from envs.offers.world.catalogue import Catalogue
from envs.tables.column_kinds import to_column

CATALOGUE = Catalogue.build(
    offers={"coffee": {"value": 1.5}, "five_off": {"value": 5.0}, "wine": {"value": 4.0}},
    channels={
        name: {"cost": cost, "attention": 0.2, "opt_out": 0.004, "fatigue_steps": 1}
        for name, cost in (("app", 0.0), ("newsletter", 0.01), ("letter", 0.9))
    },
)
RULES = {
    "eligible": {"five_off": "Tier in ['gold', 'silver']"},
    "age": {"column": "Age", "limits": {"wine": [18, None]}},
    "consent": {"app": "App == 'yes'"},
    "caps": [{"weeks": 4, "contacts": 2}],
    "holdout": {"share": 0.05, "salt": 7},
}
NO_RULES = {
    "eligible": {},
    "age": {"column": None, "limits": {}},
    "consent": {},
    "caps": [],
    "holdout": {"share": 0.0, "salt": 0},
}


class StandInPackage:
    """A policy that weighs the value of a pair against a price of its spend; both follow from two numbers."""

    catalogue = CATALOGUE
    prices = torch.from_numpy(np.geomspace(20.0, 0.05, 48)).float()
    weeks = 12
    version = "stand-in"
    observes_price = True

    def __init__(self, contact_rules=RULES):
        self.contact_rules = contact_rules

    def features(self, numbers, levels):
        return numbers.float()

    def start_memory(self, customers):
        return torch.zeros(customers, 1)

    def remember(self, memory, features, week, seen):
        return memory + (seen.offer > 0).float()[:, None]

    def next_season(self, memory):
        return memory * 0

    def score(self, inputs: DecisionInputs, prices=None):
        prices = self.prices if prices is None else prices
        rate, keen = inputs.numbers.float().T
        offer, channel = CATALOGUE.action_codec.decode(torch.arange(12))
        chance = (0.1 + 0.5 * rate)[:, None] * torch.linspace(0.6, 1.0, 12)
        spend = CATALOGUE.spend(offer, channel, chance).float()
        value = keen[:, None] * (1 + offer).float().log() * (1 + 0.1 * channel) - 0.05 * inputs.memory
        value = torch.where(offer > 0, value, 0.0)
        logits = value - prices[:, None, None] * spend
        return Scores(logits.masked_fill(~inputs.action_mask, -torch.inf), spend)


def table(n: int, seed: int = 0, ids=None) -> Table:
    """Customers with columns that rules read, and numbers that the stand-in reads."""
    rng = np.random.default_rng(seed)
    columns = {
        "Age": np.where(rng.random(n) < 0.05, np.nan, rng.integers(16, 80, n)),
        "Tier": rng.choice(np.array(["gold", "silver", "basic"], dtype=object), n),
        "App": rng.choice(np.array(["yes", "no"], dtype=object), n),
    }
    numbers = torch.from_numpy(np.stack([rng.beta(2, 5, n), rng.lognormal(0.0, 0.8, n)], 1))
    return Table(ids or [f"K{100000 + k}" for k in range(n)], columns, numbers, torch.zeros(n, 0, dtype=torch.long))


def shuffled(given: Table, order: np.ndarray) -> Table:
    """The same customers in another order."""
    columns = {name: x[order] for name, x in given.columns.items()}
    return Table([given.ids[k] for k in order], columns, given.numbers[order], given.levels[order])


def customers_of(given: Table, package: StandInPackage, past: PastWeeks | None = None) -> Customers:
    """Apply the package's rules to a table."""
    return allowed_now(package.catalogue, package.contact_rules, given, past or PastWeeks.none(len(given.ids), 3))


ARMS = Arms(7, 0.05, 0.01, 0.1)


def setting(
    money: float, *, rule="expected", sigma=0.2, salt=0, arms=ARMS, z=1.645, decisions=None, capacity=None
) -> PlanSetting:
    """A plan's setting."""
    shop_rule, limits = ShopRule(decisions, ",", CATALOGUE), Capacity.read(capacity or {}, CATALOGUE)
    return PlanSetting(money, MoneyRule(rule, z), sigma, salt, arms, shop_rule, limits, 4096)


def plan_of(customers: Customers, package: StandInPackage, chosen: PlanSetting, factor=None) -> WeekPlan:
    """Plan a week."""
    return plan_week(package, customers, torch.ones(12, dtype=torch.float64) if factor is None else factor, chosen)


class StandInExported(StandInPackage):
    """The stand-in as a package that reads tables."""

    id_column = "id"
    text_columns = frozenset({"Tier", "App"})

    @property
    def package(self):
        """What reads tables."""
        return self

    def read(self, table, *, source, today):
        """Read the two columns of numbers."""
        columns = [to_column(table.column(x), source, x, False, True, "").astype(float) for x in ("Rate", "Keen")]
        numbers = torch.from_numpy(np.stack(columns, 1))
        return TableColumns(numbers, torch.zeros(len(numbers), 0, dtype=torch.long), {}, {}, {})


def request(**changes) -> PlanRequest:
    """What a shop asks for, in short."""
    return PlanRequest(**{**default_keys(), "week": 3, "today": "2026-12-07", "money": 40.0, "block": 128, **changes})


def arrow_table(n: int, seed: int = 0) -> pa.Table:
    """A table of n customers as a file has it."""
    given = table(n, seed)
    numbers = {"Rate": given.numbers[:, 0].numpy(), "Keen": given.numbers[:, 1].numpy()}
    age = pa.array(given.columns["Age"], from_pandas=True)
    return pa.table({"id": given.ids, **numbers, "Age": age, **{x: given.columns[x] for x in ("Tier", "App")}})
