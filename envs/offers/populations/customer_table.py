"""The user's own customers: a CSV or Parquet file, one row a customer, its columns named in YAML."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from envs.offers.populations.base import GivenCustomers, Priors, Sample, hash_uniform
from envs.offers.populations.drift import describe_drift, profile
from envs.offers.populations.feature_transform import FeatureTransform
from envs.offers.populations.known_parameters import KnownParameters
from envs.offers.populations.true_parameters import read_parameters
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, CustomerState
from envs.tables.column_kinds import Columns, is_date, is_number
from envs.tables.far_values import describe_far_values
from envs.tables.table_reader import check_ids, read_table
from envs.value_ranges import FLOAT32_MAX

PRIOR_OF = {"rate": "rate", "spend": "spend", "margin": "margin_rate"}  # the prior of each parameter
NEUTRAL = {"rate": [0.5, 0.5], "spend": [1.0, 0.0], "margin_rate": [1.0, 1.0]}


class CustomerTable(GivenCustomers):
    """Customers of the user's file, split into train and test by a hash of their id, alike in every table.

    `id`, `rate`, `spend` and `margin` name columns: the id, the share of weeks with a purchase (clamped to
    `rate_range`), the money spent in such a week, and the gross margin as a share (at least `least_margin`). Where a
    name is null, the parameter is drawn from the priors at every draw, like all other parameters; KnownParameters says
    what a customer without an entry gets. All columns but the id and those in `ignore` are features, clipped to the
    range of the train customers and `clip_margin`. Dates become days before `reference_date` (null: the latest date in
    the table). Contact rules may read any column.

    `parameters` is a file with each customer's θ (envs/offers/populations/true_parameters.py), in the place of all that
    is said above of parameters: the truth of a made-up shop, to judge policies in. None: there is no such file.

    The first draw warns of columns that were clipped, and of train customers whose number lies further from all other
    customers' than `far_gap` times the others' range, or looks like a sign for a missing number.
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
        parameters: str | None,
        text: list,
        ignore: list,
        reference_date: str | None,
        rate_range: list,
        least_margin: float,
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
        own = {"rate": rate, "spend": spend, "margin": margin}
        mapped = {key: name for key, name in own.items() if name}
        columns = read_table(
            path,
            separator,
            text=[*text, id],
            numbers=list(mapped.values()),
            rows="customers",
            where="env.population",
        )
        assert path is not None  # read_table refuses to read without a path
        self.path, self.clip_margin, self.text = path, clip_margin, text
        for key, name in (("id", id), *mapped.items(), *(("text", x) for x in text), *(("ignore", x) for x in ignore)):
            if name not in columns:
                raise ValueError(f"{path}: no column '{name}' (env.population.{key}); there are {', '.join(columns)}")
        self.dates = {name: column for name, column in columns.items() if is_date(column)}
        self.columns = days_before(columns, reference_date, "env.population")
        self.ids = self.columns[id].tolist()
        check_ids(self.ids, id, path)
        self.inputs = {name: column for name, column in self.columns.items() if name not in (id, *ignore)}
        for name, column in self.inputs.items():
            if is_number(column):
                self._check_size(name)
        test = hash_uniform(self.ids, split_salt) < test_share
        self.customers = {"train": (~test).nonzero()[:, 0], "test": test.nonzero()[:, 0]}
        if min(map(len, self.customers.values())) < 2:
            raise ValueError(f"{path}: {len(self.ids)} customers are too few to keep some for the evaluation")
        train = self.customers["train"].numpy()
        low, high = rate_range
        self.parameters = KnownParameters(self.columns, mapped, train, (low, high), least_margin, path)
        # rate ½ and spend 1 are neutral: alpha then is that of utility 0 and margin is the margin rate
        neutral = {PRIOR_OF[key]: NEUTRAL[PRIOR_OF[key]] for key in mapped}
        self.priors = Priors(catalogue, **{**priors, **neutral})
        self.theta = read_parameters(parameters, separator, self.ids, catalogue.channels) if parameters else None
        drawn = [
            f"note: env.population.{key}=null: the {key} of each customer is drawn anew in every season from "
            f"env.population.priors.{PRIOR_OF[key]}={priors[PRIOR_OF[key]]}"
            for key, name in own.items()
            if not name and parameters is None
        ]
        transform = FeatureTransform.fit(self.inputs, train, min_level_count, clip_margin, path, "env.population")
        numbers = {name: column[train] for name, column in self.inputs.items() if is_number(column)}
        self.warnings = drawn + [
            f"warning: {path}: column '{name}': {far}: an error, or a sign for a missing number?"
            for name, column in numbers.items()
            if (far := describe_far_values(column, far_gap))
        ]
        self.profile = profile(self.inputs, train)
        self._apply(transform)

    def _apply(self, transform: FeatureTransform) -> None:
        self.known = {key: torch.from_numpy(x) for key, x in self.parameters.values().items()}
        self.transform, self.features = transform, transform(self.inputs, self.path)
        self.num_features, self.feature_names = self.features.shape[1], transform.names
        self.messages = [f"note: {self.path}: {note}" for note in self.parameters.notes()]
        gaps = transform.describe_gaps(self.inputs)
        if gaps:
            self.messages.append(
                f"note: {self.path}: customers without a number get the column's median in training: {gaps}"
            )
        clipped = transform.describe_clipped(self.inputs)
        if clipped:
            self.messages.append(f"warning: {self.path}: clipped to the range of training: {clipped} customers")

    def _where(self, name: str, wrong: np.ndarray, problem: str) -> None:
        if wrong.any():
            raise ValueError(f"{self.path}: row {wrong.argmax() + 2}, column '{name}': {problem}")

    def _check_size(self, name: str) -> None:
        column = self.columns[name]
        wrong = np.abs(column) > FLOAT32_MAX
        self._where(name, wrong, f"expected a number that float32 can hold, got {column[wrong.argmax()]:g}")

    def sample(self, row: Tensor, generator: torch.Generator) -> Sample:
        """Return the customers of some rows, int64 [n], at the start of a season; the first call prints messages."""
        for message in (*self.warnings, *self.messages):
            print(message, file=sys.stderr)
        self.warnings, self.messages = [], []
        n, device = len(row), generator.device
        c = self.priors.draw(n, generator)
        known = {key: x.to(device)[row] for key, x in self.known.items()}
        if "rate" in known:
            c = replace(c, alpha=c.alpha + torch.logit(known["rate"]))
        c = replace(c, margin=c.margin * known.get("spend", 1.0) * known.get("margin", 1.0))
        if self.theta is not None:
            c = self.theta.map(lambda x: x.to(device))[row]
        zeros = torch.zeros_like(row)
        habit = torch.randint(HABITS, (n,), generator=generator, device=device)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=generator, device=device)
        return Sample(
            c, self.features.to(device)[row], CustomerState(habit, zeros, expectation, zeros + SUBSCRIBED), row
        )

    def state_dict(self) -> dict:
        """Return the fitted transform, which defines a policy's features, and what unknown parameters are filled by."""
        return {
            "transform": self.transform.state_dict(),
            "medians": self.parameters.medians,
            "profile": self.profile,
        }

    def load_state_dict(self, state: dict) -> None:
        """Use the transform that a policy was trained with."""
        self.parameters.medians |= state["medians"]
        self._apply(FeatureTransform(state["transform"]))
        moved = describe_drift(state["profile"], self.inputs, self.customers["train"].numpy())
        if moved:
            self.messages.append(
                f"warning: {self.path}: customers differ from those of training, population stability index: "
                f"{', '.join(moved)}"
            )
        self.profile = state["profile"]


def days_before(columns: Columns, reference_date: str | None, where: str) -> Columns:
    """Return columns whose dates are days before a date (null: the latest in the table), NaN where there is none.

    `where` is the part of the configuration that names the date. Raises ValueError where the date is none.
    """
    dates = [column for column in columns.values() if is_date(column)]
    if not dates:
        return columns
    try:
        reference = np.datetime64(reference_date, "D") if reference_date else np.nanmax(np.concatenate(dates))
    except ValueError:
        raise ValueError(
            f"{where}.reference_date: expected null or a date, year-month-day, got {reference_date}"
        ) from None
    day = np.timedelta64(1, "D")
    return {name: (reference - column) / day if is_date(column) else column for name, column in columns.items()}
