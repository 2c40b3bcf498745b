"""A trained policy before and after it went on learning from new data, judged on old and on new data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rlcore.runs.report import Report, half_width

OLD, NEW = "old", "new"


class BeforeAfter(NamedTuple):
    """The values of two policies on the same data, and their difference, with 95 % intervals: [value, low, high]."""

    before: list[float]
    after: list[float]
    gained: list[float]  #: after less before, paired


def before_after_report(found: Mapping[str, BeforeAfter], what: str, kept: str) -> Report:
    """Lay out the values by age of the data, OLD and NEW; `what` names the value, and `kept` the policy that stays."""
    columns = {
        "before": lambda row: f"{row['before'][0]:.4g}",
        "±": lambda row: f"{half_width(row['before'][1:]):.2g}",
        "after": lambda row: f"{row['after'][0]:.4g}",
        "± ": lambda row: f"{half_width(row['after'][1:]):.2g}",
        "gained": lambda row: f"{row['gained'][0]:+.4g}",
        "from": lambda row: f"{row['gained'][1]:+.4g}",
        "to": lambda row: f"{row['gained'][2]:+.4g}",
    }
    rows: dict[str, dict[str, Any]] = {f"{age} data": values._asdict() for age, values in found.items()}
    return Report(
        title="before and after the new data",
        caption=f"{what}, on data that nothing was learned from; gained: after less before, paired, with its 95 % "
        f"interval; kept, by other such data: the policy {kept}",
        rows=rows,
        columns=columns,
        last=None,
        extra={"kept": kept},
        plots={},
        judged="after",
        what="judged on",
    )


def better(validated: Mapping[str, tuple[float, float]]) -> str:
    """Return "after" where the mean over the ages of the data of (before, after) has grown, else "before"."""
    before = sum(pair[0] for pair in validated.values())
    after = sum(pair[1] for pair in validated.values())
    return "after" if after > before else "before"
