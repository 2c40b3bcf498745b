"""Read the columns of a log by the names that YAML gives them, and further features by the customer's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.offers.populations.customer_table import days_before
from envs.tables.column_kinds import Columns, is_date, is_number
from envs.tables.table_reader import read_table
from envs.value_ranges import FLOAT32_MAX


@dataclass(frozen=True, kw_only=True)
class LogColumns:
    """Reads files of decisions, one a row; the fields are parameters of LoggedEnv (envs/logged/env.py)."""

    separator: str
    #: {reward, customer, week, rule, propensity, cost: name of the column}, those that the file has
    roles: dict[str, str]
    actions: list[str]
    text: list[str]
    ignore: list[str]
    customer_table: dict[str, Any]
    reference_date: str | None

    def in_days(self, columns: Columns) -> Columns:
        """Return columns whose dates are days before `reference_date`."""
        return days_before(columns, self.reference_date, "env")

    def __call__(self, path: str) -> Columns:
        """Read a log's columns, with those of its customers; raise ValueError, with the row, where one is broken.

        Dates are still dates, but for the order of decisions.
        """
        numbers = [name for key, name in self.roles.items() if key not in ("customer", "week", "rule")]
        texts = [*self.text, *(self.roles[key] for key in ("customer", "rule") if key in self.roles)]
        columns = read_table(
            path, self.separator, text=texts, numbers=numbers, rows="decisions", where="env", only=None
        )
        for key, name in (*self.roles.items(), *(("actions", x) for x in self.actions)):
            if name not in columns:
                raise ValueError(f"{path}: no column '{name}' (env.{key}); there are {', '.join(columns)}")
        if "week" in self.roles:
            columns[self.roles["week"]] = self._moments(columns[self.roles["week"]], path)
        for key in ("reward", "cost"):
            if key in self.roles:
                refuse(path, self.roles[key], np.isnan(columns[self.roles[key]]), "a number, got nothing")
        if "cost" in self.roles:
            refuse(path, self.roles["cost"], columns[self.roles["cost"]] < 0, "at least 0")
        if "propensity" in self.roles:
            share = columns[self.roles["propensity"]]
            refuse(path, self.roles["propensity"], (share <= 0) | (share > 1), "a probability above 0, at most 1")
        if "customer" in self.roles:
            empty = np.array([not x for x in columns[self.roles["customer"]].tolist()])
            refuse(path, self.roles["customer"], empty, "an id, got nothing")
        if self.customer_table["path"]:
            columns |= self._joined(path, columns)
        for key, names in (("ignore", self.ignore), ("text", self.text)):
            for name in names:
                if name not in columns:
                    raise ValueError(f"{path}: no column '{name}' (env.{key}); there are {', '.join(columns)}")
        for name, column in columns.items():
            if is_number(column):
                refuse(path, name, np.abs(column) > FLOAT32_MAX, "a number that float32 can hold")
        return columns

    def _moments(self, column: np.ndarray, path: str) -> np.ndarray:
        """Return the order of decisions as numbers: weeks as they are, dates as days; refuse what is neither."""
        name = self.roles["week"]
        if is_date(column):
            refuse(path, name, np.isnat(column), "a date, got nothing")
            return column.astype(np.int64).astype(np.float64)
        if not is_number(column):
            raise ValueError(f"{path}: column '{name}': expected numbers or dates (env.week)")
        refuse(path, name, np.isnan(column), "a number, got nothing")
        return column

    def _joined(self, path: str, columns: Columns) -> Columns:
        """Return the columns of the table of customers, by the row of the log."""
        if "customer" not in self.roles:
            raise ValueError("env.customer: expected the column of ids that joins the log with env.customer_table")
        key = self.customer_table["id"]
        table = read_table(
            self.customer_table["path"],
            self.customer_table["separator"],
            text=[*self.text, key],
            numbers=[],
            rows="customers",
            where="env.customer_table",
        )
        if key not in table:
            raise ValueError(f"{self.customer_table['path']}: no column '{key}' (env.customer_table.id)")
        ids = table.pop(key).tolist()
        index = {name: k for k, name in enumerate(ids)}
        if len(index) < len(ids):
            double = next(k for k, name in enumerate(ids) if index[name] != k)
            raise ValueError(
                f"{self.customer_table['path']}: row {double + 2}, column '{key}': '{ids[double]}' comes twice"
            )
        texts = columns[self.roles["customer"]].tolist()
        at = np.fromiter((index.get(name, -1) for name in texts), dtype=np.int64, count=len(texts))
        refuse(path, self.roles["customer"], at < 0, f"a customer of {self.customer_table['path']}")
        taken = [name for name in table if name in columns]
        if taken:
            raise ValueError(f"{self.customer_table['path']}: column '{taken[0]}' is a column of {path} too")
        return {name: column[at] for name, column in table.items()}


def refuse(path: str, name: str, wrong: np.ndarray, expected: str) -> None:
    """Raise ValueError, with the first row where `wrong` holds."""
    if wrong.any():
        raise ValueError(f"{path}: row {int(wrong.argmax()) + 2}, column '{name}': expected {expected}")


def in_order(
    columns: Columns, week: str | None, unit: np.ndarray, row: np.ndarray, path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order of rows [R] by unit and week; in this order each row's step, and whether the next goes on.

    `week` names the column; None: each row is for itself. `row` [R] are the rows' places in the file. Raises ValueError
    where a unit has two rows of one week.
    """
    rows = len(row)
    follows = np.zeros(rows, dtype=bool)
    if week is None:
        return np.arange(rows), np.zeros(rows, dtype=np.int64), follows
    order = np.lexsort((columns[week], unit))
    weeks, is_same = columns[week][order], unit[order][1:] == unit[order][:-1]
    if (repeated := is_same & (weeks[1:] == weeks[:-1])).any():
        one = int(repeated.argmax())
        raise ValueError(
            f"{path}: rows {row[order][one]}, {row[order][one + 1]}, column '{week}': expected one decision a customer "
            "and week"
        )
    follows[:-1] = is_same
    first = np.maximum.accumulate(np.where(np.r_[True, ~is_same], np.arange(rows), 0))
    return order, np.arange(rows) - first, follows
