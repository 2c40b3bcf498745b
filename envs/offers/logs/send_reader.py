"""Read a shop's files of sends and of purchases: columns named in YAML, refusals that name row and column."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import partial

import numpy as np

from envs.offers.logs.customer_weeks import Rows
from envs.offers.world.catalogue import Catalogue
from envs.tables.column_kinds import is_date
from envs.tables.name_codes import name_codes, numbered
from envs.tables.table_reader import read_table
from envs.value_ranges import FLOAT32_MAX

ISO_WEEK = 8  # characters of 2026-W05
TEXTS = ("customer", "offer", "channel")
FLAGS = ("bought", "redeemed", "unsubscribed")
NUMBERS = (*FLAGS, "margin", "propensity")
MOST_WEEKS = 10**5  # greatest number of a week, on either side of 0: 202605, a year and its week, is none


@dataclass(frozen=True)
class Table:
    """Columns of a file by their keys in YAML, [R] each, and what messages need."""

    path: str
    where: str  #: the part of the configuration that names the columns
    names: dict[str, str]  #: {key: name of the column}
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["customer"])

    def place(self, key: str, row: int) -> str:
        """Say where an entry stands in the file."""
        return f"{self.path}: row {row + 2}, column '{self.names[key]}'"

    def refuse(self, key: str, wrong: np.ndarray, expected: str, *, shows: bool = False) -> None:
        """Raise ValueError with the first row where `wrong` holds and, with `shows`, what stands there."""
        if wrong.any():
            row = int(wrong.argmax())
            value = self.columns[key][row]
            shown = f"{value:g}" if isinstance(value, (float, np.floating)) else f"'{value}'"
            got = f", got {shown}" if shows else ""
            raise ValueError(f"{self.place(key, row)}: expected {expected}{got}")

    def codes(self, key: str, codes: dict[str, int]) -> np.ndarray:
        """Return a column's texts by their codes, int64 [R]; raise ValueError where a text has none."""
        return name_codes(self.columns[key].tolist(), codes, partial(self.place, key))


def read_sends(path: str | None, separator: str, names: dict[str, str], where: str) -> Table:
    """Read a file of sends or of purchases with the columns {key: name}; raise ValueError where one is broken."""
    numbers = [name for key, name in names.items() if key in NUMBERS]
    texts = [name for key, name in names.items() if key in TEXTS]
    found = read_table(
        path,
        separator,
        text=texts,
        numbers=numbers,
        rows="sends" if where == "sends" else "purchases",
        where=where,
        only=list(names.values()),
        may_be_empty=True,
    )
    assert path is not None  # read_table refuses to read without a path
    table = Table(path, where, names, {key: found[name] for key, name in names.items()})
    table.refuse("customer", np.array([not x for x in table.columns["customer"].tolist()]), "an id, got nothing")
    for key in NUMBERS:
        if key in names and key != "propensity":
            table.refuse(key, np.isnan(table.columns[key]), "a number, got nothing")
    for key in FLAGS:
        if key in names:
            table.refuse(key, ~np.isin(table.columns[key], (0, 1)), "0 or 1", shows=True)
    if "margin" in names:
        large = np.abs(table.columns["margin"]) > FLOAT32_MAX
        table.refuse("margin", large, "a number that float32 can hold", shows=True)
    if "propensity" in names:
        propensity = table.columns["propensity"]
        improbable = (propensity <= 0) | (propensity > 1)
        table.refuse("propensity", improbable, "a probability above 0, at most 1, or nothing", shows=True)
    return table


def days_of(table: Table) -> np.ndarray:
    """Return the moments of rows: datetime64[D] where they are dates or ISO weeks such as 2026-W05, else whole numbers.

    Raises ValueError where one is missing or of another kind.
    """
    column = table.columns["date"]
    if is_date(column):
        table.refuse("date", np.isnat(column), "a date, got nothing")
        return column
    if column.dtype.kind == "f":
        table.refuse("date", np.isnan(column), "a week, got nothing")
        wrong = (column != np.round(column)) | (np.abs(column) > MOST_WEEKS)
        table.refuse("date", wrong, "a whole week, counted on over the years, or one such as 2026-W05", shows=True)
        return column.astype(np.int64)
    distinct = {text: monday(text) for text in set(column.tolist())}
    expected = "a week's number, a date (year-month-day) or a week such as 2026-W05"
    table.refuse("date", np.array([distinct[text] is None for text in column.tolist()]), expected, shows=True)
    return np.array([distinct[text] for text in column.tolist()], dtype="datetime64[D]")


def monday(text: str) -> np.datetime64 | None:
    """Return the first day of an ISO week such as 2026-W05; None where the text is none."""
    try:
        if len(text) != ISO_WEEK or text[4:6] != "-W":
            return None
        return np.datetime64(datetime.date.fromisocalendar(int(text[:4]), int(text[6:]), 1), "D")
    except ValueError:
        return None


def to_rows(table: Table, customer: np.ndarray, week: np.ndarray, catalogue: Catalogue) -> Rows:
    """Return sends as rows of a log; raise ValueError where a decision or its outcomes contradict themselves."""
    columns = table.columns
    count = len(table)
    offer = table.codes("offer", {"": 0, **numbered(catalogue.offers[1:], 1)})
    if "channel" in columns:
        channel = table.codes("channel", {"": -1, **numbered(catalogue.channels)})
        table.refuse("channel", (offer > 0) != (channel >= 0), "a channel where there is an offer, and only there")
        channel = channel.clip(0, None)
    else:
        channel = np.zeros(count, dtype=np.int64)
    flags = {key: columns[key] > 0 if key in columns else np.zeros(count, dtype=bool) for key in FLAGS}
    table_redeemed = flags["redeemed"]
    if table_redeemed.any():
        table.refuse("redeemed", table_redeemed & (offer == 0), "1 only of an offer")
    if flags["unsubscribed"].any():
        table.refuse("unsubscribed", flags["unsubscribed"] & (offer == 0), "1 only in a week with a message")
    if "bought" in columns:
        if table_redeemed.any():
            table.refuse("redeemed", table_redeemed & ~flags["bought"], "1 only of an offer, with a purchase")
        if "margin" in columns:
            without = ~flags["bought"] & (columns["margin"] != 0)
            table.refuse("margin", without, "0 without a purchase", shows=True)
    return Rows(
        customer=customer,
        week=week,
        offer=offer,
        channel=channel,
        propensity=columns.get("propensity", np.full(count, np.nan)),
        bought=flags["bought"],
        redeemed=flags["redeemed"],
        margin=columns.get("margin", np.zeros(count)),
        unsubscribed=flags["unsubscribed"],
    )
