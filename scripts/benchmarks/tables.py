"""How benchmarks print their results."""
from __future__ import annotations

from rich import box
from rich.table import Table


def table_of(title: str, columns: list[str]) -> Table:
    """Lay out an empty table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table
