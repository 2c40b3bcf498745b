"""Dates of the customer table beside a log: when customers were there, and what the table knows of later weeks."""

from __future__ import annotations

import numpy as np

from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.populations.base import GivenCustomers


def weeks_of(given: GivenCustomers, name: str, key: str, index: dict[str, int], calendar: Calendar) -> np.ndarray:
    """Return the weeks of a column of dates of the customer table, [N], NaN where there is none.

    `index` numbers the N customers by id, `key` is the part of `sends` that names the column. Raises ValueError where
    the column or the sends have no dates.
    """
    if name not in given.dates or not calendar.has_dates:
        raise ValueError(
            f"sends.{key}: expected a column of dates of the customer table, and sends with dates, got '{name}'"
        )
    days = given.dates[name]
    weeks = np.full(len(index), np.nan)
    at = [index[x] for x in given.ids]
    weeks[at] = np.where(np.isnat(days), np.nan, calendar.week_of(days.astype(np.int64)).astype(float))
    return weeks


def later_features(given: GivenCustomers, features: list[str], log: CustomerWeeks, calendar: Calendar) -> list[str]:
    """Warn of dates that are features, and lie after a customer's first week in the log.

    A policy that observes such a date knows in the log's weeks what came after them.
    """
    if not calendar.has_dates:
        return []
    index = {name: k for k, name in enumerate(log.ids)}
    at = np.array([index[name] for name in given.ids])
    is_in_log = log.last[at] >= log.first[at]
    warnings = []
    for name in given.dates:
        if name not in features:
            continue
        week = weeks_of(given, name, "joined", index, calendar)[at]
        late = int((is_in_log & (week > log.first[at])).sum())  # NaN is not greater
        if late:
            warnings.append(
                f"column '{name}' of the customer table is a feature, and for {late:,} customers a date after their "
                "first week in the log: policies would learn from what came later, and be valued by it; take the "
                "column from before the log, or name it in env.population.ignore"
            )
    return warnings
