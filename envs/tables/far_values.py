"""Numbers of a column that look like errors, or like signs for a missing number."""

from __future__ import annotations

import numpy as np

SPREAD = 3  # different numbers that a column needs before any can be far from the others
SIGNS = (1.0, 9.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0, 9999999.0)  # or their negatives, for a missing number
REPEATS = 3  # rows that a sign needs
SIGN = "a usual sign for a missing number, beside the others"
APART = 0.1  # share of the others' range by which a positive sign lies above them


def describe_far_values(column: np.ndarray, gap: float) -> str:
    """Describe the numbers of a column [H] that look like errors or like signs for a missing number; empty: none.

    These are numbers that lie further from all others than `gap` times the others' range: the smaller part of the
    column on one side of its widest gap, such as 1e12 among ages. And they are signs such as −1, −99 and 9999 at an end
    of the range, repeated more often than any other number, negative ones where no other number is negative.
    """
    values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    if len(values) < SPREAD + 1:
        return ""
    return _far(values, counts, gap) or _sign(values, counts)


def _far(values: np.ndarray, counts: np.ndarray, gap: float) -> str:
    widest = int(np.diff(values).argmax())
    is_above = np.arange(len(values)) > widest
    is_far = is_above if counts[is_above].sum() * 2 < counts.sum() else ~is_above
    others = values[~is_far]
    if len(others) < SPREAD or np.diff(values)[widest] <= gap * np.ptp(others):
        return ""
    return _described(values[is_far], int(counts[is_far].sum()), "far from all others", others)


def _sign(values: np.ndarray, counts: np.ndarray) -> str:
    lowest, others = values[0], values[1:]
    if -lowest in SIGNS and others[0] >= 0 and counts[0] >= REPEATS and counts[0] > counts[1:].max():
        return _described(values[:1], int(counts[0]), SIGN, others)
    greatest, others = values[-1], values[:-1]
    is_apart = greatest - others[-1] > APART * np.ptp(others)
    if greatest in SIGNS[2:] and is_apart and counts[-1] >= REPEATS and counts[-1] > counts[:-1].max():
        return _described(values[-1:], int(counts[-1]), SIGN, others)
    return ""


def _described(found: np.ndarray, times: int, what: str, others: np.ndarray) -> str:
    shown = f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"
    return f"{shown} ({times:,} times) is {what}, {others[0]:g} to {others[-1]:g}"
