"""A comparison of policies as a table, as numbers and as plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from rlcore.runs.plots import labelled, levels, markdown


def add_lines(table: Table, lines: dict[str, list[str]], groups: dict[str, str]) -> None:
    """Add lines by name to a table for the console, under the names of their groups where they have one."""
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

    def to_metrics(self) -> dict[str, Any]:
        """Lay everything out for metrics.json."""
        return {"policies": self.rows, **self.extra}

    def headline_metrics(self) -> dict[str, float]:
        """The numbers by which runs are compared."""
        return {f"{self.judged}/{name}": row[self.judged] for name, row in self.rows.items()}

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
        table = Table(
            title=self.title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=self.caption, caption_justify="left"
        )
        table.add_column(self.what, no_wrap=True)
        for header in self.columns:
            table.add_column(header, justify="left" if header == "knows" else "right", no_wrap=True)
        groups = {name: row["group"] for name, row in self.rows.items() if "group" in row}
        add_lines(table, self._lines(), groups)
        return table

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        headers = (self.what, *self.columns)
        text_columns = 2 if "knows" in self.columns else 1
        return markdown(headers, list(self._lines().values()), text_columns)

    def to_figures(
        self, agent: str | None, headline: str, history: dict[str, list[tuple[int, float]]]
    ) -> dict[str, Figure]:
        """Return the plots, and the training curve where there is one."""
        curve = history.get(headline, [])
        if not curve:
            return self.plots
        figure, axes = labelled("steps, thousands", self.judged)
        thousands = [step / 1e3 for step, _ in curve]
        scores = [score for _, score in curve]
        axes.plot(thousands, scores, marker="o", markersize=3)
        others = {name: row[self.judged] for name, row in self.rows.items() if name != agent}
        levels(axes, others)
        return {**self.plots, "training": figure}
