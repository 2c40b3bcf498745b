"""A comparison of policies as a table, as numbers and as plots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich.table import Table

from rlcore.runs.plots import markdown, text_table, training_figure


class RunResult(NamedTuple):
    """The headline figure of a run, by which the jobs of a sweep are compared, and a few numbers beside it."""

    of: str  #: the row that the figures are of: the trained policy, or the best row where nothing was trained
    metric: str  #: name of the headline figure
    value: float  #: NaN where it is unknown
    higher_is_better: bool
    metrics: dict[str, float]  #: the headline figure and those beside it, by name

    @classmethod
    def from_rows(
        cls, rows: dict[str, dict[str, Any]], name: str | None, keys: tuple[str, ...], *, higher_is_better: bool
    ) -> RunResult:
        """Take numbers from the row `name`, or from the best where there is none; a number that it lacks is NaN.

        The first of `keys` names the headline figure, by which the best is the best.
        """
        sign = 1 if higher_is_better else -1
        known = [row for row in rows if rows[row].get(keys[0]) is not None] or list(rows)
        of = name if name in rows else max(known, key=lambda row: sign * (rows[row].get(keys[0]) or 0.0))
        metrics = {key: math.nan if rows[of].get(key) is None else float(rows[of][key]) for key in keys}
        return cls(of, keys[0], metrics[keys[0]], higher_is_better, metrics)


def add_lines(table: Table, lines: dict[str, list[str]], groups: dict[str, str]) -> None:
    """Add lines by name to a table for the console, under the names of their groups where they have one.

    Names of groups may break into lines, those of lines may not.
    """
    table.columns[0].min_width = max(map(len, lines), default=0)
    shown = None
    for name, line in lines.items():
        group = groups.get(name, shown)
        if group != shown:
            if shown is not None:
                table.add_section()
            table.add_row(f"[italic]{group}[/]")
            shown = group
        table.add_row(*line)


@dataclass(frozen=True)
class Report:
    """Rows of results by policy, in the order of the table, and the columns of their table.

    Rows with an entry "group" are shown under the group's name.
    """

    title: str
    caption: str
    rows: dict[str, dict[str, Any]]  #: {policy: {key: result}}
    columns: dict[str, Callable[[dict[str, Any]], str]]  #: {header: text of a row}
    last: list[str] | None  #: a line below the rows
    extra: dict[str, Any]  #: further entries of metrics.json
    plots: dict[str, Figure]
    judged: str  #: the key of a row by which runs are compared
    what: str = "policy"  #: header of the rows' names
    beside: tuple[str, ...] = ()  #: further keys of a row by which runs are compared
    higher_is_better: bool = True
    texts: int = 0  #: how many of the first columns hold text, not numbers

    def to_metrics(self) -> dict[str, Any]:
        """Lay everything out for metrics.json."""
        return {"policies": self.rows, **self.extra}

    def result(self, name: str | None) -> RunResult:
        """Return the headline of the trained policy, `name`, or of the best one."""
        return RunResult.from_rows(self.rows, name, (self.judged, *self.beside), higher_is_better=self.higher_is_better)

    @property
    def sample(self) -> str:
        """What the results are of, and how much of it, for the titles of plots."""
        return self.title.partition("\n")[0]

    def _lines(self) -> dict[str, list[str]]:
        lines = {}
        for name, row in self.rows.items():
            cells = [show(row) for show in self.columns.values()]
            lines[name] = [name, *cells]
        if self.last:
            lines[self.last[0]] = self.last
        return lines

    def parts(self) -> dict[str, Report]:
        """Name the tables that are shown and logged."""
        return {"table": self}

    def to_table(self) -> Table:
        """Lay the comparison out for the console."""
        table = text_table(self.title, (self.what, *self.columns), left=1 + self.texts, caption=self.caption)
        groups = {name: row["group"] for name, row in self.rows.items() if "group" in row}
        add_lines(table, self._lines(), groups)
        return table

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        headers = (self.what, *self.columns)
        return markdown(headers, list(self._lines().values()), 1 + self.texts)

    def to_figures(
        self, agent: str | None, headline: str, history: dict[str, list[tuple[int, float]]]
    ) -> dict[str, Figure]:
        """Return the plots, and the training curve where there is one."""
        curve = history.get(headline, [])
        if not curve:
            return self.plots
        thousands = [(step / 1e3, value) for step, value in curve]
        tested = {}
        for name, row in self.rows.items():
            low, high = row.get(f"{self.judged}_ci", (row[self.judged], row[self.judged]))
            tested[name] = (row[self.judged], low, high)
        return {**self.plots, "training": training_figure("steps, thousands", self.judged, thousands, tested, agent)}


def half_width(ends: list[float]) -> float:
    """Return half the width of an interval, as tables show after a ±."""
    low, high = ends
    return (high - low) / 2
