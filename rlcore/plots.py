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


def levels(axes: Axes, values: dict[str, float]) -> None:
    """Draw what others reach as dotted lines; names that would lie on each other share a line."""
    for value in values.values():
        axes.axhline(value, linewidth=0.8, color="grey", linestyle=":")
    low, high = axes.get_ylim()
    shared: list[tuple[float, list[str]]] = []
    for name, value in sorted(values.items(), key=lambda item: -item[1]):
        if shared and shared[-1][0] - value < 0.04 * (high - low):  # the height of a name
            shared[-1][1].append(name)
        else:
            shared.append((value, [name]))
    for value, names in shared:
        axes.annotate(", ".join(names), (0.01, value), xycoords=("axes fraction", "data"), fontsize=7, color="grey", va="top")


def markdown(columns: tuple | list, lines: list[list[str]], names: int = 2) -> str:
    """Lay out a table whose first columns are `names`, the rest numbers."""
    rows = [columns, ["---"] * names + ["---:"] * (len(columns) - names), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
