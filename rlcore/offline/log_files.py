"""Datasets on disk: Parquet or CSV, read and written in chunks, so that they may be larger than memory.

Columns, of an action of K heads: decision, unit (number or text), episode, step, policy, price; action_0 … action_K-1;
propensity of the action taken; reward, outcomes, cost, terminal_value; terminated, truncated; feature_0 … (the static part
of an observation), state_0 … (the rest), next_state_0 …; valid_I_J … and next_valid_I_J … (the masks, one column a
combination of the heads); prob_I_J … (probabilities of all combinations). ColumnNames has what a file calls the fields of
its own. Columns in `DEFAULTS`, outcomes, decision, policy, prob_* and all of next_* may be left out.
"""
from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Callable, Iterable, Iterator

import torch

from rlcore import checkpoint
from rlcore.distributions import flatten
from rlcore.offline.file_columns import ChunkReader, arrow, combinations, to_columns
from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset, check, named_rows

DEFAULTS = {"episode": 0, "step": 0, "price": 0.0, "propensity": math.nan, "outcomes": 0.0, "cost": 0.0,
            "terminal_value": 0.0, "terminated": True, "truncated": False}


def write(path: Path | str, parts: Iterable[LoggedDataset]) -> int:
    """Write chunks of one dataset as they come to Parquet (or, by its ending, CSV), whole or not at all; return its rows."""
    pa, path, rows = arrow(), Path(path), 0
    writing = pa.csv.CSVWriter if path.suffix == ".csv" else lambda file, schema: pa.parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=[x for x in schema.names if "state_" in x or x == "policy"])

    def fill(temporary: Path) -> None:
        nonlocal rows
        writer = None
        try:
            for part in parts:
                table = pa.table(to_columns(part))
                writer = writer or writing(str(temporary), table.schema)
                writer.write_table(table)
                rows += len(part)
        finally:
            if writer:
                writer.close()
        if not rows:
            raise ValueError(f"{path}: no decision to write")

    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic(path, fill)
    return rows


