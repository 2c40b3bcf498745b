"""Progress of long loops: a loop says how far it is, and whoever started it shows that, or nobody does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Show = Callable[[str, int, int], None]  # what is being done, how many are done, of how many

_show: ContextVar[Show | None] = ContextVar("show", default=None)


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Show the progress of `tracked` loops in this context."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)


def tracked(items: Collection[T], what: str) -> Iterator[T]:
    """Iterate over items, and say before each how many are done. `what` names the loop."""
    for done, item in enumerate(items):
        report(what, done, len(items))
        yield item
    report(what, len(items), len(items))


def report(what: str, done: int, total: int) -> None:
    """Say that `done` parts of `total` are done."""
    show = _show.get()
    if show:
        show(what, done, total)
