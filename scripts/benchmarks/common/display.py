"""Display of benchmarks: tables and progress on the console, figures as files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlcore.runs import checkpoint

WIDTH = 120  # characters of the widest tables, which are shown whole on every terminal
Item = TypeVar("Item")


def table_of(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]] = (), caption: str | None = None
) -> Table:
    """Lay out a table: the first column on the left, the others, which are numbers, on the right."""
    table = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def show(table: Table) -> None:
    """Print a table to standard output."""
    Console(width=WIDTH).print(table)


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Iterate over items with a progress line on standard error."""
    return track(items, description, total=total, console=Console(stderr=True))


def save_figure(directory: Path, name: str, figure: Figure) -> None:
    """Write NAME.png, whole or not at all."""
    checkpoint.atomic(directory / f"{name}.png", lambda path: figure.savefig(path, dpi=120, format="png"))