class Reader:
    """A dataset on disk, read in chunks of `rows`, its fields called by `columns` in the file.

    Raises ValueError, with file, rows and column, where the file holds no such dataset.
    """

    def __init__(self, path: Path | str, columns: ColumnNames, rows: int = 65536):
        self.pa, self.path, self.columns, self.rows = arrow(), Path(path), columns, rows
        if not self.path.is_file():
            raise ValueError(f"{path}: no such log")
        try:
            if self.path.suffix == ".csv":
                with open(self.path, encoding="utf-8-sig", newline="") as file:
                    names = [name.strip().strip('"') for name in file.readline().rstrip("\r\n").split(",")]
            else:
                names = self.pa.parquet.read_schema(self.path).names
        except (self.pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise self._unreadable(error) from error
        self.names = names
        self.nvec = self._heads()
        self.static, self.dynamic = (self._numbered(prefix) for prefix in ("feature", "state"))
        self.valid, self.actions = combinations("valid", self.nvec), [f"action_{k}" for k in range(len(self.nvec))]
        self.following = [name for name in (*self._numbered("next_state"), *combinations("next_valid", self.nvec))
                          if name in names]
        needed = [columns.unit, *self.actions, columns.reward, *self.valid]
        if self.following:
            needed += [f"next_{name}" for name in (*self.dynamic, *self.valid)] + ["terminated"]
        lacking = [name for name in needed if name not in names]
        if lacking:
            raise ValueError(f"{self.path}: no column '{lacking[0]}'; there are {', '.join(names[:8])}, …")
        if not self.static + self.dynamic:
            raise ValueError(f"{self.path}: expected columns feature_0 … or state_0 …: what was known of a {columns.unit}")
        self.units: dict[str, int] = {}
        self.policies: dict[str, int] = {}

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path}: can't be read as a log: {str(error).splitlines()[0]}")

    def _numbered(self, prefix: str) -> list[str]:
        return list(itertools.takewhile(lambda name: name in self.names, (f"{prefix}_{k}" for k in itertools.count())))

    def _heads(self) -> tuple[int, ...]:
        pairs = [name.split("_")[1:] for name in self.names if name.startswith("valid_")]
        if not pairs or not all(x.isdigit() for pair in pairs for x in pair) or len({len(pair) for pair in pairs}) > 1:
            raise ValueError(f"{self.path}: expected columns valid_0_0 …, one for each combination of an action's parts")
        return tuple(1 + max(map(int, head)) for head in zip(*pairs))

    def __iter__(self) -> Iterator[LoggedDataset]:
        first = 0
        try:
            for batch in self._batches():
                for start in range(0, batch.num_rows, self.rows):
                    part = batch.slice(start, self.rows)
                    dataset = self._dataset(ChunkReader(self.path, part, first))
                    check(dataset, str(self.path), first)
                    first += part.num_rows
                    yield dataset
        except self.pa.ArrowException as error:
            raise self._unreadable(error) from error
        if not first:
            raise ValueError(f"{self.path}: expected decisions, got no row")

    def _batches(self) -> Iterable:
        pa = self.pa
        if self.path.suffix != ".csv":
            return pa.parquet.ParquetFile(self.path).iter_batches(self.rows)
        texts = pa.csv.ConvertOptions(column_types={name: pa.string() for name in self.names}, strings_can_be_null=True,
                                      null_values=[""])
        return pa.csv.open_csv(self.path, convert_options=texts, read_options=pa.csv.ReadOptions(block_size=1 << 24))

    def _dataset(self, chunk: ChunkReader) -> LoggedDataset:
        n, columns = chunk.size, self.columns
        unit_is_number = self.path.suffix != ".csv" and chunk.is_whole(columns.unit)
        features = chunk.matrix(chunk.number, self.static)
        action = chunk.matrix(chunk.whole, self.actions)
        outside = ((action < 0) | (action >= torch.tensor(self.nvec))).any(1)
        if outside.any():
            raise ValueError(f"{self.path}: {named_rows(outside, chunk.first)}, column 'action_*': expected an action of "
                             f"{self.nvec}, got {action[outside][0].tolist()}")
        probs = combinations("prob", self.nvec)
        next_obs = next_action_mask = None
        if self.following:
            next_obs = torch.cat((features, chunk.matrix(chunk.number, [f"next_{name}" for name in self.dynamic])), 1)
            next_action_mask = chunk.matrix(chunk.flag, [f"next_{name}" for name in self.valid])
        policy = chunk.coded("policy", self.policies) if "policy" in self.names else torch.zeros(n, dtype=torch.int64)
        return LoggedDataset(
            nvec=self.nvec,
            static_dim=len(self.static),
            policies=tuple(self.policies) or ("log",),
            names=columns,
            decision=chunk.whole("decision") if "decision" in self.names else chunk.first + torch.arange(n),
            unit=chunk.whole(columns.unit) if unit_is_number else chunk.coded(columns.unit, self.units),
            episode=chunk.whole(columns.episode, DEFAULTS["episode"]),
            step=chunk.whole(columns.step, DEFAULTS["step"]),
            policy=policy,
            obs=torch.cat((features, chunk.matrix(chunk.number, self.dynamic)), 1),
            action_mask=chunk.matrix(chunk.flag, self.valid),
            action=flatten(action, self.nvec),
            propensity=chunk.double("propensity", DEFAULTS["propensity"]),
            probs=chunk.matrix(chunk.number, probs) if all(name in self.names for name in probs) else None,
            price=chunk.number("price", DEFAULTS["price"]),
            reward=chunk.number(columns.reward),
            outcomes={name: chunk.number(name, DEFAULTS["outcomes"]) for name in columns.outcomes},
            cost=chunk.number(columns.cost, DEFAULTS["cost"]),
            terminal_value=chunk.number(columns.terminal_value, DEFAULTS["terminal_value"]),
            next_obs=next_obs,
            next_action_mask=next_action_mask,
            terminated=chunk.flag("terminated", DEFAULTS["terminated"]),
            truncated=chunk.flag("truncated", DEFAULTS["truncated"]))


def read(path: Path | str, columns: ColumnNames,
         transform: Callable[[LoggedDataset], LoggedDataset] = lambda chunk: chunk) -> LoggedDataset:
    """Read a whole dataset, keeping of each chunk what `transform` returns."""
    return LoggedDataset.cat([transform(chunk) for chunk in Reader(path, columns)])
