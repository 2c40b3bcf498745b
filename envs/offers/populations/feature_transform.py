"""Turn the columns of a customer table into features, by a transform fitted on the training customers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.offers.populations.table_reader import Columns

OTHER, EMPTY = "other", "(empty)"  # levels that stand for rare or unknown ones, and for no entry


class FeatureTransform:
    """Turns columns into features [H, F]: numbers are standardised, a text has one column a level.

    Levels rarer than the limit share the level "other". A level that the fitted rows lack counts as "other" (as none
    where no level was rare). An empty text is a level of its own. `state` is the result of `state_dict`.
    """

    def __init__(self, state: dict):
        self.numbers, self.levels = state["numbers"], state["levels"]  # {name: [mean, sd]}, {name: [level, …]}

    @classmethod
    def fit(cls, columns: Columns, rows: np.ndarray, rare: int, path: str) -> FeatureTransform:
        """Fit to some rows of a table."""
        numbers, levels = {}, {}
        for name, column in columns.items():
            if column.dtype.kind == "f":
                sd = column[rows].std()
                numbers[name] = [column[rows].mean().item(), sd.item() if sd > 0 else 1.0]
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
        for name, (mean, sd) in self.numbers.items():
            features.append((columns[name] - mean) / sd)
        for name, levels in self.levels.items():
            column = _levels(columns[name])
            column = np.where(np.isin(column, levels), column, OTHER)
            features += [(column == level).astype(float) for level in levels]
        return torch.tensor(np.stack(features, 1))

    def state_dict(self) -> dict:
        """Return the numbers and strings that define the transform."""
        return {"numbers": self.numbers, "levels": self.levels}


def _levels(column: np.ndarray) -> np.ndarray:
    return np.where(column == "", EMPTY, column).astype(str)
