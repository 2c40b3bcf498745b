"""What a test of two arms could find, from a log of sends before the test: how many weeks must it run?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from envs.live.plan.arms import ARMS
from envs.live.planned_rules import check_purchases, decisions_of, margin_before
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.world.catalogue import Catalogue
from rlcore.ope.detectable import Spread, smallest_difference, spread_of_units
from rlcore.ope.logged_rules import FEW, less
from rlcore.runs.report import Report


def planned_test(
    log: CustomerWeeks,
    calendar: Calendar,
    catalogue: Catalogue,
    *,
    rules: list[str],
    shares: dict[str, float],
    weeks: list[int],
    level: float,
    power: float,
) -> Report:
    """Say for each number of weeks which difference of two arms' profit, a customer and week, a test would find.

    `shares` are those of the arms in all customers. `power` is the share of tests, at `level`, that find the
    difference. A number of weeks that doesn't have as many weeks before it in the log is left out. Raises ValueError
    where none is left, where a rule is no arm, where an arm has fewer than two customers, where all customers brought
    the same, and where the log knows purchases of sends alone.
    """
    check_purchases(calendar)
    sizes = expected_sizes(log, rules, shares)
    fitting = lengths_that_fit(log, weeks)
    rows = {str(w): row_of(log, calendar, catalogue, w, list(sizes.values()), level, power) for w in fitting}
    return Report(
        title=f"profit a customer and week, and the smallest true difference, {less(rules)}, that {100 * power:.3g} of "
        f"100 tests find ({level:.0%} intervals)",
        caption="\n".join(lines_below(log, sizes, left_out=[str(w) for w in weeks if w not in fitting])),
        rows=rows,
        columns=COLUMNS,
        last=None,
        extra={"customers": sizes, "level": level, "power": power},
        plots={},
        judged="adjusted",
        what="weeks",
    )


def expected_sizes(log: CustomerWeeks, rules: list[str], shares: dict[str, float]) -> dict[str, float]:
    """Return how many customers of a log's last week each of two arms is expected to have, by the arm's name."""
    if len(rules) != 2 or len(set(rules)) != 2 or not set(rules) <= set(ARMS):
        raise ValueError(f"rules: expected two of {', '.join(ARMS)}, got {', '.join(rules) or 'none'}")
    present = present_at_end(log)
    sizes = {rule: present * shares[rule] for rule in rules}
    if min(sizes.values()) < 2:
        got = " and ".join(f"{size:,.1f}" for size in sizes.values())
        raise ValueError(
            f"arms: expected shares that give {' and '.join(rules)} two customers or more each, got {got} of the "
            f"{present:,} in the log's last week"
        )
    return sizes


def present_at_end(log: CustomerWeeks) -> int:
    """Count the customers of a log's last week."""
    return int(log.is_present(log.weeks - 1).sum())


def lengths_that_fit(log: CustomerWeeks, weeks: list[int]) -> list[int]:
    """Return the numbers of weeks that have as many before them in a log, and two customers or more at their start."""
    fitting = [w for w in sorted(set(weeks)) if 2 * w <= log.weeks and log.is_present(log.weeks - w).sum() > 1]
    if not fitting:
        raise ValueError(
            "weeks: expected a number of weeks with as many before it in the log, and two customers at its start, got "
            f"{', '.join(map(str, weeks)) or 'none'} in a log of {log.weeks} weeks"
        )
    return fitting


def lines_below(log: CustomerWeeks, sizes: dict[str, float], left_out: list[str]) -> list[str]:
    """Return the lines below the table: the arms' customers, what is assumed, and what the table lacks."""
    would_have = " and ".join(f"{rule} {size:,.0f}" for rule, size in sizes.items())
    few = [f"{rule} would have fewer than {FEW} customers: not to be trusted" for rule in sizes if sizes[rule] < FEW]
    return [
        f"expected customers: {would_have}, of the {present_at_end(log):,} in the log's last week",
        "with four times the customers a test finds half of each difference",
        "adjusted: for the margin a week that a customer had brought before; ρ is its correlation with profit",
        "assumed: customers stay as they were, and arms differ in mean profit, not in how much customers differ",
        *few,
        *([f"left out, without as many weeks before: {', '.join(left_out)} weeks"] if left_out else []),
    ]


def row_of(
    log: CustomerWeeks,
    calendar: Calendar,
    catalogue: Catalogue,
    weeks: int,
    sizes: list[float],
    level: float,
    power: float,
) -> dict[str, Any]:
    """Return the row of a number of weeks: the spread of profit, and what a test finds, plain and adjusted.

    Raises ValueError where all customers brought the same.
    """
    customers, spread = spread_of_last(log, calendar, catalogue, weeks)
    if spread.deviation == 0:
        raise ValueError(f"log: expected customers of unequal profit, got the same of all in its last {weeks} weeks")
    found = {
        name: smallest_difference(spread, sizes, level, power, is_adjusted=name == "adjusted")
        for name in ("plain", "adjusted")
    }
    return {"customers": customers, **spread._asdict(), **found}


def spread_of_last(log: CustomerWeeks, calendar: Calendar, catalogue: Catalogue, weeks: int) -> tuple[int, Spread]:
    """Return how many customers a log had when its last `weeks` began, and the spread of their profit a week since.

    Who left since brings 0 in the weeks after it, as in the comparison of arms.
    """
    start = log.weeks - weeks
    was_there = log.is_present(start)
    in_test = np.full(log.offer.shape, -1, dtype=np.int8)
    in_test[start:, was_there] = 0
    decisions = decisions_of(log, calendar, catalogue, in_test)
    profit = torch.zeros(len(log.ids), dtype=torch.float64).index_add_(0, decisions.unit, decisions.reward / weeks)
    at = torch.from_numpy(was_there)
    return int(was_there.sum()), spread_of_units(profit[at], margin_before(log, in_test)[at])


def difference_and_share(key: str) -> Callable[[dict[str, Any]], str]:
    """Return what shows a difference of a row, and its share of the mean profit where that is above 0."""

    def show(row: dict[str, Any]) -> str:
        return f"{row[key]:.3g}" + (f" ({row[key] / row['mean']:.1%})" if row["mean"] > 0 else "")

    return show


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "customers": lambda row: f"{row['customers']:,}",
    "mean profit": lambda row: f"{row['mean']:.3g}",
    "standard deviation": lambda row: f"{row['deviation']:.3g}",
    "ρ": lambda row: f"{row['correlation']:.2f}",
    "found": difference_and_share("plain"),
    "found, adjusted": difference_and_share("adjusted"),
}
