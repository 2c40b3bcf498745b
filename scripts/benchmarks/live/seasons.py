"""Whole seasons of weekly plans in the made-up shop's world: what each rule of money spends, risks and costs.

Usage:

    python scripts/bench.py live/seasons benchmark.package=package
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.live.package import Package
from envs.live.plan.arm_plans import PlanSetting
from envs.live.plan.arms import RL, Arms
from envs.live.plan.channel_capacity import Capacity
from envs.live.plan.deciding import Customers, Table, allowed_now
from envs.live.plan.forecast import Tally
from envs.live.plan.inputs.exported import ExportedPolicy, read_table_of
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.weekly_plan import decide_week
from envs.offers.example_shop.customers import customer_rows
from envs.offers.example_shop.life import Shop
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import SUBSCRIBED, UNIFORMS, UNSUBSCRIBED
from envs.offers.world.transition import transition
from rlcore.offline.file_columns import arrow
from rlcore.runs.checkpoint import atomic

MOST = 150.0  # of a basket: one far beyond those of training is refused
FIRST = 3  # week from which the forecast is judged, when some of the log was seen


class Weeks(NamedTuple):
    """What the T weeks of a season brought, [T] each."""

    spend: np.ndarray  #: realised
    expected: np.ndarray  #: spend of what was sent, expected by the true parameters and states
    forecast: np.ndarray  #: the plans' own, of what was sent
    profit: np.ndarray  #: margin less spend

    def as_lists(self) -> dict[str, list[float]]:
        """Return the numbers by name, for a file."""
        return {name: x.tolist() for name, x in self._asdict().items()}


@dataclass(frozen=True)
class Season:
    """A season of N made-up customers, which can be lived again under another rule with the same luck."""

    shop: Shop  #: before its first week
    table: Table

    @classmethod
    def of(cls, policy: ExportedPolicy, n: int, seed: int) -> Season:
        """Make up the customers, and read them as a plan does."""
        rows = customer_rows(0, n, seed, younger=False)
        given = [row | {"Basket": f"{min(float(row['Basket']), MOST):.2f}"} for row in rows]
        table, _ = read_table_of(policy, arrow().Table.from_pylist(given), "customers", None, None)
        return cls(Shop(rows, torch.zeros(n, dtype=torch.long), seed), table)

    def live(
        self, policy: ExportedPolicy, setting: PlanSetting | None, tally: Tally, forecast: dict[str, Any]
    ) -> Weeks:
        """Decide and live week after week; without a setting nothing is sent. The tally goes on as weeks pass."""
        shop, n = deepcopy(self.shop), len(self.table.ids)
        log, found = empty_log(self.table.ids, policy.weeks), []
        for week in range(policy.weeks):
            past = PastWeeks(log, Calendar(False, 0, 6, None, True, 1.0, 0.0), np.arange(n), week)
            customers = allowed_now(policy.catalogue, policy.contact_rules, self.table, past)
            found.append(live_week(shop, policy, customers, setting, tally, forecast))
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
    correction: dict[str, Any],
) -> tuple[float, float, float, float]:
    """Plan a week, let the shop's customers live it, write it to their log; return the fields of Weeks."""
    log, week, n = customers.past.log, customers.past.week, len(customers)
    action, forecast = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.float32)
    if setting is not None:
        factor = tally.factor(**correction)
        decided = decide_week(policy, customers, torch.from_numpy(factor), setting)
        action, forecast = decided.decisions.action.numpy(), decided.spend.numpy()
    offer, channel = policy.catalogue.action_codec.decode(torch.from_numpy(action))
    before = shop.state
    u = shop.uniforms(UNIFORMS, n)
    after, bought, redeemed, outcome = transition(shop.customers, shop.world, week, before, offer, channel, u)
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
        of_policy = decided.week.arm == RL
        tally.add(action[of_policy], forecast[of_policy], factor, redeemed.numpy()[of_policy])
    spend, expected = (
        float(policy.catalogue.spend(offer, channel, x).sum()) for x in (redeemed.double(), outcome.redeem)
    )
    return spend, expected, float(forecast.astype(np.float64).sum()), float(margin.sum()) - spend


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
    forecast: dict[str, Any],
    rules: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Live through seasons under each rule with the same customers and luck; print and return what each rule costs.

    Each season has new customers. A rule's forecasts are corrected by all its seasons so far, as those of plans in one
    folder are. Raises ValueError without a package.
    """
    if package is None:
        raise ValueError("benchmark.package: expected the folder of a policy of the made-up shop, as docs/live.md has")
    policy = ExportedPolicy(Package.load(package))
    own, shop_rule, limits = (
        policy.contact_rules["holdout"],
        ShopRule(None, ",", policy.catalogue),
        Capacity.read({}, policy.catalogue),
    )
    arms, total = Arms(own["salt"], own["share"], 0.01, 0.0), money * customers
    given = {"policy": policy.version, "customers": customers, "money": money, "sigma": sigma,
             "forecast": forecast, "rules": rules, "seed": seed}  # fmt: skip
    done = Done(directory / "seasons.jsonl", given)
    tallies = {name: done.tally(name, policy.catalogue) for name in ("nothing", *rules)}
    for k in range(len(done.seasons), seasons):
        season = Season.of(policy, customers, seed + k)
        lived = {"nothing": season.live(policy, None, tallies["nothing"], forecast)}
        for name, rule in rules.items():
            setting = PlanSetting(total, MoneyRule(**rule), sigma, seed + k, arms, shop_rule, limits, customers)
            lived[name] = season.live(policy, setting, tallies[name], forecast)
        done.add(lived, tallies)
    lived_weeks = {name: [x[name] for x in done.seasons[:seasons]] for name in tallies}
    rows = table_of(lived_weeks, total)
    for row in rows:
        print("  ".join(f"{name} {x:.4f}" if isinstance(x, float) else f"{name} {x}" for name, x in row.items()))
    return {"rows": rows, "seasons": {name: [x.as_lists() for x in weeks] for name, weeks in lived_weeks.items()}}


class Done:
    """The seasons that were lived so far, a line each of a file, so that an interrupted benchmark goes on.

    The first line holds what the benchmark was given. Raises ValueError where that is another.
    """

    def __init__(self, path: Path, given: dict[str, Any]):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else [json.dumps(given)]
        if json.loads(lines[0]) != given:
            raise ValueError(f"{path}: holds seasons of another setting: expected a hydra.run.dir of its own")
        self.lines = lines
        self.seasons = [
            {
                name: Weeks(**{key: np.array(x) for key, x in weeks.items()})
                for name, weeks in json.loads(line)["lived"].items()
            }
            for line in lines[1:]
        ]

    def tally(self, rule: str, catalogue: Catalogue) -> Tally:
        """Return what a rule's plans sent and what was redeemed of it, in all seasons so far."""
        if not self.seasons:
            return Tally.none(catalogue)
        redeemed, forecast = json.loads(self.lines[-1])["tally"][rule]
        return Tally(np.array(redeemed), np.array(forecast), catalogue)

    def add(self, lived: dict[str, Weeks], tallies: dict[str, Tally]) -> None:
        """Add a season; the file is whole at any instant."""
        line = {
            "lived": {name: weeks.as_lists() for name, weeks in lived.items()},
            "tally": {name: [x.redeemed.tolist(), x.forecast.tolist()] for name, x in tallies.items()},
        }
        self.seasons.append(lived)
        self.lines.append(json.dumps(line))
        atomic(self.path, lambda temporary: temporary.write_text("\n".join(self.lines) + "\n"))


