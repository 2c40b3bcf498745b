"""Datasets on disk: Parquet or CSV, read and written in chunks, so that they may be larger than memory.

Columns, of an action of K heads: unit (number or text), episode, step, policy, price; action_0 … action_K-1;
propensity of the action taken; reward, outcomes, cost, terminal_value; terminated, truncated; feature_0 … (the static
part of an observation), state_0 … (the rest), next_state_0 …; valid_I_J … and next_valid_I_J … (the masks, one column a
combination of the heads); prob_I_J … (probabilities of all combinations). ColumnNames has the names of fields that a
kind of file calls otherwise. Columns in `DEFAULTS`, outcomes, policy, prob_* and all of next_* may be left out; a
dataset has the outcomes that its file has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from rlcore.distributions import flatten
from rlcore.offline import log_header
from rlcore.offline.file_columns import ChunkReader, arrow, combinations, numbered, to_columns
from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset, check_rows, named_rows
from rlcore.offline.parquet_files import parquet_writer
from rlcore.runs import checkpoint

NAMED_COLUMNS = 8  # columns of a file that a message names
CSV_BLOCK = 1 << 24  # bytes read at once
FLOAT = 4  # bytes of a number of an observation
BYTES_PER_DECISION = 80  # of a dataset's fields beside its matrices
DEFAULTS: dict[str, float] = {  # bool and int are numbers too
    "episode": 0,
    "step": 0,
    "price": 0.0,
    "propensity": math.nan,
    "cost": 0.0,
    "terminal_value": 0.0,
    "terminated": True,
    "truncated": False,
}


def write_log(path: Path | str, parts: Iterable[LoggedDataset]) -> int:
    """Write chunks of one dataset as they come to Parquet or CSV (by the file's ending); return the number of rows.

    The file appears whole or not at all.
    """
    pa = arrow()
    path = Path(path)
    check_writable(path)
    is_csv = log_header.is_csv(path)
    rows = 0

    def fill(temporary: Path) -> None:
        nonlocal rows
        writer = None
        try:
            for part in parts:
                columns = to_columns(part)
                table = pa.table(columns)
                if writer is None:
                    repetitive = [name for name in table.column_names if "state_" in name or name == "policy"]
                    writer = (
                        csv_writer(temporary, table.schema)
                        if is_csv
                        else parquet_writer(temporary, table.schema, repetitive)
                    )
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


def check_writable(path: Path) -> None:
    """Raise ValueError where no log is written under a name, because of its ending."""
    if log_header.is_csv(path) and path.suffix.lower() != ".csv":
        raise ValueError(f"{path}: expected the name of a log to write to end in .parquet or .csv")


def csv_writer(path: Path, schema):
    """Open a CSV file of a pyarrow.Schema."""
    return arrow().csv.CSVWriter(str(path), schema)


class Reader:
    """A dataset on disk, read in chunks of `rows` decisions; `columns` has the fields' names in the file.

    Raises ValueError, with file, rows and column, where the file holds no such dataset.
    """

    def __init__(self, path: Path | str, columns: ColumnNames, rows: int = 65536):
        self.pa = arrow()
        self.path = Path(path)
        self.columns = columns
        self.rows = rows
        if not self.path.is_file():
            raise ValueError(f"{path}: no such log")
        self.is_csv = log_header.is_csv(self.path)
        try:
            self.names = log_header.column_names(self.path)
        except (self.pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise self._unreadable(error) from error
        self.nvec = log_header.action_sizes(self.path, self.names)
        self.static = log_header.numbered_names(self.path, self.names, "feature")
        self.dynamic = log_header.numbered_names(self.path, self.names, "state")
        self.valid = combinations("valid", self.nvec)
        self.actions = numbered("action", len(self.nvec))
        self.probs = combinations("prob", self.nvec)
        self.next_dynamic = [f"next_{name}" for name in self.dynamic]
        self.next_valid = [f"next_{name}" for name in self.valid]
        self.has_next = "next_state_0" in self.names or any(name in self.names for name in self.next_valid)
        self.has_probs = all(name in self.names for name in self.probs)
        self._check_columns()
        self.units: dict[str, int] = {}  # numbers of units that are texts
        self.policies: dict[str, int] = {}

    def _check_columns(self) -> None:
        """Raise ValueError where a column that every log needs is missing."""
        columns = self.columns
        needed = [columns.unit, *self.actions, columns.reward, *self.valid]
        if self.has_next:
            needed += [*self.next_dynamic, *self.next_valid, "terminated"]
        if any(name in self.names for name in self.probs):
            needed += self.probs
        for name in needed:
            if name not in self.names:
                shown = ", ".join(self.names[:NAMED_COLUMNS])
                raise ValueError(f"{self.path}: no column '{name}'; there are {shown}, …")
        if not self.static and not self.dynamic:
            raise ValueError(
                f"{self.path}: expected columns feature_0 … or state_0 …: what was known of a {columns.unit}"
            )

    def _unreadable(self, error: Exception) -> ValueError:
        reason = str(error).splitlines()[0]
        return ValueError(f"{self.path}: can't be read as a log: {reason}")

    def __iter__(self) -> Iterator[LoggedDataset]:
        """Read the dataset chunk by chunk, each of them checked."""
        first = 0
        try:
            for batch in self._batches():
                for start in range(0, batch.num_rows, self.rows):
                    part = batch.slice(start, self.rows)
                    chunk = ChunkReader(self.path, part, first)
                    dataset = self._dataset(chunk)
                    check_rows(dataset, str(self.path))
                    first += part.num_rows
                    yield dataset
        except (self.pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        if not first:
            raise ValueError(f"{self.path}: expected decisions, got no row")

    def _batches(self) -> Iterable:
        """Read the file in batches; the cells of a CSV file stay texts, so that a message can quote a bad one."""
        if not self.is_csv:
            return self.pa.parquet.ParquetFile(self.path, page_checksum_verification=True).iter_batches(self.rows)
        csv = self.pa.csv
        text = self.pa.string()
        types = dict.fromkeys(self.names, text)
        convert_options = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        read_options = csv.ReadOptions(block_size=CSV_BLOCK)
        file = log_header.open_csv(self.path)
        return csv.open_csv(file, convert_options=convert_options, read_options=read_options)

    def _dataset(self, chunk: ChunkReader) -> LoggedDataset:
        n = chunk.size
        columns = self.columns
        unit_is_number = not self.is_csv and chunk.is_whole(columns.unit)
        features = chunk.matrix(chunk.number, self.static)
        action = self._action(chunk)
        next_obs = None
        next_action_mask = None
        if self.has_next:
            next_state = chunk.matrix(chunk.number, self.next_dynamic)
            next_obs = torch.cat((features, next_state), 1)
            next_action_mask = chunk.matrix(chunk.flag, self.next_valid)
        policy = torch.zeros(n, dtype=torch.int64)
        if "policy" in self.names:
            policy = chunk.coded("policy", self.policies)
        state = chunk.matrix(chunk.number, self.dynamic)
        flat_action = flatten(action, self.nvec)
        propensity = chunk.double("propensity", DEFAULTS["propensity"])
        probs = chunk.matrix(chunk.number, self.probs) if self.has_probs else None
        if probs is not None and "propensity" not in self.names:
            propensity = probs.double().gather(1, flat_action[:, None])[:, 0]
        unit = chunk.whole(columns.unit) if unit_is_number else chunk.coded(columns.unit, self.units)
        return LoggedDataset(
            nvec=self.nvec,
            static_dim=len(self.static),
            policies=tuple(self.policies) or ("log",),
            names=columns,
            unit_names=tuple(self.units),
            row=chunk.row,
            unit=unit,
            episode=chunk.whole(columns.episode, DEFAULTS["episode"]),
            step=chunk.whole(columns.step, DEFAULTS["step"]),
            policy=policy,
            obs=torch.cat((features, state), 1),
            action_mask=chunk.matrix(chunk.flag, self.valid),
            action=flat_action,
            propensity=propensity,
            probs=probs,
            price=chunk.number("price", DEFAULTS["price"]),
            reward=chunk.number(columns.reward),
            outcomes={name: chunk.number(name) for name in columns.outcomes if name in self.names},
            cost=chunk.number(columns.cost, DEFAULTS["cost"]),
            terminal_value=chunk.number(columns.terminal_value, DEFAULTS["terminal_value"]),
            next_obs=next_obs,
            next_action_mask=next_action_mask,
            terminated=chunk.flag("terminated", DEFAULTS["terminated"]),
            truncated=chunk.flag("truncated", DEFAULTS["truncated"]),
        )

    def _action(self, chunk: ChunkReader) -> torch.Tensor:
        """Read the choices of the action's heads, int64 [n, K]; raise ValueError where one is not of its head."""
        action = chunk.matrix(chunk.whole, self.actions)
        sizes = torch.tensor(self.nvec)
        outside = ((action < 0) | (action >= sizes)).any(1)
        if outside.any():
            rows = named_rows(outside, chunk.row)
            got = action[outside][0].tolist()
            raise ValueError(f"{self.path}: {rows}, column 'action_*': expected an action of {self.nvec}, got {got}")
        return action


def read_log(
    path: Path | str, columns: ColumnNames, transform: Callable[[LoggedDataset], LoggedDataset] | None = None
) -> LoggedDataset:
    """Read a whole dataset, chunk by chunk; `transform`, which may store repeated rows once, is applied to each chunk.

    Raises ValueError where the dataset does not fit into memory.
    """
    reader = Reader(path, columns)
    matrices = 0 if transform else FLOAT * (len(reader.static) + len(reader.dynamic)) + len(reader.valid)
    if reader.has_next:
        matrices *= 2
    log_header.check_memory(reader.path, BYTES_PER_DECISION + matrices)
    chunks = [transform(chunk) if transform else chunk for chunk in reader]
    return LoggedDataset.cat(chunks)
