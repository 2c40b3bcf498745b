"""The log that a shop's sends become: a Parquet file, one row a customer and week, under the shop's own ids and names.

Columns: customer; week, from 0, and date, of the week's first day where sends have dates; offer and channel as in the
catalogue (null: nothing was sent); propensity of the decision (null where unknown); arm that decided in a planned week
(null: no plan did); bought, redeemed, unsubscribed (true or false); margin, money. No state is among them: what a shop
did not see is not in its log.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from envs.offers.logs.customer_weeks import ARMS, CustomerWeeks
from rlcore.offline.file_columns import arrow
from rlcore.offline.logged_dataset import FIRST_ROW
from rlcore.offline.parquet_files import parquet_writer, read_parquet
from rlcore.runs.checkpoint import atomic

KEY = b"crm_rl.send_log"  # of the file's metadata
OUTCOMES = ("bought", "redeemed", "margin", "unsubscribed")
COLUMNS = ("customer", "week", "offer", "channel", "propensity", "arm", *OUTCOMES)
DAYS = 7
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday, Monday being 0


@dataclass(frozen=True)
class Calendar:
    """When a log begins and ends, and what its money is worth.

    Moments are days since 1970-01-01 where `has_dates`, else the shop's numbers of weeks.
    """

    has_dates: bool
    start: int  #: first day of week 0, or its number
    sends_to: int  #: the last send that the log has
    purchases_to: int | None  #: the last purchase, of a table of purchases
    knows_silence: bool  #: purchases of weeks without a send are in the log too
    price: float  #: what one unit of spend must bring where policies are valued on the log
    trips: float  #: value of a purchase beside its margin, money

    @classmethod
    def of(cls, moments: np.ndarray, start: str | int | None, weekday: int, price: float, trips: float) -> Calendar:
        """Return the calendar of an empty log that begins with the week of `start`, or else of the first moment.

        Weeks begin on `weekday`, 0 for Monday. Raises ValueError where `start` is of another kind than the moments.
        """
        if not len(moments):
            raise ValueError("sends: expected a send to begin a log with, got a file without rows")
        has_dates = moments.dtype.kind == "M"
        first = int(moments.min().astype(np.int64)) if start is None else moment_of(start, has_dates, "sends.start")
        if has_dates:
            first -= (first + EPOCH_WEEKDAY - weekday) % DAYS
        return cls(has_dates, first, first - 1, None, True, price, trips)

    def last_of(self, moments: np.ndarray, until: int | None) -> int:
        """Return the last moment of a log that gets sends of `moments` [R], up to the moment `until` where given."""
        return max(self.sends_to, int(moments.max(initial=self.sends_to)) if until is None else until)

    def week_of(self, moment: np.ndarray) -> np.ndarray:
        """Return the weeks [R] of moments in whole numbers [R]."""
        return (moment - self.start) // (DAYS if self.has_dates else 1)

    def describe(self, moment: int) -> str:
        """Show a moment."""
        return str(np.datetime64(moment, "D")) if self.has_dates else f"week {moment}"


def moment_of(value: str | int, has_dates: bool, key: str) -> int:
    """Return a moment that YAML names as a whole number; raise ValueError, with the key, where it is none."""
    if not has_dates:
        if not isinstance(value, int):
            raise ValueError(f"{key}: expected null or the number of a week, got {value}")
        return value
    try:
        moment = np.datetime64(str(value))  # of a year alone, or a month, the unit is no day
    except ValueError:
        moment = np.datetime64("NaT")
    if moment.dtype != "datetime64[D]":
        raise ValueError(f"{key}: expected null or a date, year-month-day, got {value}")
    return int(moment.astype(np.int64))


def is_send_log(path: Path | str) -> bool:
    """Tell whether a file is the log of a shop's sends."""
    if Path(path).suffix.lower() not in (".parquet", ".pq") or not Path(path).is_file():
        return False
    pa = arrow()
    try:
        metadata = pa.parquet.read_schema(path).metadata
    except (pa.ArrowException, OSError):
        return False
    return KEY in (metadata or {})


def count_weeks(path: Path | str) -> int:
    """Return the number of weeks of a log of sends."""
    return int(read_parquet(path, columns=["week"]).column("week").to_numpy().max()) + 1


