"""The user's own customers: a CSV or Parquet file, one row a customer, its columns named in YAML."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import torch

from envs.offers.populations.base import GivenCustomers, Priors, Sample, hash_uniform
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.populations.table_reader import describe_far_values, read_table
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, CustomerState
from envs.value_ranges import FLOAT32_MAX


class CustomerTable(GivenCustomers):
    """Customers of the user's file, split into train and test by a hash of their id, alike in every table.

    `id`, `rate`, `spend` and `margin` name columns: the id, the share of weeks with a purchase (clamped to
    `rate_range`), the money spent in such a week, and the gross margin as a share. Where a name is null, the parameter
    is drawn from the priors at every draw, like all other parameters. All columns but the id and those in `ignore` are
    features, clipped to the range of the train customers and `clip_margin`. Contact rules may read any column.

    The first draw warns of columns that were clipped, and of train customers whose number lies further from all other
    customers' than `far_gap` times the others' range.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        path: str | None,
        separator: str,
        id: str,
        rate: str | None,
        spend: str | None,
        margin: str | None,
        text: list,
        ignore: list,
        rate_range: list,
        min_level_count: int,
        clip_margin: float,
        far_gap: float,
        test_share: float,
        split_salt: int,
        priors: dict,
    ):
        if not 0 < test_share < 1:
            raise ValueError(f"env.population.test_share: expected a share between 0 and 1, got {test_share}")
        if not 0 < rate_range[0] < rate_range[1] < 1:
            raise ValueError(f"env.population.rate_range: expected two shares between 0 and 1, got {rate_range}")
        mapped = {key: name for key, name in (("rate", rate), ("spend", spend), ("margin", margin)) if name}
        self.columns = read_table(path, separator, [*text, id], list(mapped.values()), "customers")
        assert path is not None  # read_table refuses to read without a path
        self.path = path
        for key, name in (("id", id), *mapped.items(), *(("text", x) for x in text), *(("ignore", x) for x in ignore)):
            if name not in self.columns:
                raise ValueError(
                    f"{path}: no column '{name}' (env.population.{key}); there are {', '.join(self.columns)}"
                )
        self.ids = self.columns[id].tolist()
        self._check_ids(id)
        held = {key: self._money(name, key) for key, name in mapped.items()}
        self.known = {key: torch.tensor(x) for key, x in held.items()}
        if rate:
            self.known["rate"] = self.known["rate"].clamp(*rate_range)
        self.inputs = {name: column for name, column in self.columns.items() if name not in (id, *ignore)}
        for name, column in self.inputs.items():
            if column.dtype.kind == "f":
                self._where(
                    name,
                    np.isnan(column),
                    "expected a number, got nothing (or leave the column out by env.population.ignore)",
                )
                self._check_size(name)
        test = hash_uniform(self.ids, split_salt) < test_share
        self.customers = {"train": (~test).nonzero()[:, 0], "test": test.nonzero()[:, 0]}
        if min(map(len, self.customers.values())) < 2:
            raise ValueError(f"{path}: {len(self.ids)} customers are too few to keep some for the evaluation")
        # rate ½ and spend 1 are neutral: alpha then is that of utility 0 and margin is the margin rate
        neutral = {"rate": [0.5, 0.5], "spend": [1.0, 0.0], "margin": [1.0, 1.0]}
        own = {{"margin": "margin_rate"}.get(key, key): neutral[key] for key in mapped}
        self.priors = Priors(catalogue, **{**priors, **own})
        train = self.customers["train"].numpy()
        self._apply(FeatureTransform.fit(self.inputs, train, min_level_count, clip_margin, path))
        numbers = {name: column[train] for name, column in self.inputs.items() if column.dtype.kind == "f"}
        self.warnings += [
            f"column '{name}': {far}: an error, or a sign for a missing number?"
            for name, column in numbers.items()
            if (far := describe_far_values(column, far_gap))
        ]

    def _apply(self, transform: FeatureTransform) -> None:
        self.transform, self.features = transform, transform(self.inputs, self.path)
        self.num_features, self.feature_names = self.features.shape[1], transform.names
        clipped = transform.describe_clipped(self.inputs)
        self.warnings = [f"clipped to the range of training: {clipped} customers"] if clipped else []

    def _where(self, name: str, wrong: np.ndarray, problem: str) -> None:
        if wrong.any():
            raise ValueError(f"{self.path}: row {wrong.argmax() + 2}, column '{name}': {problem}")

    def _check_size(self, name: str) -> None:
        column = self.columns[name]
        wrong = np.abs(column) > FLOAT32_MAX
        self._where(name, wrong, f"expected a number that float32 can hold, got {column[wrong.argmax()]:g}")

    def _check_ids(self, name: str) -> None:
        ids = np.asarray(self.ids, dtype=object)
        first: dict[str, int] = {}  # row of each id
        self._where(name, ids == "", "expected an id, got nothing")
        self._where(name, np.array(["\0" in x for x in self.ids]), "expected an id without a NUL byte")
        for k, x in enumerate(self.ids):
            if first.setdefault(x, k) != k:
                raise ValueError(
                    f"{self.path}: row {k + 2}, column '{name}': id '{x}' is that of row {first[x] + 2} too"
                )

    def _money(self, name: str, key: str) -> np.ndarray:
        column = self.columns[name]
        self._where(name, np.isnan(column), "expected a number, got nothing")
        self._check_size(name)
        low, high = {"rate": (0.0, 1.0), "spend": (0.0, math.inf), "margin": (0.0, 1.0)}[key]
        wrong = (column < low) | (column > high) | (column <= 0 if key != "rate" else False)
        kind = {"rate": "a share from 0 to 1", "spend": "money above 0", "margin": "a share above 0, up to 1"}[key]
        if wrong.any():
            self._where(name, wrong, f"expected {kind}, got {column[wrong.argmax()]:g}")
        return column

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split` ("train" or "test") at the start of a season."""
        for warning in self.warnings:
            print(f"warning: {self.path}: {warning}", file=sys.stderr)
        self.warnings = []
        row, device = self.choose(n, generator, split), generator.device
        c = self.priors.draw(n, generator)
        known = {key: x.to(device)[row] for key, x in self.known.items()}
        if "rate" in known:
            c = replace(c, alpha=c.alpha + torch.logit(known["rate"]))
        c = replace(c, margin=c.margin * known.get("spend", 1.0) * known.get("margin", 1.0))
        zeros = torch.zeros_like(row)
        habit = torch.randint(HABITS, (n,), generator=generator, device=device)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=generator, device=device)
        return Sample(
            c, self.features.to(device)[row], CustomerState(habit, zeros, expectation, zeros + SUBSCRIBED), row
        )

    def state_dict(self) -> dict:
        """Return the fitted transform, which defines a policy's features."""
        return {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Use the transform that a policy was trained with."""
        self._apply(FeatureTransform(state["transform"]))
