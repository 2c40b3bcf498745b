"""What each arm of the weekly plans brought: the weeks of a log of sends, by the arm that a customer was given.

Arms are drawn by the customers' ids, so those of a week are random parts of all customers who were ever planned for. A
customer who left stays in the arm, and brings 0 from then on: whom an arm drives away is part of what the arm does.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from envs.live.plan.arms import ARMS, HOLDOUT, Arms, expected_shares
from envs.live.plan.output.plan_file import plans_in, read_facts
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.schema import COLUMNS
from envs.offers.logs.send_log import Calendar
from envs.offers.world.catalogue import Catalogue
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset
from rlcore.offline.parquet_files import read_parquet
from rlcore.uplift.balance import sample_ratio


class AssignedWeeks(NamedTuple):
    """The decisions that rules made, each with its rule, and sentences on who counts."""

    decisions: LoggedDataset
    #: margin a week that each decision's customer had brought before the first week with both rules and a plan of the
    #: customer, NaN where unknown; None: of nobody
    before: torch.Tensor | None
    notes: list[str]


def assigned_weeks(
    log: CustomerWeeks, calendar: Calendar, catalogue: Catalogue, rules: list[str], folder: Path | str
) -> AssignedWeeks:
    """Return the planned weeks of a log's customers, from each customer's first plan on, as decisions of two arms.

    `folder` has the plans. Weeks after a customer left bring 0. Who had left before the first week with both `rules` in
    which a plan has the customer is left out: so far all arms did the same. Customers whose arm differs between the
    plans of weeks that have both `rules` are left out, also those who came after the change: else old and new customers
    would have other shares of the arms. Raises ValueError where there is no plan, where a rule is no arm, where no plan
    is of a week and a customer of the log, and where the log knows purchases of sends alone.
    """
    for rule in rules:
        if rule not in ARMS:
            raise ValueError(f"rules: expected two of {', '.join(ARMS)}, got '{rule}'")
    check_purchases(calendar)
    planned = planned_arms(log, Path(folder))
    arm = planned.given
    if not (arm >= 0).any():
        raise ValueError(f"{folder}: expected plans of weeks and customers that are in the log, got none")
    number = [ARMS.index(rule) for rule in rules]
    has_both = np.array([all((week == k).sum() > 1 for k in number) for week in arm])
    arm[:, had_left(log, arm, has_both)] = -1
    moved = planned.moved(has_both)
    is_in_test = np.isin(arm[has_both], number).any(0)
    has_other_lots = HOLDOUT in number and not planned.holds_out_by_lot(has_both)
    arm[:, moved] = -1
    in_arm = [(arm[has_both] == k).any(0) for k in number]
    notes = [left_of(rule, its, log) for rule, its in zip(rules, in_arm)]
    shares = planned.shares_of_the_unmoved(has_both, moved)
    # else the lots are another program's, or the package's own holdout is of other lots and of no known share
    if shares is not None and all(shares[rule] > 0 for rule in rules) and not has_other_lots:
        notes.append(sizes(rules, [int(its.sum()) for its in in_arm], [shares[rule] for rule in rules]))
    if (moved & is_in_test).any():
        notes.append(f"{int((moved & is_in_test).sum()):,} customers are of two arms in these plans: left out")
    if planned.unknown:
        notes.append(f"{planned.unknown:,} customers of the plans are in no week of the log: left out")
    decisions = decisions_of(log, calendar, catalogue, arm)
    compared = np.where(has_both[:, None], arm, -1)  # before them all arms did the same
    return AssignedWeeks(decisions, margin_before(log, compared)[decisions.unit], notes)


def check_purchases(calendar: Calendar) -> None:
    """Raise ValueError where a log knows purchases of sends alone."""
    if not calendar.knows_silence:
        raise ValueError(
            "rules: the log knows purchases of sends alone, so that the arm which sends more would bring more: "
            "expected a log with purchases of all customers (sends.purchases, or sends.lists_silence)"
        )


def had_left(log: CustomerWeeks, arm: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Tell who left before the first compared week, bool [W], with an arm, int8 [W, N]: bool [N]."""
    is_assigned = (arm >= 0) & compared[:, None]
    return is_assigned.any(0) & (log.last < is_assigned.argmax(0))


