"""The plans in a folder, read for the log that their sends become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from envs.live.plan.output.plan_file import plans_in, read_facts
from envs.offers.logs.planned_weeks import PlannedWeek
from envs.offers.world.catalogue import Catalogue
from rlcore.offline.file_columns import arrow


def planned_weeks(folder: Path | str, catalogue: Catalogue) -> Iterator[PlannedWeek]:
    """Yield the plans in a folder, one at a time; an empty folder has none.

    Raises ValueError where the folder is missing, a file is no plan, or a plan has an offer or channel that the
    catalogue lacks.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"plans: expected a folder of plans, week=….parquet, got {folder}")
    for path in plans_in(Path(folder)):
        week = read_facts(path)["week"]
        table = arrow().parquet.read_table(path, columns=["customer", "offer", "channel", "propensity"])
        texts = {name: table[name].to_pylist() for name in ("customer", "offer", "channel")}
        yield PlannedWeek(
            source=str(path),
            week=week,
            customers=texts["customer"],
            offer=places(texts["offer"], ["", *catalogue.offers[1:]], f"{path}: column 'offer'"),
            channel=places(texts["channel"], ["", *catalogue.channels], f"{path}: column 'channel'").clip(1) - 1,
            propensity=table["propensity"].to_numpy().astype(np.float64),
        )


def places(texts: Sequence[str], names: Sequence[str], where: str) -> np.ndarray:
    """Return the places of texts [M] among names, int64 [M]; raise ValueError where a text is none of the names."""
    index = {name: k for k, name in enumerate(names)}
    unknown = [text for text in texts if text not in index]
    if unknown:
        raise ValueError(f"{where}: expected one of {', '.join(names[1:])}, got '{unknown[0]}'")
    return np.fromiter((index[text] for text in texts), np.int64, len(texts))
