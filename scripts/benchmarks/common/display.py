"""Display of benchmarks: tables (rlcore/runs/plots.py) and progress on the console, figures as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlcore.runs import checkpoint

WIDTH = 120  # characters of the widest tables, which are shown whole on every terminal
Item = TypeVar("Item")


def show(table: Table) -> None:
    """Print a table to standard output."""
    Console(width=WIDTH).print(table)


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Iterate over items with a progress line on standard error."""
    return track(items, description, total=total, console=Console(stderr=True))


def save_figure(directory: Path, name: str, figure: Figure) -> None:
    """Write NAME.png, whole or not at all."""
    checkpoint.atomic(directory / f"{name}.png", lambda path: figure.savefig(path, dpi=120, format="png"))
