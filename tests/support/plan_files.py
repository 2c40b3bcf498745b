"""Plans of a week in a folder, with no more in them than who is in which arm."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from envs.live.plan.arms import ARMS, Arms
from envs.live.plan.output.plan_file import KEY

HALF = Arms(3, 0.05, 0.01, 0.5)


def write_plan(folder: Path, week: int, arms: dict[str, int], shares: Arms = HALF, handed_over: bool = True) -> None:
    """Write a plan in which customers, by id, have these arms; `shares` is what it says of itself."""
    table = pa.table({"customer": list(arms), "arm": [ARMS[k] for k in arms.values()]})
    facts = {"week": week, "shares": [shares.salt, shares.holdout, shares.random, shares.bau]}
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(facts).encode()}), folder / f"week={week}.parquet")
    if handed_over:
        (folder / f"week={week}.csv").touch()