def write(path: Path | str, log: CustomerWeeks, calendar: Calendar, offers: list[str], channels: list[str]) -> int:
    """Write a log, week by week; return the number of rows. The file appears whole or not at all."""
    pa = arrow()
    if Path(path).suffix.lower() not in (".parquet", ".pq"):
        raise ValueError(f"out: expected a name that ends in .parquet, got {path}")
    metadata = {KEY: json.dumps(asdict(calendar)).encode()}
    ids = pa.array(log.ids, pa.string())
    rows = 0

    def encoded(index: np.ndarray, names, is_null: np.ndarray | None = None):
        return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32), mask=is_null), names)

    def fill(temporary: Path) -> None:
        nonlocal rows
        writer = None
        try:
            for week in range(log.weeks):
                who = np.flatnonzero(log.is_present(week))
                if not len(who):
                    continue
                nothing = log.offer[week, who] == 0
                columns = {
                    "customer": encoded(who, ids),
                    "week": pa.array(np.full(len(who), week, dtype=np.int32)),
                    "offer": encoded(log.offer[week, who], pa.array(offers, pa.string()), nothing),
                    "channel": encoded(log.channel[week, who], pa.array(channels, pa.string()), nothing),
                    "propensity": pa.array(log.propensity[week, who], from_pandas=True),
                    "arm": encoded(log.arm[week, who].clip(0), pa.array(ARMS), log.arm[week, who] < 0),
                    **{name: pa.array(x[week, who]) for name, x in log.cells(OUTCOMES).items()},
                }
                if calendar.has_dates:
                    first_day = np.datetime64(calendar.start + DAYS * week, "D")
                    columns["date"] = pa.array(np.full(len(who), first_day), pa.date32())
                table = pa.table(columns).replace_schema_metadata(metadata)
                writer = writer or parquet_writer(temporary, table.schema)
                writer.write_table(table)
                rows += len(who)
        finally:
            if writer:
                writer.close()
        if not rows:
            raise ValueError(f"{path}: nobody is in the log")

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic(Path(path), fill)
    return rows


def read(path: Path | str, offers: list[str], channels: list[str]) -> tuple[CustomerWeeks, Calendar]:
    """Read a log whose offers and channels are those of a catalogue; raise ValueError where it is none."""
    if not is_send_log(path):
        raise ValueError(f"{path}: expected a log that scripts/import_sends.py wrote")
    table = read_parquet(path, columns=list(COLUMNS))
    try:
        calendar = Calendar(**json.loads(table.schema.metadata[KEY]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a log of this version of the program: import all sends anew") from error
    customer = _dictionary(table, "customer")
    ids = tuple(customer.dictionary.to_pylist())
    index = customer.indices.to_numpy()
    week = table.column("week").to_numpy()
    if customer.null_count or not len(week) or week.min() < 0:
        raise ValueError(f"{path}: expected a customer and a week from 0 in every row")
    log = CustomerWeeks.empty(ids, int(week.max()) + 1)
    at = (week, index)
    log.first[:] = log.weeks
    np.minimum.at(log.first, index, week)
    np.maximum.at(log.last, index, week)
    offer = _codes(path, table, "offer", offers, 0)
    log.offer[at] = offer
    log.channel[at] = np.where(offer > 0, _codes(path, table, "channel", channels, 0), 0)
    log.propensity[at] = table.column("propensity").to_numpy()
    log.arm[at] = _codes(path, table, "arm", list(ARMS), -1)
    for name, x in log.cells(OUTCOMES).items():
        x[at] = table.column(name).to_numpy()
    log.row[at] = np.arange(len(week)) + FIRST_ROW
    return log, calendar


def _dictionary(table, name: str):
    """Return a column as one pyarrow.DictionaryArray."""
    pa = arrow()
    column = table.column(name)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks()


def _codes(path: Path | str, table, name: str, names: list[str], null: int) -> np.ndarray:
    """Return a column as indices into names; raise ValueError where the catalogue lacks one."""
    encoded = _dictionary(table, name)
    present = np.unique(encoded.indices.drop_null().to_numpy())
    index = np.zeros(len(encoded.dictionary), dtype=np.int64)
    for k in present.tolist():
        text = encoded.dictionary[k].as_py()
        if text not in names:
            raise ValueError(f"{path}: column '{name}': expected one of {', '.join(names)}, got '{text}'")
        index[k] = names.index(text)
    missing = encoded.indices.is_null().to_numpy(zero_copy_only=False)
    codes = encoded.indices.fill_null(0).to_numpy()
    return np.where(missing, null, index[codes])