def changes(arm: np.ndarray) -> np.ndarray:
    """Tell whose arm is not the same in all weeks that it is known of, bool [N]; arm int8 [W, N], −1: not known."""
    known = np.where(arm < 0, len(ARMS), arm)
    return arm.max(0, initial=-1) > known.min(0, initial=len(ARMS))


def margin_before(log: CustomerWeeks, arm: np.ndarray) -> torch.Tensor:
    """Return each customer's mean margin a week before the first week with an arm, float64 [N]; NaN without one."""
    planned = arm >= 0
    first_plan = np.where(planned.any(0), planned.argmax(0), 0)
    week = np.arange(log.weeks)[:, None]
    is_before = (log.first <= week) & (week < first_plan)
    weeks = is_before.sum(0)
    total = np.where(is_before, log.margin, 0.0).sum(0)
    return torch.from_numpy(np.where(weeks > 0, total / np.maximum(weeks, 1), np.nan))


def left_of(rule: str, in_arm: np.ndarray, log: CustomerWeeks) -> str:
    """Say how many of an arm's customers, bool [N], left before the log's end."""
    left = int((in_arm & (log.last < log.weeks - 1)).sum())
    return f"{rule}: {left:,} of {int(in_arm.sum()):,} customers left, and bring 0 from then on"


def sizes(rules: list[str], customers: list[int], shares: list[float]) -> str:
    """Say whether the rules' customers are as many as their shares of all customers give."""
    p = sample_ratio(torch.tensor(customers), torch.tensor(shares))
    has = " and ".join(f"{rule} {n:,}" for rule, n in zip(rules, customers))
    expected = " and ".join(f"{sum(customers) * share / sum(shares):,.1f}" for share in shares)
    return f"customers: {has}; by the shares of the plans {expected} (p = {p:.2g})"


class PlannedArms(NamedTuple):
    """The customers' arms in the W weeks of a log; −1: no plan of the week."""

    given: np.ndarray  #: int8 [W, N]; −1 also: none of the customer so far, or the customer was not in the log yet
    by_lot: np.ndarray  #: everybody's by the lot alone, where contact rules hold nobody out, int8 [W, N]
    follows_lots: np.ndarray  #: whether the plan's arms are those of its shares' lots, bool [W]; True without a plan
    shares: dict[int, Arms]  #: of each week with a plan
    unknown: int  #: customers of the plans whom the log lacks

    def moved(self, weeks: np.ndarray) -> np.ndarray:
        """Tell whose arm differs between some weeks, bool [W], or would, had the customer been there: bool [N].

        Where arms moved, and some don't follow the lots, which arm a later customer would have had is not known: all
        who have none in the first of these weeks count as moved.
        """
        moved = changes(self.given[weeks]) | changes(self.by_lot[weeks])
        if moved.any() and not self.follows_lots[weeks].all():
            moved |= self.given[weeks][0] < 0
        return moved

    def holds_out_by_lot(self, weeks: np.ndarray) -> bool:
        """Whether in some weeks, bool [W], the holdout is that of the plans' lots, and nobody's by contact rules."""
        given, by_lot = self.given[weeks], self.by_lot[weeks]
        return bool(((given == HOLDOUT) == (by_lot == HOLDOUT))[given >= 0].all())

    def shares_of_the_unmoved(self, weeks: np.ndarray, moved: np.ndarray) -> dict[str, float] | None:
        """Return which shares of all customers have the same arm in all of some weeks, bool [W], by the arm's name.

        `moved`, bool [N], are the customers who have not. None where their lots were drawn anew: nothing tells then.
        """
        shares = [self.shares[week] for week in np.flatnonzero(weeks).tolist()]
        if not shares or len({x.salt for x in shares}) > 1 or (moved.any() and not self.follows_lots[weeks].all()):
            return None
        least, most = (
            {name: end(getattr(x, name) for x in shares) for name in ("holdout", "random", "bau")} for end in (min, max)
        )
        # each arm has a lot of its own: who is always in it is below its least share, who never is above its greatest
        of_arm = {name: expected_shares(**{**most, name: least[name]})[name] for name in least}
        return {**of_arm, "rl": expected_shares(**most)["rl"]}


