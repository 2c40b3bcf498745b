"""From files to the plan of a week, and from the plan to files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.live.columns import as_table, check_date
from envs.live.plan.arm_plans import PlanSetting
from envs.live.plan.arms import Arms, moved_arms
from envs.live.plan.channel_capacity import Capacity
from envs.live.plan.deciding import Customers, PolicyPackage, Table, allowed_now
from envs.live.plan.forecast import Forecast, corrections
from envs.live.plan.inputs.exported import ExportedPolicy, dates_of, read_table_of
from envs.live.plan.inputs.past_weeks import PastWeeks
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.output.plan_file import plan_table, read_facts, write_plan, write_sends
from envs.live.plan.twin_gains import TwinGains
from envs.live.plan.weekly_plan import WeekPlan, plan_week
from envs.offers.logs import send_log
from rlcore.runs.checkpoint import locked_folder


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a shop asks for: the keys of conf/plan.yaml."""

    customers: Any  #: path of a CSV or Parquet file, a pyarrow.Table, or what makes one
    separator: str
    id: str | None
    today: str | None
    joined: str | None
    left: str | None
    log: str | None
    week: int | None
    money: float | None
    capacity: dict[str, int]
    rule: str
    z: float
    sigma: float
    salt: int
    arms: dict[str, Any]
    shop_rule: dict[str, Any]
    forecast: dict[str, Any]
    twin: str | None
    segment: str | None
    valid_days: int
    out: str | None
    replace: bool
    block: int

    def __post_init__(self):
        if self.money is None:
            raise ValueError("money: expected the week's money, as in money=5000")
        if self.log is None and self.week is None:
            raise ValueError("week: expected the number of the week, or a log=… that the week follows")
        if self.today is not None:
            check_date(self.today)

    @property
    def folder(self) -> Path:
        """Where plans lie."""
        return self.path(self.week or 0).parent

    def path(self, week: int) -> Path:
        """Where the plan is written."""
        path = Path(self.out or f"plan/week={week}.parquet")
        if path.suffix != ".parquet":
            raise ValueError(f"out: expected a name that ends in .parquet, got {path}")
        return path


SETTINGS = ("policy", "money", "capacity", "rule", "z", "sigma", "salt", "shares", "shop_rule")  # of a plan's facts
DIGEST = 16  # characters of a checksum of decisions
REQUEST_KEYS = tuple(f.name for f in fields(PlanRequest))


@dataclass(frozen=True)
class Planned:
    """A week's plan with all that it was made of."""

    package: PolicyPackage
    customers: Customers
    setting: PlanSetting
    forecast: Forecast
    plan: WeekPlan
    path: Path
    segment_name: str | None  #: column by which the page sums up
    segment: np.ndarray | None  #: of each customer, texts [N]
    valid_until: str  #: last day of the week's offers
    valid_weeks: int  #: begun weeks in which the offers can be redeemed
    replace: bool  #: whether the plan may take the place of one that decided otherwise

    @property
    def facts(self) -> dict[str, Any]:
        """What the plan's file says of itself."""
        setting, plan = self.setting, self.plan
        return {
            "week": self.customers.past.week,
            "policy": self.package.version,
            "money": setting.money,
            "capacity": {name: use.capacity for name, use in plan.channels.items()},
            "fees": {name: use.fee for name, use in plan.channels.items()},
            "rule": setting.rule.name,
            "z": setting.rule.z,
            "sigma": setting.sigma,
            "salt": setting.salt,
            "shares": list(astuple(setting.arms)),
            "shop_rule": setting.shop_rule.name,
            "price": plan.cleared.price if np.isfinite(plan.cleared.price) else None,
            "arms": {name: arm._asdict() for name, arm in plan.arms.items()},
            "factors": self.forecast.factor.tolist(),
            "valid_weeks": self.valid_weeks,
            "decided": self.digest(),
        }

    def digest(self) -> str:
        """Return a checksum of who is sent what, whatever the order of the customers."""
        order = self.plan.columns["decision"].argsort()
        digest = hashlib.sha256(self.plan.columns["decision"][order].tobytes())
        digest.update(self.plan.action[order].tobytes())
        return digest.hexdigest()[:DIGEST]

    def replaces(self) -> str:
        """Say in what the plan differs from the one on disk; empty where there is none, or none that differs.

        Raises ValueError where they differ and `replace` is false: some of the older plan's offers may have been sent,
        and both together pass the week's money.
        """
        if not self.path.is_file():
            return ""
        before, now = read_facts(self.path), self.facts
        if before["week"] != now["week"] and not self.replace:
            raise ValueError(
                f"{self.path}: has the plan of week {before['week']}: out= needs another name for week {now['week']} "
                "(replace=true: the older plan may go)"
            )
        settings = [name for name in SETTINGS if before.get(name) != now[name]]
        changes = [f"{name} {before.get(name)} -> {now[name]}" for name in settings]
        if not changes and before.get("decided") != now["decided"]:
            changes = ["other decisions, by other customers or another log"]
        if changes and not self.replace:
            raise ValueError(
                f"{self.path}: this week is planned already, with {'; '.join(changes)}: both plans sent would pass the "
                "week's money; replace=true replaces the older one"
            )
        return "; ".join(changes)

    def table(self):
        """Return the plan's rows as a pyarrow.Table."""
        return plan_table(self.plan.columns, self.facts, slice(None))

    def write(self) -> list[Path]:
        """Write the plan, the page and, last, the sender's file; return their paths. Raises what `replaces` does.

        An older sender's file is removed first. Where one lies, plan, page and sender's file are of one plan.
        """
        from envs.live.plan.output.page import write_page  # jinja2, an extra

        self.replaces()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sends, page = self.path.with_suffix(".csv"), self.path.with_suffix(".html")
        sends.unlink(missing_ok=True)
        write_plan(self.path, self.plan.columns, self.facts)
        write_page(page, self)
        write_sends(sends, self.plan.columns, self.plan.sent, self.valid_until)
        return [self.path, sends, page]


