"""Read a randomised test of a mailing: a CSV or Parquet file, one row a customer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.offers.populations.customer_table import days_before
from envs.offers.populations.feature_transform import FeatureTransform
from envs.tables.table_reader import check_ids, read_table

WHERE = "table"  # the part of the configuration that names columns, in messages
MOST_ARMS = 50  # a column with more levels is no treatment
PROPENSITY_TOLERANCE = 1e-6  # between customers of an arm
SUM_TOLERANCE = 1e-3  # of the arms' probabilities


class Trial(NamedTuple):
    """Customers of a randomised test; arm 0 is the control."""

    ids: list[str]  #: of the customers
    unit: Tensor  #: what was drawn into an arm as a whole, numbered from 0, int64 [N]
    arms: list[str]  #: names
    arm: Tensor  #: of each customer, int64 [N]
    propensity: Tensor  #: probability with which the customer got that arm, float64 [N]
    outcomes: dict[str, Tensor]  #: float64 [N] by name
    features: Tensor  #: standardised, float32 [N, D]
    feature_names: list[str]


class TrialTable:
    """Where a file has what: `treatment` is the column of arms, `control` the arm that got nothing.

    `outcomes` are columns of numbers that were seen after the mailing. `propensity` names the column of the probability
    with which a customer got its arm, the same for all customers of an arm; without one it is the arm's share of all
    customers. `id` names the customers; without one they are numbered from 1. `unit` is the column of what was drawn
    into an arm as a whole, such as a household; without one each customer was drawn alone. All other columns but those
    in `ignore` are features, of which `text` are never numbers. Rarer texts than `min_level_count` share a level.
    """

    def __init__(
        self,
        *,
        path: str | None,
        separator: str,
        id: str | None,
        unit: str | None,
        treatment: str | None,
        control: str | None,
        outcomes: list,
        propensity: str | None,
        text: list,
        ignore: list,
        min_level_count: int,
    ):
        if not path:
            raise ValueError("data: expected the path of a CSV or Parquet file, as in data=test.csv")
        if not treatment:
            raise ValueError(f"{WHERE}.treatment: expected the name of the column that says who got what")
        if not outcomes:
            raise ValueError(f"{WHERE}.outcomes: expected the columns of what came of it, as in [visit,spend]")
        self.path = path
        self.separator = separator
        self.id = id
        self.unit = unit
        self.treatment = treatment
        self.control = control
        self.outcomes = list(outcomes)
        self.propensity = propensity
        self.text = list(text)
        self.ignore = list(ignore)
        self.min_level_count = min_level_count

    def read(self) -> Trial:
        """Read the file; raise ValueError, with row and column, where it is no test."""
        named = [name for name in (self.id, self.unit, self.treatment) if name]
        numbers = [*self.outcomes, *([self.propensity] if self.propensity else [])]
        columns = read_table(
            self.path,
            self.separator,
            text=[*self.text, *named],
            numbers=numbers,
            rows="customers",
            where=WHERE,
        )
        for name in (*named, *numbers, *self.text, *self.ignore):
            if name not in columns:
                raise ValueError(f"{self.path}: no column '{name}'; there are {', '.join(columns)}")
        for name in numbers:
            self._refuse(name, np.isnan(columns[name]), "expected a number, got nothing")
        levels = columns[self.treatment].tolist()
        self._refuse(self.treatment, columns[self.treatment] == "", "expected an arm, got nothing")
        arms = self._arms(levels)
        number = {name: k for k, name in enumerate(arms)}
        arm = torch.tensor([number[level] for level in levels])
        ids = columns[self.id].tolist() if self.id else [str(k + 1) for k in range(len(levels))]
        if self.id:
            check_ids(ids, self.id, self.path)
        unit = torch.arange(len(levels))
        if self.unit:
            self._refuse(self.unit, columns[self.unit] == "", "expected a unit, got nothing")
            unit = torch.from_numpy(np.unique(columns[self.unit].astype(str), return_inverse=True)[1])
        for k, name in enumerate(arms):
            count = len(unit[arm == k].unique())
            if count < 2:
                where = f"column '{self.unit}'" if self.unit else "customers"
                raise ValueError(f"{self.path}: {where}: expected two or more in each arm, got {count} in '{name}'")
        apart = {*named, *numbers, *self.ignore}
        dated = days_before(columns, None, WHERE)  # a date counts the days before the table's latest
        inputs = {name: column for name, column in dated.items() if name not in apart}
        if not inputs:
            raise ValueError(f"{self.path}: expected columns of what was known before the mailing, got none")
        transform = FeatureTransform.fit(inputs, np.arange(len(levels)), self.min_level_count, 0.0, self.path, WHERE)
        return Trial(
            ids=ids,
            unit=unit,
            arms=arms,
            arm=arm,
            propensity=self._propensities(columns, arm),
            outcomes={name: torch.tensor(columns[name]) for name in self.outcomes},
            features=transform(inputs, self.path).float(),
            feature_names=transform.names,
        )

    def _arms(self, levels: list[str]) -> list[str]:
        names = sorted(set(levels))
        if not 2 <= len(names) <= MOST_ARMS:
            raise ValueError(
                f"{self.path}: column '{self.treatment}': expected 2 to {MOST_ARMS} arms, got {len(names)}"
            )
        control = "" if self.control is None else str(self.control)
        if control not in names:
            raise ValueError(
                f"{WHERE}.control: expected the arm of '{self.treatment}' that got nothing, one of "
                f"{', '.join(names)}; got {control or 'none'}"
            )
        return [control, *(name for name in names if name != control)]

    def _propensities(self, columns: dict, arm: Tensor) -> Tensor:
        if self.propensity is None:
            share = arm.bincount().double() / len(arm)
            return share[arm]
        column = columns[self.propensity]
        self._refuse(self.propensity, (column <= 0) | (column >= 1), "expected a probability between 0 and 1")
        propensity = torch.tensor(column)
        first = torch.stack([propensity[arm == k][0] for k in range(int(arm.amax()) + 1)])
        if abs(first.sum().item() - 1) > SUM_TOLERANCE:
            raise ValueError(
                f"{self.path}: column '{self.propensity}': expected the probability of each customer's own arm; the "
                f"arms' add up to {first.sum().item():.4g}, not to 1: is it the probability of one arm for everybody?"
            )
        self._refuse(
            self.propensity,
            ((propensity - first[arm]).abs() > PROPENSITY_TOLERANCE).numpy(),
            "expected one probability an arm, as the arm's customers before have; where it depends on the customer, "
            "analyse each part with its own file, or value policies with env=log",
        )
        return propensity

    def _refuse(self, name: str, wrong: np.ndarray, problem: str) -> None:
        if wrong.any():
            raise ValueError(f"{self.path}: row {wrong.argmax() + 2}, column '{name}': {problem}")
