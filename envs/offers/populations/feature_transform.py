"""Turn the columns of a table into features, by a transform fitted on the rows that are trained on."""

from __future__ import annotations

from collections import Counter
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn

from envs.tables.column_kinds import Columns, is_number

OTHER, EMPTY = "other", "(empty)"  # levels that stand for rare or unknown ones, and for no entry


class FeatureTransform:
    """Turns columns into features [H, F]: numbers are standardised, a text has one column a level.

    A network's values far from what it was trained on mean nothing, so numbers are clipped to the range of the fitted
    rows and a margin. A missing number (NaN) becomes the fitted rows' median. Where fitted rows have gaps, a feature of
    its own says who had one. Levels rarer than the limit share the level "other". A level that the fitted rows lack
    counts as "other" (as none where no level was rare). An empty text is a level of its own. `state` is the result of
    `state_dict`: for each column of numbers its `mean`, `sd`, `low`, `high`, `median` and whether it `has_gaps`, for
    each column of text its levels.
    """

    def __init__(self, state: dict):
        self.numbers: dict[str, dict[str, float]] = state["numbers"]
        self.levels: dict[str, list[str]] = state["levels"]

    @classmethod
    def fit(
        cls, columns: Columns, rows: np.ndarray, rare: int, margin: float, path: str, where: str
    ) -> FeatureTransform:
        """Fit to some rows of a table; `margin` is the share of a column's range by which values may leave the range.

        Raises ValueError where a column of text has no level of `rare` rows, and where a column has no number in the
        fitted rows. `where` is the part of the configuration that leaves columns out, in messages.
        """
        numbers: dict[str, dict[str, float]] = {}
        levels: dict[str, list[str]] = {}
        for name, column in columns.items():
            if is_number(column):
                fitted = column[rows]
                known = fitted[~np.isnan(fitted)]
                if not len(known):
                    raise ValueError(
                        f"{path}: column '{name}': expected a number, got none on the training side; leave the column "
                        f"out by {where}.ignore"
                    )
                sd, low, high = known.std(), known.min(), known.max()
                numbers[name] = {
                    "mean": known.mean().item(),
                    "sd": sd.item() if sd > 0 else 1.0,
                    "low": (low - margin * (high - low)).item(),
                    "high": (high + margin * (high - low)).item(),
                    "median": np.median(known).item(),
                    "has_gaps": len(known) < len(fitted),
                }
                continue
            counts = Counter(column[rows].tolist())
            if "" in counts:
                counts[EMPTY] += counts.pop("")
            kept = sorted(level for level, count in counts.items() if count >= rare)
            if not kept:
                raise ValueError(
                    f"{path}: column '{name}': none of its {len(counts)} different texts has {rare} "
                    f"rows ({where}.min_level_count); leave it out by {where}.ignore"
                )
            levels[name] = kept + [OTHER] * (len(kept) < len(counts) and OTHER not in kept)
        return cls({"numbers": numbers, "levels": levels})

    @property
    def columns_with_gaps(self) -> list[str]:
        """The columns of numbers whose gaps have a feature of their own."""
        return [name for name, fitted in self.numbers.items() if fitted["has_gaps"]]

    @property
    def names(self) -> list[str]:
        """The names of the features."""
        return [
            *self.numbers,
            *(f"{name}: missing" for name in self.columns_with_gaps),
            *(f"{name}: {level}" for name, levels in self.levels.items() for level in levels),
        ]

    def __call__(self, columns: Columns, path: str) -> Tensor:
        """Return features [H, F], float64; raise ValueError where a column is missing or of another kind."""
        for name in (*self.numbers, *self.levels):
            if name not in columns:
                raise ValueError(
                    f"{path}: expected a column '{name}', which the policy was trained on; there are "
                    f"{', '.join(columns)}"
                )
            if is_number(columns[name]) != (name in self.numbers):
                kind = "numbers" if name in self.numbers else "text"
                raise ValueError(
                    f"{path}: column '{name}': expected {kind}, as in the table that the policy was trained on"
                )
        return self.to_module()(*self.encode(columns))

    def encode(self, columns: Columns) -> tuple[Tensor, Tensor]:
        """Return numbers [H, A], float64, NaN where missing, and the codes of levels [H, L], int64.

        The code of a level is its place among the column's levels, and their number stands for an unknown one.
        """
        rows = len(next(iter(columns.values())))
        numbers = np.empty((rows, len(self.numbers)))
        for k, name in enumerate(self.numbers):
            numbers[:, k] = columns[name]
        codes = np.empty((rows, len(self.levels)), dtype=np.int64)
        for k, (name, levels) in enumerate(self.levels.items()):
            codes[:, k] = level_codes(columns[name], levels)
        return torch.from_numpy(numbers), torch.from_numpy(codes)

    def to_module(self) -> ColumnFeatures:
        """Return the transform as a function of tensors, which an exported policy has in its graph."""
        return ColumnFeatures(self.numbers, self.levels)

    def describe_clipped(self, columns: Columns) -> str:
        """Name the columns that have values out of range, with the number of rows; empty where none has."""
        parts = []
        for name, fitted in self.numbers.items():
            low, high = fitted["low"], fitted["high"]
            outside = (columns[name] < low) | (columns[name] > high)
            if outside.any():
                parts.append(f"'{name}' ({low:g} to {high:g}) of {outside.sum():,}")
        return ", ".join(parts)

    def describe_gaps(self, columns: Columns) -> str:
        """Name the columns that lack numbers, with the number of rows and what stands in; empty where none does."""
        parts = []
        for name, fitted in self.numbers.items():
            gaps = np.isnan(columns[name]).sum()
            if gaps:
                parts.append(f"'{name}' {fitted['median']:g} ({gaps:,} customers)")
        return ", ".join(parts)

    def state_dict(self) -> dict:
        """Return the numbers and strings that define the transform."""
        return {"numbers": self.numbers, "levels": self.levels}