def read_customers(policy: ExportedPolicy, request: PlanRequest) -> tuple[Table, list[str], Any]:
    """Read the customers' file; return the customers, notes on their columns, and the file as a pyarrow.Table.

    Raises ValueError, with row and column, where the file does not fit.
    """
    if request.customers is None:
        raise ValueError("customers: expected the path of a CSV or Parquet file, as in customers=customers.csv")
    table, source = as_table(request.customers, "customers", request.separator)
    if not table.num_rows:
        raise ValueError(f"{source}: expected customers, got no row")
    if request.segment and request.segment not in table.column_names:
        raise ValueError(
            f"{source}: no column '{request.segment}' (segment); there are {', '.join(table.column_names)}"
        )
    customers, notes = read_table_of(policy, table, source, request.id, request.today)
    return customers, notes, table


def past_weeks(package: PolicyPackage, request: PlanRequest, ids: list[str]) -> PastWeeks:
    """Read the log, or say that nobody has a history."""
    if request.log is None:
        assert request.week is not None
        return PastWeeks.none(len(ids), request.week)
    return PastWeeks.read(request.log, ids, request.week, package.catalogue)


def setting_of(package: PolicyPackage, request: PlanRequest) -> PlanSetting:
    """Return the setting that a request asks for."""
    own = package.contact_rules["holdout"]
    arms = request.arms
    salt = own["salt"] if arms["salt"] is None else arms["salt"]
    # The package's holdout is drawn by the same lots where the salts agree.
    holdout = max(arms["holdout"], own["share"]) if salt == own["salt"] else arms["holdout"]
    return PlanSetting(
        money=float(request.money or 0.0),
        rule=MoneyRule(request.rule, request.z),
        sigma=request.sigma,
        salt=request.salt,
        arms=Arms(salt, holdout, arms["random"], arms["bau"]),
        shop_rule=ShopRule(request.shop_rule["decisions"], request.shop_rule["separator"], package.catalogue),
        capacity=Capacity.read(request.capacity, package.catalogue),
        block=request.block,
    )


def make_plan(policy: ExportedPolicy, request: PlanRequest) -> Planned:
    """Plan the week that a request asks for; raise ValueError, in one line, where a file does not fit."""
    table, notes, file = read_customers(policy, request)
    past = past_weeks(policy, request, table.ids)
    path = request.path(past.week)
    first_day = first_day_of(past, request)
    table = with_absent(table, file, request, first_day)
    customers = allowed_now(policy.catalogue, policy.contact_rules, table, past)
    segment = None if request.segment is None else texts_of(file, request.segment)
    del table, file  # a million customers' texts, which nothing reads from here on
    forecast = corrections(path.parent, past, policy.catalogue, policy.version, **request.forecast)
    setting = setting_of(policy, request)
    twin = None if request.twin is None else TwinGains(request.twin, policy.package)
    plan = plan_week(policy, customers, torch.from_numpy(forecast.factor), setting, twin)
    unknown = setting.shop_rule.unknown(customers.ids)
    if unknown:
        plan.warnings.append(f"{unknown:,} of the shop's own decisions are of customers whom the table lacks")
    moved = moved_arms(path.parent, past.week, setting.arms, customers.ids, plan.arm)
    plan.warnings += [*notes, *forecast.warnings, *moved]
    valid_weeks = -(-request.valid_days // send_log.DAYS)
    return Planned(
        package=policy,
        customers=customers,
        setting=setting,
        forecast=forecast,
        plan=plan,
        path=path,
        segment_name=request.segment,
        segment=segment,
        valid_until=str(first_day + np.timedelta64(request.valid_days - 1, "D")),
        valid_weeks=valid_weeks,
        replace=request.replace,
    )


def first_day_of(past: PastWeeks, request: PlanRequest) -> np.datetime64:
    """Return the planned week's first day; raise ValueError where neither the log nor `today` tells it."""
    day = past.first_day()
    if day is None and request.today is None:
        raise ValueError(
            "today: expected the planned week's first day, from which its offers are valid, as in today=2025-11-24: no "
            "log with dates tells it"
        )
    return np.datetime64(request.today, "D") if day is None else day


def with_absent(table: Table, file: Any, request: PlanRequest, day: np.datetime64) -> Table:
    """Return the customers with those marked who left before the planned week, or join after it, by dates of the file.

    `day` is the week's first. Raises ValueError where the file has no such dates.
    """
    names = {"joined": request.joined, "left": request.left}
    dates = {key: dates_of(file, name, key) for key, name in names.items() if name is not None}
    if "joined" in dates:
        table = table._replace(is_to_join=dates["joined"] >= day + send_log.DAYS)
    if "left" in dates:
        table = table._replace(has_left=dates["left"] < day)
    return table


def texts_of(table: Any, name: str) -> np.ndarray:
    """Return a column of a pyarrow.Table as texts [N]."""
    return np.array([str(x) if x is not None else "" for x in table.column(name).to_pylist()], dtype=object)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder of plans, made where it is missing; raise ValueError where another plan is being made there."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder, "another plan is being made in this folder; try again after it"):
        yield
