"""The columns that an exported policy reads: their kinds, the ranges they are held to, and a table read by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from envs.offers.populations.customer_table import days_before
from envs.offers.populations.feature_transform import FeatureTransform, level_codes
from envs.tables.column_kinds import NUMBER, Columns, is_date, is_number, refusal, to_column
from envs.tables.table_reader import load_table
from rlcore.offline.file_columns import arrow

NUMBERS, DATES, TEXT = "number", "date", "text"  # kinds of columns
WORDS = {NUMBERS: "numbers", DATES: "dates", TEXT: "text"}  # of messages


class Range(NamedTuple):
    """The range of a column of numbers in training, and what is done beyond it."""

    least: float
    greatest: float

    @property
    def width(self) -> float:
        """Width of the range; a column that never changed in training has 0."""
        return self.greatest - self.least

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest number that are not refused: one width beyond the range.

        A column that never changed tells a policy nothing, whatever it holds: nothing is refused.
        """
        if not self.width:
            return -np.inf, np.inf
        return self.least - self.width, self.greatest + self.width


class Column(NamedTuple):
    """A column that an exported policy reads, in the order of the policy's inputs."""

    name: str
    kind: str  # NUMBERS (yes and no are 1 and 0), DATES or TEXT
    seen: Range | None = None  # in training; of dates, days before a date; None: unknown, or text
    may_be_missing: bool = False  # whether training saw missing numbers, so that the policy has a rule for them
    as_text: bool = False  # a column of text whose texts look like numbers, such as postcodes


class TableColumns(NamedTuple):
    """The columns of N customers as an exported policy's inputs, and what was done to them."""

    numbers: Tensor  # NaN: missing, float64 [N, A]
    levels: Tensor  # codes of levels, int64 [N, L]
    clipped: dict[str, int]  # customers whose number is beyond what the policy tells apart, by column
    missing: dict[str, int]  # customers without a number, by column
    unknown: dict[str, int]  # customers with a text that training did not have, by column

    @property
    def num_customers(self) -> int:
        """Number of customers N."""
        return len(self.numbers)

    def take(self, rows) -> TableColumns:
        """Take some of the customers, with the counts of all."""
        return self._replace(numbers=self.numbers[rows], levels=self.levels[rows])


def read_columns(
    table: Any, columns: list[Column], transform: FeatureTransform, *, source: str, separator: str, today: str | None
) -> TableColumns:
    """Read a table of N customers by the names of its columns, which may be in any order; others are left out.

    `table` is the path of a CSV or Parquet file, a pyarrow.Table, or what makes one, such as a dictionary of columns.
    `source` names it in messages. Dates become days before `today`. Raises ValueError, in one line with row and column,
    where a column is missing or of another kind, where a number is too far from those of training, and where one is
    missing that never was in training.
    """
    table, source = as_table(table, source, separator)
    if not table.num_rows:
        raise ValueError(f"{source}: expected customers, got no row")
    found: Columns = {}
    for column in columns:
        if column.name not in table.column_names:
            raise ValueError(
                f"{source}: expected a column '{column.name}', which the policy was trained on; there are "
                f"{', '.join(map(str, table.column_names))}"
            )
        if table.column_names.count(column.name) > 1:
            raise ValueError(f"{source}: column '{column.name}' comes twice")
        values = table.column(column.name)
        found[column.name] = (
            read_text(values, column, transform.levels[column.name], source)
            if column.kind == TEXT
            else read_numbers(values, column, source)
        )
    dates = [name for name, x in found.items() if is_date(x)]
    if dates and today is None:
        raise ValueError(
            f"{source}: column '{dates[0]}': expected the date that its days count to, as in today=2025-11-24, got none"
        )
    if today is not None:
        check_date(today)
    found = days_before(found, today, "today")
    for column in columns:
        if column.kind != TEXT:
            check_numbers(found[column.name], column, source)
    numbers, levels = transform.encode(found)
    return TableColumns(numbers, levels, *counts(found, transform))


