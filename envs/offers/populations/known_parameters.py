"""What a customer table says of each customer's rate, spend and margin, and what stands in where it says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from envs.tables.column_kinds import Columns
from envs.value_ranges import FLOAT32_MAX

LIMITS = {"rate": (0.0, 1.0), "spend": (0.0, math.inf), "margin": (-1.0, 1.0)}  # of an entry
EXPECTED = {"rate": "a share from 0 to 1", "spend": "money, at least 0", "margin": "a share from -1 to 1"}
UNKNOWN = {"rate": "no entry", "spend": "0 or no entry", "margin": "no entry"}


class KnownParameters:
    """The rate, spend and margin of H customers, as the columns that `names` {parameter: column} maps to them say.

    A prospect never bought: the rate is 0, and the spend is 0 or lacks. A rate is clamped to `rate_range`. A customer
    without an entry, and one whose spend is 0, gets the median of the customers of the training side who have one.
    A margin of 0 or less, a loss at every purchase, is raised to `least_margin`, because the world has no losses.
    Raises ValueError, with file, row and column, where an entry is no rate, spend or margin.
    """

    def __init__(
        self,
        columns: Columns,
        names: Mapping[str, str],
        train: np.ndarray,
        rate_range: tuple[float, float],
        least_margin: float,
        path: str,
    ):
        self.names, self.rate_range, self.least_margin, self.path = dict(names), rate_range, least_margin, path
        self.columns = {key: columns[name] for key, name in self.names.items()}
        for key, column in self.columns.items():
            low, high = LIMITS[key]
            self._refuse(key, np.abs(column) > FLOAT32_MAX, "a number that float32 can hold")
            self._refuse(key, (column < low) | (column > high), EXPECTED[key])
        self.medians = {}
        for key, column in self.columns.items():
            known = column[train][is_known(key, column[train])]
            if not len(known):
                raise ValueError(
                    f"{path}: column '{self.names[key]}': expected an entry other than 0 of some customers on the "
                    f"training side (or env.population.{key}=null: drawn from the priors)"
                )
            self.medians[key] = np.median(known).item()

    def _refuse(self, key: str, wrong: np.ndarray, expected: str) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{self.path}: row {row + 2}, column '{self.names[key]}': expected {expected}, got "
                f"{self.columns[key][row]:g}"
            )

    def values(self) -> dict[str, np.ndarray]:
        """Return each parameter of each customer, [H]."""
        filled = {key: fill_unknown(key, column, self.medians[key]) for key, column in self.columns.items()}
        if "rate" in filled:
            filled["rate"] = filled["rate"].clip(*self.rate_range)
        if "margin" in filled:
            filled["margin"] = filled["margin"].clip(self.least_margin, None)
        return filled

    def notes(self) -> list[str]:
        """Say, in a sentence each, how many customers got what."""
        found = []
        for key, column in self.columns.items():
            unknown = int((~is_known(key, column)).sum())
            if unknown:
                found.append(
                    f"env.population.{key}: {unknown:,} customers have {UNKNOWN[key]} in '{self.names[key]}', and get "
                    f"{self.medians[key]:g}, the median of the training side"
                )
        if "margin" in self.columns:
            losses = int((self.columns["margin"] <= 0).sum())
            if losses:
                found.append(
                    f"env.population.margin: {losses:,} customers have 0 or less in '{self.names['margin']}', and get "
                    f"{self.least_margin:g} (env.population.least_margin)"
                )
        return found


def is_known(key: str, column: np.ndarray) -> np.ndarray:
    """Tell which entries [H] say something of a parameter; a spend of 0 is that of a customer who never bought."""
    return column > 0 if key == "spend" else ~np.isnan(column)


def fill_unknown(key: str, column: np.ndarray, median: float) -> np.ndarray:
    """Return a column [H] with the median in the place of entries that say nothing."""
    return np.where(is_known(key, column), column, median)
