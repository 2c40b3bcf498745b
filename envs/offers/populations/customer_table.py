"""The user's own customers: a CSV or Parquet file, one row a customer, its columns named in YAML."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.populations.synthetic import Priors, Sample
from envs.offers.constraints.contact_rules import lots
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, State

Columns = dict[str, np.ndarray]  # floats (NaN: no entry) or strings ("": none), all of one length
OTHER, EMPTY = "other", "(empty)"  # levels that stand for rare or unknown ones, and for no entry


def read(path: str, separator: str, text: list[str], numbers: list[str]) -> Columns:
    """Return a file's columns; raise ValueError, with file, row and column, on what is not a table of customers.

    A column is of numbers where the file says so (Parquet) or where most of its entries are numbers, unless it is named
    in `text`; then, and in the columns `numbers`, every entry must be one. Line ends and a byte-order mark don't matter.
    Messages count rows from 1, the header's.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ValueError("env.population: table needs the package 'pandas': pip install -e '.[data]'") from error
    if not path:
        raise ValueError("env.population.path: expected the path of a CSV or Parquet file")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (env.population.path)")
    try:
        if Path(path).suffix.lower() in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig",
                                index_col=False)
            frame = frame.set_axis(frame.iloc[0], axis=1).iloc[1:].reset_index(drop=True)
    except (ValueError, OSError, ImportError) as error:  # pandas' parser errors and bad UTF-8 are ValueErrors
        raise ValueError(f"{path}: can't be read as a table: {str(error).splitlines()[0]}") from error
    if not len(frame):
        raise ValueError(f"{path}: expected customers, got no row")
    frame.columns = [str(name).strip() for name in frame.columns]
    double = frame.columns[frame.columns.duplicated()]
    if len(double):
        raise ValueError(f"{path}: column '{double[0]}' comes twice")
    return {name: _column(frame[name], path, name in text, name in numbers) for name in frame}


def _column(series, path: str, text: bool, number: bool) -> np.ndarray:
    import pandas as pd
    if not text and (pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series)):
        values = series.to_numpy(dtype=float, na_value=np.nan)
        return np.where(np.isfinite(values), values, np.nan)
    # what a whole number or a flag is called does not depend on the kind of file
    strings = series.astype(object).where(series.notna(), "").astype(str).str.strip()
    if text:
        return strings.to_numpy(dtype=object)
    filled = strings[strings != ""]
    values = pd.to_numeric(strings.where(strings != "", None), errors="coerce")
    values = values.where(np.isfinite(values.astype(float)))
    wrong = filled.index[values[filled.index].isna()]
    if len(wrong) and (number or len(wrong) < len(filled) / 2):
        hint = "" if number else " (a column of text is named in env.population.text)"
        row = strings.index.get_loc(wrong[0]) + 2
        raise ValueError(f"{path}: row {row}, column '{series.name}': expected a number, got "
                         f"'{filled[wrong[0]]}'{hint}")
    if len(wrong) or not len(filled) and not number:
        return strings.to_numpy(dtype=object)
    return values.to_numpy(dtype=float)


class Transform:
    """Turn columns into features [H, F]: numbers standardised, text one column a level, rare levels joined in "other".

    What it was fitted on is all that it knows: a level that is new later counts as other (as none where nothing was
    rare). An empty text is a level of its own. `state` is what `state_dict` gave.
    """

    def __init__(self, state: dict):
        self.numbers, self.levels = state["numbers"], state["levels"]  # {name: [mean, sd]}, {name: [level, …]}

    @classmethod
    def fit(cls, columns: Columns, rows: np.ndarray, rare: int, path: str) -> Transform:
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
                raise ValueError(f"{path}: column '{name}': none of its {len(values)} different texts has {rare} "
                                 "customers (env.population.rare_level); leave it out by env.population.ignore")
            levels[name] = kept + [OTHER] * (len(kept) < len(values) and OTHER not in kept)
        return cls({"numbers": numbers, "levels": levels})

    @property
    def names(self) -> list[str]:
        """What each feature is."""
        return [*self.numbers, *(f"{name}: {level}" for name, levels in self.levels.items() for level in levels)]

    def __call__(self, columns: Columns, path: str) -> Tensor:
        """Return features [H, F], float64; raise ValueError where a column is missing or of another kind."""
        features = []
        for name in (*self.numbers, *self.levels):
            if name not in columns:
                raise ValueError(f"{path}: expected a column '{name}', which the policy was trained on; there are "
                                 f"{', '.join(columns)}")
            if (columns[name].dtype.kind == "f") != (name in self.numbers):
                kind = "numbers" if name in self.numbers else "text"
                raise ValueError(f"{path}: column '{name}': expected {kind}, as in the table that the policy was "
                                 "trained on")
        for name, (mean, sd) in self.numbers.items():
            features.append((columns[name] - mean) / sd)
        for name, levels in self.levels.items():
            column = _levels(columns[name])
            column = np.where(np.isin(column, levels), column, OTHER)
            features += [(column == level).astype(float) for level in levels]
        return torch.tensor(np.stack(features, 1))

    def state_dict(self) -> dict:
        """Numbers and strings that make the transform again."""
        return {"numbers": self.numbers, "levels": self.levels}


def _levels(column: np.ndarray) -> np.ndarray:
    return np.where(column == "", EMPTY, column).astype(str)


