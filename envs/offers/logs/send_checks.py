"""What a shop's sends must not hold beside each other, or beside the log; each refusal names row and column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from envs.offers.logs.customer_weeks import CustomerWeeks, Rows, is_in_log, second_of_a_cell
from envs.offers.logs.send_log import Calendar
from envs.offers.logs.send_reader import Table

HALF_A_YEAR = 26  # weeks
MAX_WEEKS = 1040  # of a log: 20 years


def changed_ids(log: CustomerWeeks, given: Sequence[str]) -> list[str]:
    """Warn of customers who are in a log in some week, and whom a customer table lacks.

    Raises ValueError where the table has one of them under an id that spreadsheets make of the other: 17 of 00017.
    Under another text the customer would be a new one, whose contacts and opt-out nobody knows. Ids that differ in case
    alone may be two customers.
    """

    def plain(name: str) -> str:
        return name.strip().removesuffix(".0").lstrip("0")

    logged = {name for name, first, last in zip(log.ids, log.first, log.last) if first <= last}
    new = {plain(name): name for name in given if name not in logged}
    lacking = sorted(logged.difference(given))
    for name in lacking:
        if plain(name) in new:
            raise ValueError(
                f"customer table: expected the log's customer '{name}', got '{new[plain(name)]}': ids must keep their "
                "text"
            )
    if not lacking:
        return []
    return [f"{len(lacking):,} customers of the log are not in the customer table, such as '{lacking[0]}'"]


def weeks_to(last: int, sends: Table, moment: np.ndarray, calendar: Calendar) -> int:
    """Return the number of weeks of a log up to the moment `last`; raise ValueError where there are too many."""
    weeks = int(calendar.week_of(np.array(last))) + 1
    if weeks > MAX_WEEKS:
        if calendar.week_of(moment).max(initial=0) < MAX_WEEKS:
            raise ValueError(f"sends.until: expected a log of at most {MAX_WEEKS:,} weeks, got {weeks:,}")
        middle = np.median(moment)
        at = np.abs(moment - middle).argmax()  # the row that makes the log so long
        sends.refuse("date", np.arange(len(moment)) == at, f"sends of at most {MAX_WEEKS:,} weeks, got {weeks:,}")
    return weeks


def check_one_a_week(sends: Table, rows: Rows, customers: int) -> None:
    """Raise ValueError where two rows are of one known customer and week."""
    known = np.flatnonzero(rows.customer >= 0)
    found = second_of_a_cell(rows.week[known] * customers + rows.customer[known])
    if found is not None:
        row, earlier = known[list(found)].tolist()
        wrong = np.arange(len(rows)) == row
        sends.refuse(
            "date", wrong, f"one row a customer and week, row {earlier + 2} is of the same (sends.several: first)"
        )


def check_stay(sends: Table, log: CustomerWeeks, rows: Rows, is_kept: np.ndarray) -> None:
    """Raise ValueError where something was sent before a customer joined, or after they left."""
    customer = rows.customer.clip(0, None)
    outside = is_kept & ((rows.week < log.first[customer]) | (rows.week > log.last[customer]))
    sends.refuse("date", outside, "a date on which the customer was here (sends.joined, sends.left)")


def check_not_taken(sends: Table, log: CustomerWeeks, rows: Rows, kept: np.ndarray) -> None:
    """Raise ValueError where a customer's week of the rows `kept` has a send in the log."""
    wrong = np.zeros(len(rows), dtype=bool)
    sent = kept[rows.offer[kept] > 0]
    wrong[sent] = log.offer[rows.week[sent], rows.customer[sent]] > 0
    sends.refuse("date", wrong, "one send a customer and week, the log has another (sends.several: first)")


def check_numbers_go_on(
    sends: Table, moment: np.ndarray, late: np.ndarray, calendar: Calendar, *, begins_at_start: bool
) -> None:
    """Raise ValueError where numbers of weeks seem to begin anew at New Year.

    `moment` [R] are weeks' numbers, and `late`, bool [R], are the sends that an older log lacks in a week that it has.
    Such a send older than half a year is likelier to be one of this year. So is a send before the log's first week,
    unless the log begins at `sends.start`, before which exports have sends that are left out.
    """
    if calendar.has_dates:
        return
    unseen = late if begins_at_start else late | (moment < calendar.start)
    wrong = unseen & (moment < calendar.sends_to - HALF_A_YEAR)
    sends.refuse(
        "date",
        wrong,
        f"a week that goes on from {calendar.sends_to}, the log's last, or a send that the log has: numbers of weeks "
        "must not begin anew each year (2026-W05 is a week too)",
        shows=True,
    )


def left_out(log: CustomerWeeks, rows: Rows, is_out: np.ndarray, *, is_first: bool) -> Iterator[tuple[np.ndarray, str]]:
    """Yield which of the sends that are left out, `is_out` [R], are so for a reason, bool [R], and the reason.

    Those to customers whom the table lacks are among none of them.
    """
    if is_first:
        yield is_out, "lie before sends.start"
        return
    is_before, is_there = rows.week < 0, is_in_log(log, rows)
    yield is_out & is_before, "lie before the log's first week"
    yield is_out & is_there, "are in the log already"
    yield (
        is_out & ~is_before & ~is_there & (rows.customer >= 0),
        "lie in weeks in which the customer is not in the log",
    )
