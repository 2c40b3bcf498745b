"""An exported policy's package (envs/live/package.py) and a shop's table of customers, as a plan reads both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.configuration import instantiate_stored
from envs.live.columns import TEXT, TableColumns
from envs.live.decide import DecisionInputs, Scores
from envs.live.package import Package
from envs.live.package_files import GRAPH, OBSERVATION
from envs.live.plan.deciding import Table
from envs.offers.populations.customer_table import check_ids, days_before
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.history import SeenWeek
from envs.tables.column_kinds import is_date, is_number, to_column

VERSION_DIGITS = 12  # of the checksum


class ExportedPolicy:
    """A package with the methods that a plan calls (envs/live/plan/deciding.py, PolicyPackage)."""

    def __init__(self, package: Package):
        self.package = package
        env = package.manifest["env"]
        # money is summed in float64, and the package's own catalogue is in float32
        catalogue: Catalogue = instantiate_stored(env["catalogue"], str(package.folder))
        self.catalogue = catalogue.to("cpu", torch.float64)
        self.contact_rules = {key: x for key, x in package.contact_rules.items() if not key.startswith("_")}
        self.prices, self.weeks, self.observes_price = package.prices, package.weeks, package.observes_price
        self.version = f"{package.manifest['algorithm']}-{digest_of_decisions(package.manifest)}"
        population = env["population"].get("base", env["population"])  # of a twin's customers
        self.id_column: str | None = population.get("id")
        self.text_columns = {*population.get("text", []), *(x.name for x in package.columns if x.kind == TEXT)}

    def features(self, numbers: Tensor, levels: Tensor) -> Tensor:
        """Return the features of customers, float32 [N, F]."""
        return self.package.features(TableColumns(numbers, levels, {}, {}, {}))

    def start_memory(self, customers: int) -> Tensor:
        """Return the memory of customers without history."""
        return self.package.start_memory(customers)

    def remember(self, memory: Tensor, features: Tensor, week: int, seen: SeenWeek) -> Tensor:
        """Return the memory after a week of the season."""
        return self.package.remember(memory, features, week, seen)

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory with which customers go into a next season."""
        return self.package.next_season(memory)

    def score(self, inputs: DecisionInputs, prices: Tensor | None = None) -> Scores:
        """Score the inputs at prices; None: the package's."""
        return self.package.score(inputs, prices)


def digest_of_decisions(manifest: dict[str, Any]) -> str:
    """Return a checksum of all that a package's decisions depend on: the same policy exported again has the same."""
    env, files = manifest["env"], manifest["files"]
    decides = {
        "files": {name: files[name] for name in (GRAPH, OBSERVATION) if name in files},
        "env": [env["catalogue"], env["contact_rules"], env["world"], env["observation"]],
        **{name: manifest[name] for name in ("columns", "transform", "prices", "drift")},
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:VERSION_DIGITS]


class ColumnsOnDemand(Mapping):
    """The columns of a pyarrow.Table as arrays, each read when a contact rule first asks for it."""

    def __init__(self, table: Any, text: set[str], today: str | None, source: str):
        self.table, self.text, self.today, self.source = table, text, today, source
        self.found: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.found:
            if name not in self.table.column_names:
                raise KeyError(name)
            column = to_column(self.table.column(name), self.source, name, name in self.text, False, "the package")
            if is_date(column) and self.today is None:
                raise ValueError(
                    f"{self.source}: column '{name}': expected the date that its days count to, as in today=2025-11-24"
                )
            self.found |= days_before({name: column}, self.today, "today")
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.column_names)

    def __len__(self) -> int:
        return len(self.table.column_names)

    def __contains__(self, name: object) -> bool:
        return name in self.table.column_names


def read_table_of(
    policy: ExportedPolicy, table: Any, source: str, id: str | None, today: str | None
) -> tuple[Table, list[str]]:
    """Return the customers of a pyarrow.Table, and notes on what was done to their columns.

    Raises ValueError, with row and column, where the table does not fit the package.
    """
    name = id or policy.id_column
    if name is None:
        raise ValueError("id: expected the column of the customers' ids, for the package names none")
    if name not in table.column_names:
        raise ValueError(f"{source}: no column '{name}' (id); there are {', '.join(table.column_names)}")
    ids = to_column(table.column(name), source, name, True, False, "id").tolist()
    check_ids(ids, name, source)
    read = policy.package.read(table, source=source, today=today)
    notes = [
        f"{what}: {', '.join(f'{column} of {n:,}' for column, n in counts.items())}"
        for what, counts in (
            ("held to the range of training", read.clipped),
            ("no number, so the median of training", read.missing),
            ("a text that training did not have", read.unknown),
        )
        if counts
    ]
    columns = ColumnsOnDemand(table, policy.text_columns | {name}, today, source)
    return Table(ids, columns, read.numbers, read.levels), notes


def dates_of(table: Any, name: str, key: str) -> np.ndarray:
    """Return a column of dates of a pyarrow.Table, datetime64 [N], NaT where there is none.

    Raises ValueError where the column is missing or holds no dates; `key` is that of the plan which names it.
    """
    if name not in table.column_names:
        raise ValueError(f"customers: no column '{name}' ({key}); there are {', '.join(table.column_names)}")
    dates = to_column(table.column(name), "customers", name, False, False, "the package")
    if is_date(dates):
        return dates
    if is_number(dates) or (dates != "").any():
        raise ValueError(f"customers: column '{name}': expected dates, year-month-day, or nothing ({key})")
    return np.full(len(dates), np.datetime64("NaT"))
