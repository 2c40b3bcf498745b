"""A comparison of policies as a table, as numbers and as plots, for environments that judge by returns."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from rlcore.plots import labelled, levels, markdown


@dataclass(frozen=True)
class Report:
    """Rows of results by policy, from worst to best, and what each column of the table shows of a row.

    columns: {header: function of a row}. last: a line below the rows. extra: what else metrics.json holds. plots: named
    figures. judged: the key of a row by which runs are compared. what: rows are of.
    """

    title: str
    caption: str
    rows: dict[str, dict]
    columns: dict[str, Callable[[dict], str]]
    last: list[str] | None
    extra: dict
    plots: dict[str, Figure]
    judged: str
    what: str = "policy"

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {"policies": self.rows, **self.extra}

    def headline_metrics(self) -> dict[str, float]:
        """The numbers by which runs are compared."""
        return {f"{self.judged}/{name}": row[self.judged] for name, row in self.rows.items()}

    def _lines(self) -> list[list[str]]:
        lines = [[name, *(show(row) for show in self.columns.values())] for name, row in self.rows.items()]
        return lines + ([self.last] if self.last else [])

    def parts(self) -> dict[str, Report]:
        """Name what is shown and logged as tables."""
        return {"table": self}

    def to_table(self) -> Table:
        """Lay the comparison out for the console."""
        table = Table(title=self.title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=self.caption,
                      caption_justify="left")
        table.add_column(self.what, no_wrap=True)
        for header in self.columns:
            table.add_column(header, justify="left" if header == "knows" else "right", no_wrap=True)
        for line in self._lines():
            table.add_row(*line)
        return table

    def to_markdown(self) -> str:
        """Lay the comparison out for TensorBoard and README."""
        return markdown((self.what, *self.columns), self._lines(), 2 if "knows" in self.columns else 1)

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Return the plots, and the training curve where there is one."""
        curve = history.get(headline, [])
        if not curve:
            return self.plots
        figure, axes = labelled("steps, thousands", self.judged)
        axes.plot([step / 1e3 for step, _ in curve], [score for _, score in curve], marker="o", markersize=3)
        levels(axes, {name: row[self.judged] for name, row in self.rows.items() if name != agent})
        return {**self.plots, "training": figure}
