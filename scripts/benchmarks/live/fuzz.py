"""Planned decisions of fuzzed shops, each held against the contact rules apart from the mask that plans go by.

Usage:

    python scripts/bench.py live/fuzz
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.decide import DecisionInputs, Scores
from envs.live.plan.arm_plans import PlanSetting
from envs.live.plan.arms import HOLDOUT, Arms
from envs.live.plan.channel_capacity import Capacity
from envs.live.plan.deciding import Table, allowed_now
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.weekly_plan import plan_week
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.populations.base import hash_uniform
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import SeenWeek

CATALOGUE = Catalogue.build(
    offers={"coffee": {"value": 1.5}, "five_off": {"value": 5.0}, "wine": {"value": 4.0}},
    channels={
        name: {"cost": cost, "attention": 0.2, "opt_out": 0.004, "fatigue_steps": 1}
        for name, cost in (("app", 0.0), ("newsletter", 0.01), ("letter", 0.9))
    },
)
FIVE_OFF, WINE = 2, 3
PAST = 6  # weeks of the log


class FormulaPolicy:
    """A PolicyPackage whose scores are a formula, so that a plan's time goes into the plan."""

    catalogue = CATALOGUE
    prices = torch.from_numpy(np.geomspace(20.0, 0.05, 16)).float()
    weeks = 12
    version = "formula"
    observes_price = False

    def __init__(self, contact_rules: dict[str, Any]):
        self.contact_rules = contact_rules

    def features(self, numbers: Tensor, levels: Tensor) -> Tensor:
        """Return the numbers."""
        return numbers.float()

    def start_memory(self, customers: int) -> Tensor:
        """Return no memory."""
        return torch.zeros(customers, 0)

    def remember(self, memory: Tensor, features: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Remember nothing."""
        return memory

    def next_season(self, memory: Tensor) -> Tensor:
        """Remember nothing."""
        return memory

    def score(self, inputs: DecisionInputs, prices: Tensor | None = None) -> Scores:
        """Value dearer offers more, by two numbers of each customer."""
        prices = self.prices if prices is None else prices
        rate, keen = inputs.numbers.float().T
        offer, channel = CATALOGUE.action_codec.decode(torch.arange(inputs.action_mask.shape[1]))
        chance = (0.1 + 0.5 * rate)[:, None] * torch.linspace(0.6, 1.0, len(offer))
        spend = CATALOGUE.spend(offer, channel, chance).float()
        value = torch.where(offer > 0, keen[:, None] * (1 + offer).float().log() * (1 + 0.1 * channel), 0.0)
        logits = value - prices[:, None, None] * spend
        return Scores(logits.masked_fill(~inputs.action_mask, -torch.inf), spend)


class FuzzedShop(NamedTuple):
    """Customers, rules and log of a shop that was drawn at random."""

    rules: dict[str, Any]
    table: Table
    past: PastWeeks

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int) -> FuzzedShop:
        """Draw a shop of n customers."""
        channels = CATALOGUE.channels
        rules: dict[str, Any] = {
            "eligible": {"five_off": "Tier in ['gold', 'silver']"} if rng.random() < 0.7 else {},
            "age": {"column": None, "limits": {}},
            "consent": {name: "App == 'yes'" for name in channels if rng.random() < 0.4},
            "caps": [],
            "holdout": {"share": float(rng.choice([0.0, 0.05])), "salt": int(rng.integers(9))},
        }
        if rng.random() < 0.7:
            rules["age"] = {"column": "Age", "limits": {"wine": [int(rng.integers(16, 40)), None]}}
        if rng.random() < 0.7:
            rules["caps"] = [{"weeks": int(rng.integers(1, PAST)), "contacts": int(rng.integers(1, 4))}]
        columns = {
            "Age": np.where(rng.random(n) < 0.05, np.nan, rng.integers(16, 80, n)),
            "Tier": rng.choice(np.array(["gold", "silver", "basic"], dtype=object), n),
            "App": rng.choice(np.array(["yes", "no"], dtype=object), n),
        }
        numbers = torch.from_numpy(np.stack([rng.beta(2, 5, n), rng.lognormal(0.0, 0.8, n)], 1))
        ids = [f"K{k}" for k in range(n)]
        log = CustomerWeeks.empty(tuple(ids), PAST)
        log.last[:] = PAST - 1
        log.offer[:] = rng.integers(1, len(CATALOGUE.offers), (PAST, n)) * (rng.random((PAST, n)) < 0.3)
        log.unsubscribed[:] = rng.random((PAST, n)) < 0.02
        past = PastWeeks(log, Calendar(False, 0, PAST - 1, None, True, 1.0, 0.0), np.arange(n), PAST)
        return cls(rules, Table(ids, columns, numbers, torch.zeros(n, 0, dtype=torch.long)), past)

    def forbids(self, action: np.ndarray) -> np.ndarray:
        """Tell whose action [N] the rules forbid, from columns and log alone, bool [N]."""
        rules, columns, log = self.rules, self.table.columns, self.past.log
        assert log is not None
        offer, channel = (x.numpy() for x in CATALOGUE.action_codec.decode(torch.from_numpy(action)))
        wrong = log.unsubscribed.any(0)
        if rules["eligible"]:
            wrong |= (offer == FIVE_OFF) & (columns["Tier"] == "basic")
        if rules["age"]["limits"]:
            wrong |= (offer == WINE) & ~(columns["Age"] >= rules["age"]["limits"]["wine"][0])
        for name in rules["consent"]:
            wrong |= (channel == CATALOGUE.channels.index(name)) & (columns["App"] != "yes")
        for cap in rules["caps"]:
            wrong |= (log.offer[PAST - cap["weeks"] + 1 :] > 0).sum(0) + 1 > cap["contacts"]
        wrong |= hash_uniform(self.table.ids, rules["holdout"]["salt"]).numpy() < rules["holdout"]["share"]
        return wrong & (action > 0)


def draw_setting(rng: np.random.Generator, n: int, seed: int) -> PlanSetting:
    """Draw a plan's setting for n customers."""
    limits = {name: int(n * rng.choice([0.0, 0.01, 0.1])) for name in CATALOGUE.channels if rng.random() < 0.3}
    return PlanSetting(
        money=float(rng.choice([0.0, 0.02, 0.1, 0.5, 5.0])) * n,
        rule=MoneyRule(str(rng.choice(["expected", "buffered", "reserved"])), 1.645),
        sigma=float(rng.choice([0.0, 0.1, 0.3, 1.0])),
        salt=seed,
        arms=Arms(3, 0.05, 0.02, float(rng.random())),
        shop_rule=ShopRule(None, ",", CATALOGUE),
        capacity=Capacity.read(limits, CATALOGUE),
        block=n,
    )


def run(directory: Path, device: torch.device, seed: int, *, decisions: int, customers: int) -> dict[str, Any]:
    """Plan shops of so many customers until so many decisions were checked; print and return the violations."""
    started = time.process_time()
    checked = sent = violations = beyond = full = 0
    while checked < decisions:
        rng = np.random.default_rng(seed)
        shop = FuzzedShop.draw(rng, customers)
        policy = FormulaPolicy(shop.rules)
        setting = draw_setting(rng, customers, seed)
        planned = allowed_now(CATALOGUE, shop.rules, shop.table, shop.past)
        plan = plan_week(policy, planned, torch.ones(CATALOGUE.action_codec.num_actions).double(), setting)
        wrong = shop.forbids(plan.action) | ((plan.arm == HOLDOUT) & (plan.action > 0))
        if setting.rule.holds_face_value:
            beyond += sum(arm.face > arm.money * (1 + 1e-6) + 1e-6 for arm in plan.arms.values())
        full += sum(use.messages > use.capacity for use in plan.channels.values())
        violations += int(wrong.sum())
        sent += len(plan.sent)
        checked += customers
        seed += 1
    seconds = time.process_time() - started
    print(
        f"{checked:,} decisions, {sent:,} of them sends: {violations} violations of contact rules, {beyond} arms whose "
        f"face value passes their money under `reserved`, {full} channels beyond their capacity; {seconds:.0f} CPU s"
    )
    return {
        "decisions": checked,
        "sent": sent,
        "violations": violations,
        "beyond": beyond,
        "full": full,
        "seconds": seconds,
    }
