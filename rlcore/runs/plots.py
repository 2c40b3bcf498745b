"""Functions that the plots and tables of all reports share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

DPI = 240  # pixels an inch of all plots: sharp on dense screens
#: the palette of Okabe & Ito (2008), which people with colour blindness can tell apart; yellow, pale on white, is last
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
Level = tuple[float, float, float]  # a value and the ends of its interval


def new_figure(panels: int = 1, widths: tuple[float, ...] = (1.0,)) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, side by side with a common vertical axis, of relative widths."""
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, panels, sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths})
    for axes in grid[0]:
        axes.set_prop_cycle(color=COLORS)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[0])


def labelled(x: str, y: str) -> tuple[Figure, Axes]:
    """Return a figure and its axes under two labels."""
    figure, (axes,) = new_figure()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def entitle(figure: Figure, title: str) -> None:
    """Write a title over a figure, in lines of a readable length."""
    figure.suptitle(title, fontsize=9, color="0.3", wrap=True)


def training_figure(
    x: str, y: str, curve: list[tuple[float, float]], tested: dict[str, Level], trained: str | None
) -> Figure:
    """Draw a curve over training beside the values of policies after it, with their intervals.

    The curve is of validation data and the values of test data: each has a panel, for they can't be compared. The
    policy `trained` has the curve's colour in both.
    """
    if not tested:
        figure, axes = labelled(x, y)
        draw_curve(axes, curve)
        return figure
    figure, (left, right) = new_figure(2, (3.0, 1.6))
    left.set_title("validation data", fontsize=9)
    left.set_xlabel(x)
    left.set_ylabel(y)
    draw_curve(left, curve)
    right.set_title("test data", fontsize=9)
    for place, (name, (value, low, high)) in enumerate(tested.items()):
        color = COLORS[0] if name == trained else "0.45"
        right.errorbar(place, value, [[value - low], [high - value]], fmt="o", markersize=4, capsize=2, color=color)
    right.set_xticks(range(len(tested)), list(tested), rotation=60, ha="right", fontsize=7)
    right.set_xlim(-0.7, len(tested) - 0.3)
    return figure


def draw_curve(axes: Axes, curve: list[tuple[float, float]]) -> None:
    """Draw points (x, y), joined."""
    axes.plot([x for x, _ in curve], [y for _, y in curve], marker="o", markersize=3)


def text_table(
    title: str,
    columns: Iterable[str],
    lines: Iterable[Sequence[str]] = (),
    caption: str | None = None,
    *,
    left: int = 1,
) -> Table:
    """Lay out a table for the console.

    Its first columns, `left` of them, are text, on the left; the others are numbers, on the right. On a narrow terminal
    text breaks into lines, numbers do not.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i >= left)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(columns: tuple | list, lines: list[list[str]], names: int = 2) -> str:
    """Lay out a table as Markdown; its first columns are `names`, the others numbers."""
    alignment = ["---"] * names + ["---:"] * (len(columns) - names)
    rows = [columns, alignment, *lines]
    cells = [" | ".join(row) for row in rows]
    return "\n".join(f"| {row} |" for row in cells)
