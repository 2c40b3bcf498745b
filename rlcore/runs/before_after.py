"""A trained policy before and after it went on learning from new data, judged on old and on new data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from rlcore.runs.report import Report, half_width

OLD, NEW = "old data", "new data"

T = TypeVar("T")


class BeforeAfter(NamedTuple):
    """The values of two policies on the same data, and their difference, with 95 % intervals: [value, low, high]."""

    before: list[float]
    after: list[float]
    gained: list[float]  #: after less before, paired


def by_age(parts: Sequence[T]) -> dict[str, T]:
    """Name what belongs to each stage of the data, the oldest first: OLD, numbered where there are several, and NEW."""
    old = len(parts) - 1
    names = [OLD] if old == 1 else [f"{OLD} {k + 1}" for k in range(old)]
    return dict(zip([*names, NEW], parts))


def before_after_report(found: Mapping[str, BeforeAfter], what: str, kept: str) -> Report:
    """Lay out the values by age of the data; `what` says what the values are, and `kept` which policy stays."""
    columns = {
        "before": lambda row: f"{row['before'][0]:.4g}",
        "±": lambda row: f"{half_width(row['before'][1:]):.2g}",
        "after": lambda row: f"{row['after'][0]:.4g}",
        "± ": lambda row: f"{half_width(row['after'][1:]):.2g}",
        "gained": lambda row: f"{row['gained'][0]:+.4g}",
        "from": lambda row: f"{row['gained'][1]:+.4g}",
        "to": lambda row: f"{row['gained'][2]:+.4g}",
    }
    rows: dict[str, dict[str, Any]] = {age: values._asdict() for age, values in found.items()}
    return Report(
        title="before and after the new data",
        caption=f"{what}\ngained: after less before, paired, with its 95 % interval; kept: the policy {kept}",
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