class Table:
    """Customers drawn from the user's file, split into train and test by their id, so the same way in every table.

    `id`, `rate`, `spend` and `margin` name columns: purchases a week (a share, kept within `rate_range`), money in a week
    with a purchase, gross margin (a share); null for one that is not known and so drawn from the priors, as all other
    parameters are, anew at every draw. All columns but the id and those in `ignore` are features. Rules may read any.
    """

    def __init__(self, catalogue: Catalogue, *, path: str | None, separator: str, id: str, rate: str | None,
                 spend: str | None, margin: str | None, text: list, ignore: list, rate_range: list, rare_level: int,
                 test_share: float, split_salt: int, priors: dict):
        if not 0 < test_share < 1:
            raise ValueError(f"env.population.test_share: expected a share between 0 and 1, got {test_share}")
        if not 0 < rate_range[0] < rate_range[1] < 1:
            raise ValueError(f"env.population.rate_range: expected two shares between 0 and 1, got {rate_range}")
        mapped = {key: name for key, name in (("rate", rate), ("spend", spend), ("margin", margin)) if name}
        self.path = path
        self.columns = read(path, separator, [*text, id], list(mapped.values()))
        for key, name in (("id", id), *mapped.items(), *(("text", x) for x in text), *(("ignore", x) for x in ignore)):
            if name not in self.columns:
                raise ValueError(f"{path}: no column '{name}' (env.population.{key}); there are "
                                 f"{', '.join(self.columns)}")
        self.ids = self.columns[id].tolist()
        self._check_ids(id)
        held = {key: self._money(name, key) for key, name in mapped.items()}
        self.known = {key: torch.tensor(x) for key, x in held.items()}
        if rate:
            self.known["rate"] = self.known["rate"].clamp(*rate_range)
        self.inputs = {name: column for name, column in self.columns.items() if name not in (id, *ignore)}
        for name, column in self.inputs.items():
            if column.dtype.kind == "f":
                self._where(name, np.isnan(column), "expected a number, got nothing (or leave the column out by "
                                                    "env.population.ignore)")
        test = lots(self.ids, split_salt) < test_share
        self.customers = {"train": (~test).nonzero()[:, 0], "test": test.nonzero()[:, 0]}
        if min(map(len, self.customers.values())) < 2:
            raise ValueError(f"{path}: {len(self.ids)} customers are too few to keep some for the evaluation")
        # rate ½ and spend 1 are neutral: alpha then is that of utility 0 and margin is the margin rate
        neutral = {"rate": [0.5, 0.5], "spend": [1.0, 0.0], "margin": [1.0, 1.0]}
        own = {{"margin": "margin_rate"}.get(key, key): neutral[key] for key in mapped}
        self.priors = Priors(catalogue, **{**priors, **own})
        self._apply(Transform.fit(self.inputs, self.customers["train"].numpy(), rare_level, path))

    def _apply(self, transform: Transform) -> None:
        self.transform, self.features = transform, transform(self.inputs, self.path)
        self.num_features, self.feature_names = self.features.shape[1], transform.names

    def _where(self, name: str, wrong: np.ndarray, problem: str) -> None:
        if wrong.any():
            raise ValueError(f"{self.path}: row {wrong.argmax() + 2}, column '{name}': {problem}")

    def _check_ids(self, name: str) -> None:
        ids, first = np.asarray(self.ids, dtype=object), {}
        self._where(name, ids == "", "expected an id, got nothing")
        for k, x in enumerate(self.ids):
            if first.setdefault(x, k) != k:
                raise ValueError(f"{self.path}: row {k + 2}, column '{name}': id '{x}' is that of row {first[x] + 2} too")

    def _money(self, name: str, key: str) -> np.ndarray:
        column = self.columns[name]
        self._where(name, np.isnan(column), "expected a number, got nothing")
        low, high = {"rate": (0.0, 1.0), "spend": (0.0, math.inf), "margin": (0.0, 1.0)}[key]
        wrong = (column < low) | (column > high) | (column <= 0 if key != "rate" else False)
        kind = {"rate": "a share from 0 to 1", "spend": "money above 0", "margin": "a share above 0, up to 1"}[key]
        if wrong.any():
            self._where(name, wrong, f"expected {kind}, got {column[wrong.argmax()]:g}")
        return column

    def choose(self, n: int, generator: torch.Generator, split: str) -> Tensor:
        """Return n rows of the customers of `split`, int64 [n]; none comes again before all have come."""
        rows, device = self.customers[split].to(generator.device), generator.device
        rounds = -(-n // len(rows))
        return torch.cat([rows[torch.randperm(len(rows), generator=generator, device=device)] for _ in range(rounds)])[:n]

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split` ("train" or "test") at the start of a season."""
        row, device = self.choose(n, generator, split), generator.device
        c = self.priors.draw(n, generator)
        known = {key: x.to(device)[row] for key, x in self.known.items()}
        if "rate" in known:
            c = replace(c, alpha=c.alpha + torch.logit(known["rate"]))
        c = replace(c, margin=c.margin * known.get("spend", 1.0) * known.get("margin", 1.0))
        zeros = torch.zeros_like(row)
        habit = torch.randint(HABITS, (n,), generator=generator, device=device)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=generator, device=device)
        return Sample(c, self.features.to(device)[row], State(habit, zeros, expectation, zeros + SUBSCRIBED), row)

    def state_dict(self) -> dict:
        """The fitted transform: what a policy's features mean."""
        return {"transform": self.transform.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """See these customers by the transform that a policy was trained with."""
        self._apply(Transform(state["transform"]))
