"""The propensities of an imported log: those of plans, and those of weeks that a file of sends does not list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from envs.offers.logs.customer_weeks import CustomerWeeks, Rows, is_in_log
from envs.offers.logs.planned_weeks import PlannedWeek, put_planned, put_unplanned


class FileFacts(NamedTuple):
    """What a file of sends says of propensities and purchases."""

    has_propensities: bool  #: whether it has a column of propensities
    propensity_of_nothing: float | None  #: of weeks that it does not list; None: unknown
    has_purchases: bool  #: whether purchases are a table of their own


def put_propensities(
    log: CustomerWeeks,
    before: CustomerWeeks,
    plans: Iterable[PlannedWeek],
    new: range,
    rows: Rows,
    kept: np.ndarray,
    file: FileFacts,
) -> tuple[list[str], list[str]]:
    """Give decisions their propensities, those of plans where there are plans.

    `before` is the log of the same shape without what this import adds. Of the file's `rows` those numbered `kept` [K]
    lie in the weeks `new`, the last one of the older log and those after it. Returns a sentence on each planned week
    among them, which counts the planned sends that were made, and warnings.
    """
    said = {plan.week: put_planned(log, plan) for plan in plans if plan.week < new.stop}
    first_planned = min(said, default=new.stop)
    listed = rows.take(np.flatnonzero(is_in_log(log, rows)))
    warnings = []
    for week in range(first_planned + 1, new.stop):
        if week in said or (log.arm[week] >= 0).any():  # an older import may have had a plan that is gone
            continue
        was_silent = week <= new.start and not before.offer[week].any()
        sentence = put_unplanned(log, week, was_silent, listed)
        if week >= new.start or (was_silent and log.offer[week].any()):
            warnings.append(sentence)
    new_rows = rows.take(kept)
    warnings += missing_propensities(new_rows, kept, new_rows.week < first_planned, file)
    warnings += fill_propensities(log, before, range(first_planned), new.start, file)
    return [sentence for week, sentence in sorted(said.items()) if week >= new.start], warnings


def missing_propensities(rows: Rows, number: np.ndarray, counts: np.ndarray, file: FileFacts) -> Iterator[str]:
    """Warn of listed weeks without a send that get the propensity of weeks that the file does not list."""
    silent = number[counts & (rows.offer == 0) & np.isnan(rows.propensity)]
    if len(silent) and file.propensity_of_nothing is not None and file.has_propensities:
        yield (
            f"{len(silent):,} rows without a send have no propensity, such as row {silent.min() + 2}: they "
            "get that of weeks that the file does not list (sends.propensity_of_nothing)"
        )


def fill_propensities(
    log: CustomerWeeks, before: CustomerWeeks, weeks: range, first_new: int, file: FileFacts
) -> Iterator[str]:
    """Give what was filled in some weeks its propensity; warn of what the files do not say.

    Filled are the weeks from `first_new` on, and older ones in which the log `before` did not have the customer.
    """
    filled = 0
    for week in weeks:
        empty = log.is_present(week) & (log.offer[week] == 0) & np.isnan(log.propensity[week])
        if week < first_new:
            empty &= ~before.is_present(week)
        filled += int(empty.sum())
        if file.propensity_of_nothing is not None:
            log.propensity[week, empty] = file.propensity_of_nothing
    if filled and file.propensity_of_nothing is None and file.has_propensities:
        yield (
            f"{filled:,} weeks without a send have no propensity: only models of outcomes can value a policy on "
            "them (sends.propensity_of_nothing)"
        )
    if filled and not file.has_purchases:
        yield (
            f"{filled:,} weeks that the file does not list count as weeks without a purchase, so that a send seems "
            "to make every purchase: give the purchases as a table of their own (sends.purchases.path)"
        )
