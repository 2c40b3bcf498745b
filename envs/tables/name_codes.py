"""The names in a column as whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

SHOWN = 8  # names in a message, at most
UNKNOWN = np.iinfo(np.int64).min  # the code of no name


def numbered(names: Iterable[str], first: int = 0) -> dict[str, int]:
    """Number names in their order."""
    return {name: code for code, name in enumerate(names, first)}


def name_codes(texts: Sequence[str], codes: Mapping[str, int], place: Callable[[int], str]) -> np.ndarray:
    """Return the code of each text [R], int64 [R].

    Raises ValueError where a text has none, with the `place` of the first such row and the names that have one.
    """
    found = np.fromiter((codes.get(text, UNKNOWN) for text in texts), np.int64, len(texts))
    unknown = found == UNKNOWN
    if unknown.any():
        row = int(unknown.argmax())
        known = [name for name in codes if name]
        shown = ", ".join(known[:SHOWN]) + (", …" if len(known) > SHOWN else "")
        raise ValueError(f"{place(row)}: expected one of {shown}, got '{texts[row]}'")
    return found
