"""The plans in a folder, read for the log that their sends become."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from envs.live.plan.arms import ARMS
from envs.live.plan.output.plan_file import plans_in, read_facts, unfinished_plans_in
from envs.offers.logs.planned_weeks import PlannedWeek
from envs.offers.world.catalogue import Catalogue
from envs.tables.name_codes import name_codes, numbered
from rlcore.offline.parquet_files import read_parquet


def planned_weeks(folder: Path | str, catalogue: Catalogue) -> Iterator[PlannedWeek]:
    """Yield the plans in a folder, one at a time, and warn of those not handed over; an empty folder has none.

    Raises ValueError where the folder is missing, a file is no plan, or a plan has an offer or channel that the
    catalogue lacks.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"plans: expected a folder of plans, week=….parquet, got {folder}")
    for path in unfinished_plans_in(Path(folder)):
        print(
            f"warning: {path}: no sender's file, {path.with_suffix('.csv').name}, lies beside it, so the plan was not "
            "handed over: its week counts as one without a plan",
            file=sys.stderr,
        )
    for path in plans_in(Path(folder)):
        week = read_facts(path)["week"]
        table = read_parquet(path, columns=["customer", "offer", "channel", "propensity", "arm"])
        texts = {name: table[name].to_pylist() for name in ("customer", "offer", "channel", "arm")}
        yield PlannedWeek(
            source=str(path),
            week=week,
            customers=texts["customer"],
            offer=codes(texts["offer"], catalogue.offers, f"{path}: column 'offer'"),
            channel=codes(texts["channel"], catalogue.channels, f"{path}: column 'channel'"),
            propensity=table["propensity"].to_numpy().astype(np.float64),
            arm=codes(texts["arm"], ARMS, f"{path}: column 'arm'"),
        )


def codes(texts: Sequence[str], names: Sequence[str], column: str) -> np.ndarray:
    """Return the numbers of texts [M] among names, int64 [M]; an empty text, which a plan has for nothing, is 0."""
    return name_codes(texts, {"": 0, **numbered(names)}, lambda _: column)
