"""Turn the columns of a customer table into features, by a transform fitted on the training customers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.offers.populations.table_reader import Columns

OTHER, EMPTY = "other", "(empty)"  # levels that stand for rare or unknown ones, and for no entry


class FeatureTransform:
    """Turns columns into features [H, F]: numbers are standardised, a text has one column a level.

    A network's values far from what it was trained on mean nothing, so numbers are clipped to the range of the fitted
    rows and a margin. Levels rarer than the limit share the level "other". A level that the fitted rows lack counts as
    "other" (as none where no level was rare). An empty text is a level of its own. `state` is the result of
    `state_dict`: for each column of numbers its `mean`, `sd`, `low` and `high`, for each column of text its levels.
    """

    def __init__(self, state: dict):
        self.numbers: dict[str, dict[str, float]] = state["numbers"]
        self.levels: dict[str, list[str]] = state["levels"]

    @classmethod
    def fit(cls, columns: Columns, rows: np.ndarray, rare: int, margin: float, path: str) -> FeatureTransform:
        """Fit to some rows of a table; `margin` is the share of a column's range by which values may leave the range.

        Raises ValueError where a column of text has no level of `rare` rows.
        """
        numbers, levels = {}, {}
        for name, column in columns.items():
            if column.dtype.kind == "f":
                fitted = column[rows]
                sd, low, high = fitted.std(), fitted.min(), fitted.max()
                numbers[name] = {
                    "mean": fitted.mean().item(),
                    "sd": sd.item() if sd > 0 else 1.0,
                    "low": (low - margin * (high - low)).item(),
                    "high": (high + margin * (high - low)).item(),
                }
                continue
            values, counts = np.unique(_levels(column[rows]), return_counts=True)
            kept = values[counts >= rare].tolist()
            if not kept:
                raise ValueError(
                    f"{path}: column '{name}': none of its {len(values)} different texts has {rare} "
                    "customers (env.population.min_level_count); leave it out by env.population.ignore"
                )
            levels[name] = kept + [OTHER] * (len(kept) < len(values) and OTHER not in kept)
        return cls({"numbers": numbers, "levels": levels})

    @property
    def names(self) -> list[str]:
        """The names of the features."""
        return [*self.numbers, *(f"{name}: {level}" for name, levels in self.levels.items() for level in levels)]

    def __call__(self, columns: Columns, path: str) -> Tensor:
        """Return features [H, F], float64; raise ValueError where a column is missing or of another kind."""
        features = []
        for name in (*self.numbers, *self.levels):
            if name not in columns:
                raise ValueError(
                    f"{path}: expected a column '{name}', which the policy was trained on; there are "
                    f"{', '.join(columns)}"
                )
            if (columns[name].dtype.kind == "f") != (name in self.numbers):
                kind = "numbers" if name in self.numbers else "text"
                raise ValueError(
                    f"{path}: column '{name}': expected {kind}, as in the table that the policy was trained on"
                )
        for name, fitted in self.numbers.items():
            clipped = columns[name].clip(fitted["low"], fitted["high"])
            features.append((clipped - fitted["mean"]) / fitted["sd"])
        for name, levels in self.levels.items():
            column = _levels(columns[name])
            column = np.where(np.isin(column, levels), column, OTHER)
            features += [(column == level).astype(float) for level in levels]
        return torch.tensor(np.stack(features, 1))

    def describe_clipped(self, columns: Columns) -> str:
        """Name the columns that have values out of range, with the number of customers; empty where none has."""
        parts = []
        for name, fitted in self.numbers.items():
            low, high = fitted["low"], fitted["high"]
            outside = (columns[name] < low) | (columns[name] > high)
            if outside.any():
                parts.append(f"'{name}' of {outside.sum():,} (to {low:g} – {high:g})")
        return ", ".join(parts)

    def state_dict(self) -> dict:
        """Return the numbers and strings that define the transform."""
        return {"numbers": self.numbers, "levels": self.levels}


def _levels(column: np.ndarray) -> np.ndarray:
    return np.where(column == "", EMPTY, column).astype(str)
