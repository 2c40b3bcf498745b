"""Drift of a customer table: the population stability index of each column against the customers trained on.

PSI = Σ (a − b)·ln(a / b) over bins with shares a and b. By custom .1 is a change to look at, and .25 a large one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from envs.tables.column_kinds import Columns, is_number

BINS = 10  # of a number, of equal shares in training
LEAST_SHARE = 1e-3  # of a bin, so that an empty one does not make the index infinite
MOVED = 0.1
NOISE = 3.0  # times the index that two samples of one population have on average, which is left to chance
MISSING = "no entry"

Profile = dict[str, dict[str, list]]  # by column: its bins and their shares; for a number the inner edges of its bins


def profile(columns: Columns, rows: np.ndarray) -> Profile:
    """Return how the customers `rows` are spread over each column: {column: {bins, shares, customers}}."""
    found: Profile = {}
    for name, column in columns.items():
        part = column[rows]
        if is_number(column):
            known = part[~np.isnan(part)]
            bins = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)).tolist() if len(known) else []
        else:
            bins = np.unique(part.astype(str)).tolist()
        found[name] = {"bins": bins, "shares": shares(part, bins).tolist(), "customers": [len(part)]}
    return found


def shares(column: np.ndarray, bins: list) -> np.ndarray:
    """Return the shares of a column [H] in the bins of a profile; the last one is without an entry, or in no bin."""
    if is_number(column):
        place = np.where(np.isnan(column), len(bins) + 1, np.searchsorted(bins, column, side="left"))
        return np.bincount(place, minlength=len(bins) + 2) / len(column)
    known = {level: number for number, level in enumerate(bins)}
    place = np.array([known.get(level, len(bins)) for level in column.astype(str).tolist()])
    return np.bincount(place, minlength=len(bins) + 1) / len(column)


def stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Return the population stability index of two distributions over the same bins."""
    a, b = (np.clip(x, LEAST_SHARE, None) for x in (now, before))
    return float(((a - b) * np.log(a / b)).sum())


def describe_drift(trained_on: Mapping[str, Mapping[str, list]], columns: Columns, rows: np.ndarray) -> list[str]:
    """Name the columns whose index over the customers `rows` says more than chance, with the index, largest first."""
    moved = []
    for name, column in columns.items():
        if name not in trained_on:
            continue
        old = trained_on[name]
        before, now = np.array(old["shares"]), shares(column[rows], old["bins"])
        bins = int((np.maximum(before, now) > 0).sum())
        by_chance = (bins - 1) * (1 / old["customers"][0] + 1 / len(rows))
        index = stability_index(before, now)
        if index > MOVED + NOISE * by_chance and math.isfinite(index):
            moved.append((index, name))
    return [f"{name} {index:.2f}" for index, name in sorted(moved, reverse=True)]
