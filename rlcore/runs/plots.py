"""Functions that the plots and tables of all reports share."""

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


def levels(axes: Axes, values: dict[str, float]) -> None:
    """Draw reference values as dotted lines with their names; names that would overlap share a label."""
    for value in values.values():
        axes.axhline(value, linewidth=0.8, color="grey", linestyle=":")
    low, high = axes.get_ylim()
    label_height = 0.04 * (high - low)
    labels: dict[float, list[str]] = {}  # names by the value at which they are written
    last_value = float("inf")
    highest_first = sorted(values.items(), key=lambda item: -item[1])
    for name, value in highest_first:
        if last_value - value < label_height:
            labels[last_value].append(name)
        else:
            labels[value] = [name]
            last_value = value
    for value, names in labels.items():
        text = ", ".join(names)
        axes.annotate(text, (0.01, value), xycoords=("axes fraction", "data"), fontsize=7, color="grey", va="top")


def markdown(columns: tuple | list, lines: list[list[str]], names: int = 2) -> str:
    """Lay out a table as Markdown; its first columns are `names`, the others numbers."""
    alignment = ["---"] * names + ["---:"] * (len(columns) - names)
    rows = [columns, alignment, *lines]
    cells = [" | ".join(row) for row in rows]
    return "\n".join(f"| {row} |" for row in cells)
