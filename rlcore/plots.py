"""What the plots of all reports share."""
from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def labelled(x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes under two labels."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def markdown(columns: tuple | list, lines: list[list[str]], names: int = 2) -> str:
    """Lay out a table whose first columns are `names`, the rest numbers."""
    rows = [columns, ["---"] * names + ["---:"] * (len(columns) - names), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
