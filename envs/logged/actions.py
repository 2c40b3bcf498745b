"""The actions of a log by the names that its columns give them, and which of them were possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from envs.offers.constraints.expressions import holds
from envs.tables.column_kinds import Columns, is_date, is_number
from envs.tables.name_codes import name_codes, numbered

MAX_COMBINATIONS = 2**16  # most combinations of heads that a table of values may have


def to_text(column: np.ndarray) -> np.ndarray:
    """Return the names of actions [R]: texts as they are, dates as 2026-01-31, numbers as Python
    shows them, whole ones without a point.
    """
    if not is_number(column):
        return column.astype(str).astype(object) if is_date(column) else column
    return np.array(
        ["" if math.isnan(x) else f"{x:.0f}" if x == round(x) else repr(x) for x in column.tolist()], object
    )


class ActionNames(NamedTuple):
    """The choices of each part of an action, and the combinations that were learned from."""

    columns: tuple[str, ...]  #: the column of each part
    choices: tuple[tuple[str, ...], ...]  #: names of each part's choices, the empty name first
    seen: tuple[int, ...]  #: flat indices of the combinations that the training side has, in order

    @classmethod
    def fit(cls, columns: Columns, names: list[str], path: str, train: np.ndarray) -> ActionNames:
        """Take the names from a log, and what is possible from its rows `train`, int64 [T].

        Raises ValueError where these have one action alone, or the log has too many.
        """
        texts = [to_text(columns[name]) for name in names]
        choices = tuple(tuple(sorted(set(x.tolist()), key=natural)) for x in texts)
        sizes = [len(x) for x in choices]
        if math.prod(sizes) > MAX_COMBINATIONS:
            raise ValueError(f"{path}: env.actions: expected at most {MAX_COMBINATIONS:,} combinations, got {sizes}")
        whole = cls(tuple(names), choices, ())
        rows = np.arange(len(texts[0]))  # all their names are known, so no row is named
        seen = tuple(np.unique(whole.encode(columns, path, rows)[train]).tolist())
        if len(seen) < 2:
            raise ValueError(f"{path}: env.actions: expected at least 2 actions in {', '.join(names)}")
        return whole._replace(seen=seen)

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of choices of each part."""
        return tuple(len(x) for x in self.choices)

    def encode(self, columns: Columns, path: str, rows: np.ndarray) -> np.ndarray:
        """Return flat actions of the rows [R] of a file, int64 [R]; raise ValueError where one is of no name."""
        flat = np.zeros(len(columns[self.columns[0]]), dtype=np.int64)
        for name, choices in zip(self.columns, self.choices):

            def place(row: int, column: str = name) -> str:
                return f"{path}: row {rows[row]}, column '{column}'"

            flat = flat * len(choices) + name_codes(to_text(columns[name]).tolist(), numbered(choices), place)
        return flat

    def mask(self, columns: Columns, allowed: Mapping[str, Mapping[str, str]], logged: np.ndarray) -> np.ndarray:
        """Return which combinations were possible, bool [R, Πn]: those seen and the row's own, where conditions allow.

        `logged` are the rows' own flat actions, int64 [R].

        `allowed` has {column: {choice: condition on the row's columns}}. Raises ValueError where one names no choice.
        """
        rows = len(columns[self.columns[0]])
        mask = np.zeros((rows, math.prod(self.nvec)), dtype=bool)
        mask[:, list(self.seen)] = True
        mask[np.arange(rows), logged] = True
        table = mask.reshape(rows, *self.nvec)
        for name, conditions in allowed.items():
            if name not in self.columns:
                raise ValueError(f"env.allowed: expected a column of env.actions, got '{name}'")
            part = self.columns.index(name)
            for choice, condition in conditions.items():
                if str(choice) not in self.choices[part]:
                    raise ValueError(
                        f"env.allowed.{name}: the log has no '{choice}', only {', '.join(self.choices[part])}"
                    )
                fits = holds(condition, columns, f"env.allowed.{name}.{choice}")
                at = [slice(None)] * table.ndim
                at[1 + part] = self.choices[part].index(str(choice))  # type: ignore[call-overload]
                table[tuple(at)] &= fits.reshape(rows, *[1] * (table.ndim - 2))
        return mask

    def name(self, flat: int) -> str:
        """Name a flat action."""
        parts = []
        for choices in reversed(self.choices):
            flat, k = divmod(flat, len(choices))
            parts.append(choices[k] or "nothing")
        return " ".join(reversed(parts))


def natural(text: str) -> tuple:
    """Order names as numbers where they are, before all others; the empty name comes first."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1 if text else -1, 0.0, text)
