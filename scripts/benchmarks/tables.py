"""How benchmarks time and print their results."""
from __future__ import annotations

import time
from typing import Callable

import torch
from rich import box
from rich.console import Console
from rich.table import Table


def seconds(function: Callable[[], object]) -> float:
    """Time a call, in CPU time of this process: what it takes on an idle machine, also where the machine is not idle.

    Where there is a GPU that has work, in wall time, its work done.
    """
    clock = time.process_time
    if torch.cuda.is_initialized():
        clock = time.perf_counter
        torch.cuda.synchronize()
    started = clock()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - started


def wide() -> Console:
    """Return a console that shows the widest tables whole, however narrow the terminal."""
    return Console(width=120)


def table_of(title: str, columns: list[str]) -> Table:
    """Lay out an empty table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table