def check_date(today: str) -> None:
    """Raise ValueError where a value is no date as a text; a year, or a year and a month, is none."""
    try:
        day = np.datetime64(today if isinstance(today, str) else "NaT")
    except ValueError:
        day = np.datetime64("NaT")
    if day.dtype != "datetime64[D]":
        raise ValueError(f"today: expected a date, year-month-day, got {today}")


def as_table(table: Any, source: str, separator: str):
    """Return a pyarrow.Table of a path, a pyarrow.Table or what makes one, and its name in messages."""
    pa = arrow()
    if isinstance(table, (str, Path)):
        return load_table(str(table), separator), str(table)
    if isinstance(table, pa.Table):
        return table, source
    try:
        return pa.table(dict(table) if isinstance(table, Mapping) else table), source
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"{source}: can't be read as a table: {str(error).splitlines()[0]}") from error


# ── columns of a table ──────────────────────────────────────────────────────────────────────────────────────────────
def read_numbers(values, column: Column, source: str) -> np.ndarray:
    """Read a column of numbers, yes and no, or dates; raise ValueError where it is of another kind."""
    pa = arrow()
    if pa.types.is_floating(values.type):
        infinite = pa.compute.fill_null(pa.compute.is_inf(values), False).to_numpy()
        if infinite.any():
            raise refusal(source, infinite.argmax(), column.name, "a number", "infinity")
    read = to_column(values, source, column.name, text=False, number=False, text_key="the table's columns")
    got = DATES if is_date(read) else NUMBERS if is_number(read) else TEXT
    if got == TEXT and not any(read):
        return np.full(len(read), np.nan)
    if got != column.kind:
        raise another_kind(source, column, got)
    return read


def read_text(values, column: Column, levels: list[str], source: str) -> np.ndarray:
    """Read a column of text; raise ValueError where it holds numbers or dates."""
    pa = arrow()
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not column.as_text and not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    ):
        raise another_kind(source, column, DATES if pa.types.is_temporal(kind) else NUMBERS)
    text = to_column(values, source, column.name, text=True, number=False, text_key="the table's columns")
    if not column.as_text:
        distinct = pa.array(sorted(set(text.tolist()) - {""}), pa.string())
        known = set(levels)
        only_numbers = len(distinct) and pa.compute.all(pa.compute.match_substring_regex(distinct, NUMBER)).as_py()
        if only_numbers and known.isdisjoint(distinct.to_pylist()):
            raise another_kind(source, column, NUMBERS)
    return text


def another_kind(source: str, column: Column, got: str) -> ValueError:
    """Return the error of a column of another kind than in training."""
    return ValueError(
        f"{source}: column '{column.name}': expected {WORDS[column.kind]}, as in the table that the policy was trained "
        f"on, got {WORDS[got]}"
    )


def check_numbers(numbers: np.ndarray, column: Column, source: str) -> None:
    """Raise ValueError where a number is missing that never was in training, or is far from those of training."""
    if not column.may_be_missing and np.isnan(numbers).any():
        row = int(np.isnan(numbers).argmax())
        raise refusal(source, row, column.name, "a number, for in training none was missing", "none")
    if column.seen is None:
        return
    low, high = column.seen.limits
    far = (numbers < low) | (numbers > high)
    if far.any():
        row = int(far.argmax())
        unit = " days" if column.kind == DATES else ""
        raise refusal(
            source,
            row,
            column.name,
            f"{low:g} to {high:g}{unit} (training had {column.seen.least:g} to {column.seen.greatest:g})",
            f"{numbers[row]:g}",
        )


def counts(columns: Columns, transform: FeatureTransform) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Count, by column, the numbers that are clipped, those that are missing, and the texts that are unknown."""
    clipped = {
        name: int(((columns[name] < fitted["low"]) | (columns[name] > fitted["high"])).sum())
        for name, fitted in transform.numbers.items()
    }
    missing = {name: int(np.isnan(columns[name]).sum()) for name in transform.numbers}
    unknown = {
        name: int(((level_codes(columns[name], levels) == len(levels)) & (columns[name] != "")).sum())
        for name, levels in transform.levels.items()
    }
    return tuple({name: n for name, n in found.items() if n} for found in (clipped, missing, unknown))  # type: ignore