def level_codes(column: np.ndarray, levels: list[str]) -> np.ndarray:
    """Return the place of texts [H] among the levels, int64 [H]; the number of levels stands for none of them."""
    index = {level: k for k, level in enumerate(levels)}
    unknown = len(levels)
    index.setdefault("", index.get(EMPTY, unknown))
    return np.fromiter(map(index.get, column.tolist(), repeat(unknown)), dtype=np.int64, count=len(column))


class ColumnFeatures(nn.Module):
    """Features [H, F] of numbers [H, A] and codes of levels [H, L] (`FeatureTransform.encode`), all in float64.

    `numbers` and `levels` are those of a FeatureTransform.
    """

    mean: Tensor
    sd: Tensor
    low: Tensor
    high: Tensor
    median: Tensor
    with_gaps: Tensor  #: places of the columns whose gaps have a feature of their own

    def __init__(self, numbers: dict[str, dict[str, float]], levels: dict[str, list[str]]):
        super().__init__()
        for key in ("mean", "sd", "low", "high", "median"):
            column = torch.tensor([fitted[key] for fitted in numbers.values()], dtype=torch.float64)
            self.register_buffer(key, column, persistent=False)
        gaps = [k for k, fitted in enumerate(numbers.values()) if fitted["has_gaps"]]
        self.register_buffer("with_gaps", torch.tensor(gaps, dtype=torch.long), persistent=False)
        self.num_texts = len(levels)
        for k, column_levels in enumerate(levels.values()):
            self.register_buffer(f"levels_{k}", one_hot_table(column_levels), persistent=False)

    def forward(self, numbers: Tensor, levels: Tensor) -> Tensor:
        is_missing = numbers.isnan()
        filled = torch.where(is_missing, self.median, numbers)
        clipped = torch.minimum(torch.maximum(filled, self.low), self.high)
        columns = [(clipped - self.mean) / self.sd, is_missing[:, self.with_gaps].to(numbers)]
        columns += [self.get_buffer(f"levels_{k}")[levels[:, k]] for k in range(self.num_texts)]
        return torch.cat(columns, -1)


def one_hot_table(levels: list[str]) -> Tensor:
    """Return the features of each code of L levels, [L + 1, L]: an unknown level is "other", if that is one."""
    table = torch.eye(len(levels) + 1, len(levels), dtype=torch.float64)
    if OTHER in levels:
        table[-1, levels.index(OTHER)] = 1.0
    return table
