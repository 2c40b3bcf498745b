"""What a shop's sends must not hold beside each other, or beside the log; each refusal names row and column."""

from __future__ import annotations

import numpy as np

from envs.offers.logs.customer_weeks import CustomerWeeks, Rows, after_opting_out, second_of_a_cell
from envs.offers.logs.send_reader import Table


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


def check_subscribed(sends: Table, log: CustomerWeeks, rows: Rows, kept: np.ndarray) -> None:
    """Raise ValueError where something was sent to a customer who had unsubscribed."""
    late = after_opting_out(log)
    wrong = np.zeros(len(rows), dtype=bool)
    wrong[kept] = late[rows.week[kept], rows.customer[kept]] & (rows.offer[kept] > 0)
    sends.refuse("offer", wrong, "nothing, for the customer had unsubscribed")
