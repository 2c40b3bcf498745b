"""Whole seasons of weekly plans in the made-up shop's world: what each rule of money spends, risks and costs.

Usage:

    python scripts/bench.py live/seasons benchmark.package=package
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.live.package import Package
from envs.live.plan.arm_plans import PlanSetting
from envs.live.plan.arms import Arms
from envs.live.plan.deciding import Customers, Table, allowed_now
from envs.live.plan.forecast import Tally
from envs.live.plan.inputs.exported import ExportedPolicy, read_table_of
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.weekly_plan import plan_week
from envs.offers.example_shop.customers import customer_rows
from envs.offers.example_shop.life import Shop
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.world.customers import SUBSCRIBED, UNIFORMS, UNSUBSCRIBED
from envs.offers.world.transition import transition
from rlcore.offline.file_columns import arrow

MOST = 150.0  # of a basket: one far beyond those of training is refused
FIRST = 3  # week from which the forecast is judged, when some of the log was seen


class Weeks(NamedTuple):
    """What the T weeks of a season brought, [T] each."""

    spend: np.ndarray  #: realised
    forecast: np.ndarray  #: expected spend of what was sent
    profit: np.ndarray  #: margin less spend

    def as_lists(self) -> dict[str, list[float]]:
        """Return the numbers by name, for a file."""
        return {name: x.tolist() for name, x in self._asdict().items()}


@dataclass(frozen=True)
class Season:
    """A season of N made-up customers, which can be lived again under another rule with the same luck."""

    rows: list[dict[str, str]]
    seed: int
    table: Table

    @classmethod
    def of(cls, policy: ExportedPolicy, n: int, seed: int) -> Season:
        """Make up the customers, and read them as a plan does."""
        rows = customer_rows(0, n, seed, younger=False)
        given = [row | {"Basket": f"{min(float(row['Basket']), MOST):.2f}"} for row in rows]
        table, _ = read_table_of(policy, arrow().Table.from_pylist(given), "customers", None, None)
        return cls(rows, seed, table)

    def live(self, policy: ExportedPolicy, setting: PlanSetting | None, redemptions: float | None) -> Weeks:
        """Plan and live week after week; without a setting nothing is sent. The factor is learned as weeks pass."""
        shop = Shop(self.rows, torch.zeros(len(self.rows), dtype=torch.long), self.seed)
        log, tally, found = empty_log(self.table.ids, policy.weeks), Tally.none(policy.catalogue), []
        for week in range(policy.weeks):
            past = PastWeeks(log, Calendar(False, 0, 6, None, 1.0), np.arange(len(self.rows)), week)
            customers = allowed_now(policy.catalogue, policy.contact_rules, self.table, past)
            found.append(live_week(shop, policy, customers, setting, tally, redemptions))
        return Weeks(*(np.array(x) for x in zip(*found)))


def empty_log(ids: list[str], weeks: int) -> CustomerWeeks:
    """Return a log in which all customers are there in all weeks, and nothing has happened."""
    log = CustomerWeeks.empty(tuple(ids), weeks)
    log.last[:] = weeks - 1
    return log


def live_week(
    shop: Shop,
    policy: ExportedPolicy,
    customers: Customers,
    setting: PlanSetting | None,
    tally: Tally,
    redemptions: float | None,
) -> tuple[float, float, float]:
    """Plan a week, let the shop's customers live it, write it to their log; return spend, forecast and profit."""
    log, week, n = customers.past.log, customers.past.week, len(customers)
    action, forecast = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.float32)
    if setting is not None:
        factor = tally.factor(redemptions)
        plan = plan_week(policy, customers, torch.from_numpy(factor), setting)
        action, forecast = plan.action, plan.spend
    offer, channel = policy.catalogue.action_codec.decode(torch.from_numpy(action))
    before = shop.state
    u = shop.uniforms(UNIFORMS, n)
    after, bought, redeemed, _ = transition(shop.customers, shop.world, week, before, offer, channel, u)
    shop.state, margin = after, shop.margins() * bought
    assert log is not None
    seen = {
        "offer": offer,
        "channel": channel,
        "bought": bought,
        "redeemed": redeemed,
        "margin": margin,
        "unsubscribed": (before.status == SUBSCRIBED) & (after.status == UNSUBSCRIBED),
    }
    for name, x in seen.items():
        log.cells((name,))[name][week] = x.numpy()
    if setting is not None:
        tally.add(action, forecast, factor, redeemed.numpy())
    spend = float(policy.catalogue.spend(offer, channel, redeemed.double()).sum())
    return spend, float(forecast.astype(np.float64).sum()), float(margin.sum()) - spend


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    package: str | None,
    customers: int,
    seasons: int,
    money: float,
    sigma: float,
    redemptions: float | None,
    rules: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Live through seasons under each rule with the same customers and luck; print and return what each rule costs.

    Raises ValueError without a package.
    """
    if package is None:
        raise ValueError("benchmark.package: expected the folder of a policy of the made-up shop, as docs/live.md has")
    policy = ExportedPolicy(Package.load(package))
    lived: dict[str, list[Weeks]] = {name: [] for name in ("nothing", *rules)}
    own = policy.contact_rules["holdout"]
    arms = Arms(own["salt"], own["share"], 0.01, 0.0)
    for k in range(seasons):
        season = Season.of(policy, customers, seed + k)
        lived["nothing"].append(season.live(policy, None, None))
        for name, rule in rules.items():
            shop_rule = ShopRule(None, ",", policy.catalogue)
            setting = PlanSetting(money * customers, MoneyRule(**rule), sigma, seed + k, arms, shop_rule, customers)
            lived[name].append(season.live(policy, setting, redemptions))
    rows = table_of(lived, money * customers)
    for row in rows:
        print("  ".join(f"{name} {x:.4f}" if isinstance(x, float) else f"{name} {x}" for name, x in row.items()))
    return {"rows": rows, "seasons": {name: [x.as_lists() for x in weeks] for name, weeks in lived.items()}}


def table_of(lived: dict[str, list[Weeks]], money: float) -> list[dict[str, Any]]:
    """Sum the seasons up by rule; the first rule's gain over sending nothing is what the others' loss is a share of."""
    idle = sum(x.profit.sum() for x in lived["nothing"])
    names = [name for name in lived if name != "nothing"]
    gain = {name: sum(x.profit.sum() for x in lived[name]) - idle for name in names}
    rows = []
    for name in names:
        spend = np.stack([x.spend for x in lived[name]])
        late = [x.spend[FIRST:].sum() / max(x.forecast[FIRST:].sum(), 1e-9) for x in lived[name]]
        total = sum(x.spend[FIRST:].sum() for x in lived[name]) / sum(x.forecast[FIRST:].sum() for x in lived[name])
        rows.append(
            {
                "rule": name,
                "seasons": len(spend),
                "weeks beyond": float((spend > money * (1 + 1e-9)).mean()),
                "worst week": float(spend.max() / money),
                "spend / money": float(spend.mean() / money),
                "profit lost": float(1 - gain[name] / gain[names[0]]),
                "realised / forecast": float(total),
                "± of the seasons' mean": float(np.std(late, ddof=1) / np.sqrt(len(late)) * 1.96)
                if len(late) > 1
                else 0.0,
            }
        )
    return rows
