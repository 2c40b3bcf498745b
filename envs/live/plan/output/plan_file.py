"""The plan of a week as files: Parquet, one row a customer, and a CSV file of what is to be sent."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from rlcore.offline.file_columns import arrow
from rlcore.offline.parquet_files import parquet_writer
from rlcore.runs.checkpoint import atomic

PLAN = re.compile(r"week=\d+\.parquet")  # the name of a plan, and not of a copy of one
KEY = b"crm_rl.plan"  # of the file's metadata
ROWS = 65_536  # of a row group
ID, TEXT, INT64, INT32, FLOAT64, FLOAT32 = "id", "text", "int64", "int32", "float64", "float32"
COLUMNS = {
    "decision": INT64,  # id of week and customer, which the plan and the sender's file share
    "customer": ID,
    "season": INT32,
    "week": INT32,  # of the season
    "arm": TEXT,
    "policy": TEXT,
    "offer": TEXT,  # empty: nothing
    "channel": TEXT,
    "propensity": FLOAT64,
    "price": FLOAT32,  # of money
    "own_price": FLOAT32,
    "spend": FLOAT32,  # expected
    "face": FLOAT32,  # what a ledger must reserve
    "now": FLOAT32,
    "later": FLOAT32,
    "next_offer": TEXT,
    "next_channel": TEXT,
    "next_price": FLOAT32,
    "refused": TEXT,
    "rule": TEXT,
    "reason": TEXT,
}
SENT = ("decision", "customer", "offer", "channel", "face", "valid_until")  # columns of the sender's file


class Texts:
    """A column of texts as indices [N] into distinct ones; equal texts are one, "" is empty."""

    def __init__(self, index: np.ndarray, texts: Sequence[str]):
        self.index, self.texts = index.astype(np.int32), list(texts)
        self._values = arrow().array(self.texts, arrow().string())

    def array(self, rows: slice):
        """Return some rows as a pyarrow array of strings: dictionary arrays are not always written alike."""
        return self._values.take(arrow().array(self.index[rows]))

    def take(self, rows: np.ndarray) -> list[str]:
        """Return the texts of some rows."""
        return [self.texts[k] for k in self.index[rows].tolist()]


class Names:
    """A column of texts of which no two are equal, [N]."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts

    def array(self, rows: slice):
        """Return some rows as a pyarrow array."""
        return arrow().array(self.texts[rows], arrow().string())

    def take(self, rows: np.ndarray) -> list[str]:
        """Return the texts of some rows."""
        return [self.texts[k] for k in rows.tolist()]


def decision_ids(ids: Sequence[str], week: int) -> np.ndarray:
    """Return an id of each customer's decision of a week, int64 [N], which depends on customer and week alone.

    Raises ValueError where two customers of the week share one.
    """
    prefix = f"{week}:".encode()
    digests = b"".join([blake2b(prefix + name.encode(), digest_size=8).digest() for name in ids])
    number = (np.frombuffer(digests, dtype=">u8") & np.uint64(2**63 - 1)).astype(np.int64)
    if len(np.unique(number)) < len(number):
        raise ValueError(f"customers: two of {len(number):,} customers have one decision id in week {week}")
    return number


def plan_table(columns: dict[str, Any], facts: dict[str, Any], rows: slice):
    """Return some rows of a plan as a pyarrow.Table; `columns` are numpy arrays [N], Names or Texts by name.

    A number that is NaN is empty. The facts of the plan are the table's metadata.
    """
    pa = arrow()
    types = {
        TEXT: pa.string(),
        ID: pa.string(),
        INT64: pa.int64(),
        INT32: pa.int32(),
        FLOAT64: pa.float64(),
        FLOAT32: pa.float32(),
    }
    schema = pa.schema(
        [pa.field(name, types[kind]) for name, kind in COLUMNS.items()],
        metadata={KEY: json.dumps(facts, sort_keys=True).encode()},
    )
    parts = [
        columns[name].array(rows)
        if kind in (TEXT, ID)
        else pa.array(columns[name][rows], types[kind], from_pandas=True)
        for name, kind in COLUMNS.items()
    ]
    return pa.table(parts, schema=schema)


def write_plan(path: Path, columns: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write a plan; the file appears whole or not at all, and equal plans are equal bytes."""
    n = len(columns["decision"])
    schema = plan_table(columns, facts, slice(0, 0)).schema

    def fill(temporary: Path) -> None:
        with parquet_writer(temporary, schema) as writer:
            for start in range(0, n, ROWS):
                writer.write_table(plan_table(columns, facts, slice(start, start + ROWS)))

    atomic(path, fill)


def write_sends(path: Path, columns: dict[str, Any], sent: np.ndarray, valid_until: str) -> None:
    """Write the sender's file: the rows [M] in which something is sent."""
    pa = arrow()
    names = {name: columns[name].take(sent) for name in ("customer", "offer", "channel")}
    table = pa.table(
        {
            "decision": pa.array(columns["decision"][sent]),
            **{name: pa.array(x, pa.string()) for name, x in names.items()},
            "face": pa.array(columns["face"][sent], pa.float32()),
            "valid_until": pa.array([valid_until] * len(sent), pa.string()),
        }
    ).select(list(SENT))
    atomic(path, lambda temporary: pa.csv.write_csv(table, str(temporary)))


def plans_in(folder: Path) -> list[Path]:
    """Return the plans in a folder, by name, copies of a plan left out.

    The sender's file is written last, and handed over last: a plan without it was not finished, and does not count.
    """
    return [path for path in named_as_plans(folder) if path.with_suffix(".csv").is_file()]


def unfinished_plans_in(folder: Path) -> list[Path]:
    """Return the plans in a folder that lack the sender's file."""
    return [path for path in named_as_plans(folder) if not path.with_suffix(".csv").is_file()]


def named_as_plans(folder: Path) -> list[Path]:
    """Return the files in a folder that are named as plans, copies of a plan left out."""
    return sorted(path for path in folder.glob("week=*.parquet") if PLAN.fullmatch(path.name))


def read_facts(path: Path | str) -> dict[str, Any]:
    """Return the facts of a plan's file; raise ValueError where the file is no plan."""
    pa = arrow()
    try:
        metadata = pa.parquet.read_schema(path).metadata or {}
        return json.loads(metadata[KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected a plan that scripts/plan.py wrote") from error