def planned_arms(log: CustomerWeeks, folder: Path) -> PlannedArms:
    """Return each customer's arm in the weeks that have a plan.

    A customer whom a plan lacks after an earlier one, having left, is in the arm that the plan would have drawn; where
    the plan's arms are not those of its shares' lots, as of a program with other lots, the customer keeps the last arm.
    """
    plans = {}
    for path in plans_in(folder):
        facts = read_facts(path)
        plans[facts["week"]] = path, Arms(*facts["shares"])
    if not plans:
        raise ValueError(f"plans: expected a folder of plans, week=….parquet with its .csv, got {folder}")
    place = {name: k for k, name in enumerate(log.ids)}
    arm = np.full((log.weeks, len(log.ids)), -1, dtype=np.int8)
    lot = arm.copy()
    follows_lots = np.ones(log.weeks, dtype=bool)
    nobody = np.zeros(len(log.ids), dtype=bool)
    latest = np.full(len(log.ids), -1, dtype=np.int8)
    unknown: set[str] = set()
    for week in sorted(week for week in plans if week < log.weeks):
        path, arms = plans[week]
        table = read_parquet(path, columns=["customer", "arm"])
        ids, names = table["customer"].to_pylist(), table["arm"].to_pylist()
        unknown.update(x for x in ids if x not in place)
        row = np.array([place.get(x, -1) for x in ids], dtype=np.int64)
        given = np.array([ARMS.index(x) for x in names], dtype=np.int8)
        latest[row[row >= 0]] = given[row >= 0]
        lot[week] = arms.of(log.ids, nobody)
        drawn = arms.of(log.ids, latest == HOLDOUT).astype(np.int8)
        follows_lots[week] = (drawn == latest)[row[row >= 0]].all()
        if follows_lots[week]:
            latest = np.where(latest >= 0, drawn, -1)
        arm[week] = np.where(log.first <= week, latest, -1)
    return PlannedArms(arm, lot, follows_lots, {week: arms for week, (_, arms) in plans.items()}, len(unknown))


def decisions_of(log: CustomerWeeks, calendar: Calendar, catalogue: Catalogue, arm: np.ndarray) -> LoggedDataset:
    """Return the customers' weeks whose arm [W, N] is not −1 as decisions without observations."""
    week, customer = (torch.from_numpy(x) for x in np.nonzero(arm >= 0))
    at = (week.numpy(), customer.numpy())
    offer, channel = (torch.from_numpy(x[at]).long() for x in (log.offer, log.channel))
    redeemed, bought = (torch.from_numpy(x[at]).double() for x in (log.redeemed, log.bought))
    spend = catalogue.spend(offer, channel, redeemed)
    n, zeros = len(week), torch.zeros(len(week), dtype=torch.float64)
    return LoggedDataset(
        nvec=(catalogue.action_codec.num_actions,),
        static_dim=0,
        policies=ARMS,
        names=COLUMNS,
        unit_names=log.ids,
        row=torch.arange(n) + FIRST_ROW,
        unit=customer,
        episode=torch.zeros_like(week),
        step=week,
        policy=torch.from_numpy(arm[at]).long(),
        obs=zeros.new_zeros(n, 0),
        action_mask=torch.ones(n, 1, dtype=torch.bool),
        action=catalogue.action_codec.encode(offer, channel),
        propensity=zeros.new_full((n,), torch.nan),
        price=zeros + calendar.price - 1,
        reward=torch.from_numpy(log.margin[at]) + calendar.trips * bought - spend,
        cost=spend,
        terminal_value=zeros,
        terminated=torch.zeros(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool),
    )