def table_of(lived: dict[str, list[Weeks]], money: float) -> list[dict[str, Any]]:
    """Sum the seasons up by rule; the first rule's gain over sending nothing is what the others' loss is a share of."""
    idle = sum(x.profit.sum() for x in lived["nothing"])
    names = [name for name in lived if name != "nothing"]
    gain = {name: sum(x.profit.sum() for x in lived[name]) - idle for name in names}
    rows = []
    for name in names:
        spend = np.stack([x.spend for x in lived[name]])
        late = {key: np.array([getattr(x, key)[FIRST:].sum() for x in lived[name]]) for key in Weeks._fields}
        realised, true = (ratio(late[key], late["forecast"]) for key in ("spend", "expected"))
        rows.append(
            {
                "rule": name,
                "seasons": len(spend),
                "weeks beyond": float((spend > money * (1 + 1e-9)).mean()),
                "worst week": float(spend.max() / money),
                "spend / money": float(spend.mean() / money),
                "profit lost": float(1 - gain[name] / gain[names[0]]),
                "realised / forecast": realised[0],
                "± of it": realised[1],
                "expected by true θ / forecast": true[0],
                "± of that": true[1],
            }
        )
    return rows


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """Return Σ numerator / Σ denominator over S seasons, and half its 95 % interval, 0 for one season."""
    value = numerator.sum() / max(denominator.sum(), 1e-9)
    residual, seasons = numerator - value * denominator, len(numerator)
    if seasons == 1:
        return float(value), 0.0
    error = np.sqrt(seasons / (seasons - 1) * np.square(residual).sum()) / max(denominator.sum(), 1e-9)
    return float(value), float(1.96 * error)
