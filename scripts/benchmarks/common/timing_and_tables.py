"""How benchmarks time and print their results."""
from __future__ import annotations

import resource
import sys
import time
from typing import Any, Callable

import torch
from rich import box
from rich.console import Console
from rich.table import Table


def timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Time a call, in wall time or by another clock, a GPU's work done; return the seconds, and what it returns."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    started = clock()
    found = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - started, found


def seconds(function: Callable[[], object]) -> float:
    """Time a call, in CPU time of this process: what it takes on an idle machine, also where the machine is not idle.

    Where there is a GPU that has work, in wall time.
    """
    return timed(function, time.perf_counter if torch.cuda.is_initialized() else time.process_time)[0]


def peak(device: torch.device) -> float:
    """Return the most memory that this process has had so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def wide() -> Console:
    """Return a console that shows the widest tables whole, however narrow the terminal."""
    return Console(width=120)


def table_of(title: str, columns: list[str]) -> Table:
    """Lay out an empty table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table
