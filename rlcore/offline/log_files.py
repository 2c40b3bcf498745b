"""Logs of decisions on disk: Parquet or CSV, read and written in chunks, so that they may be larger than memory.

Columns, K heads of the action: decision, customer (number or text), season, week, policy; price (of money);
feature_0 … (what holds all season), state_0 … (the rest of what was observed), next_state_0 …; valid_I_J … and
next_valid_I_J … (one a combination of the heads); action_0 … action_K-1; propensity of the action taken, and of all
combinations prob_I_J … if you like; profit, trips, redeemed, spend as they came true; terminal, what the state after
the last decision is worth; terminated, truncated. What `DEFAULTS` names may be left out.
"""
from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterable, Iterator

import torch
from torch import Tensor

from rlcore import checkpoint
from rlcore.distributions import flatten, unflatten
from rlcore.offline.logged_dataset import OUTCOMES, Logged, check, named_rows

KEYS = ("decision", "customer", "season", "week", "policy")
ENDS = ("terminated", "truncated")
DEFAULTS = {"season": 0, "week": 0, "price": 0.0, "propensity": math.nan, "trips": 0.0, "redeemed": 0.0, "spend": 0.0,
            "terminal": 0.0, "truncated": False}  # besides decision (counted), policy (one), and all of what comes next


def arrow():
    """Import pyarrow, which files need; raise ValueError where it isn't there."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"logs are read and written by pyarrow, which is not installed: pip install -e '.[logs]' ({error})"
                         ) from error
    return pyarrow


def combinations(prefix: str, nvec: tuple[int, ...]) -> list[str]:
    """Name a column for every combination of the heads."""
    return ["_".join((prefix, *map(str, pair))) for pair in itertools.product(*map(range, nvec))]


def write(path: Path | str, logs: Iterable[Logged]) -> int:
    """Write chunks of one log as they come to Parquet (or, by its ending, CSV), whole or not at all; return its rows."""
    pa, path, rows = arrow(), Path(path), 0
    writing = pa.csv.CSVWriter if path.suffix == ".csv" else lambda file, schema: pa.parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=[x for x in schema.names if "state_" in x or x == "policy"])

    def fill(temporary: Path) -> None:
        nonlocal rows
        writer = None
        try:
            for log in logs:
                table = pa.table(_columns(log))
                writer = writer or writing(str(temporary), table.schema)
                writer.write_table(table)
                rows += len(log)
        finally:
            if writer:
                writer.close()
        if not rows:
            raise ValueError(f"{path}: no decision to write")

    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic(path, fill)
    return rows


def _columns(log: Logged) -> dict:
    """Lay a log out as named columns."""
    log, columns = log.to("cpu"), {}

    def spread(names: Iterable[str], table: Tensor) -> None:
        columns.update(zip(names, table.T.contiguous().numpy()))

    columns |= {name: getattr(log, name).numpy() for name in KEYS[:4]}
    columns["policy"] = [log.policies[k] for k in log.policy.tolist()]
    columns["price"] = log.price.numpy()
    spread((f"action_{k}" for k in range(len(log.nvec))), unflatten(log.action, log.nvec))
    columns |= {name: getattr(log, name).numpy() for name in ("propensity", *OUTCOMES, *ENDS)}
    spread((f"feature_{k}" for k in range(log.features)), log.obs[:, :log.features])
    spread((f"state_{k}" for k in range(log.obs.shape[1])), log.obs[:, log.features:])
    spread(combinations("valid", log.nvec), log.mask)
    if log.next_obs is not None:
        spread((f"next_state_{k}" for k in range(log.obs.shape[1])), log.next_obs[:, log.features:])
        spread(combinations("next_valid", log.nvec), log.next_mask)
    if log.probs is not None:
        spread(combinations("prob", log.nvec), log.probs)
    return columns


class Reader:
    """A log on disk, read in chunks. Raises ValueError, with file, rows and column, on what is no log of decisions."""

    def __init__(self, path: Path | str, rows: int = 65536):
        self.pa, self.path, self.rows = arrow(), Path(path), rows
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
        self.following = [name for name in (*self._numbered("next_state"), *combinations("next_valid", self.nvec))
                          if name in names]
        needed = ["customer", *(f"action_{k}" for k in range(len(self.nvec))), "profit", *combinations("valid", self.nvec)]
        if self.following:
            needed += [f"next_{name}" for name in (*self.dynamic, *combinations("valid", self.nvec))] + ["terminated"]
        lacking = [name for name in needed if name not in names]
        if lacking:
            raise ValueError(f"{self.path}: no column '{lacking[0]}'; there are {', '.join(names[:8])}, …")
        if not self.static + self.dynamic:
            raise ValueError(f"{self.path}: expected columns feature_0 … or state_0 …: what was known of a customer")
        self.customers: dict[str, int] = {}
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

    def __iter__(self) -> Iterator[Logged]:
        pa, first = self.pa, 0
        try:
            if self.path.suffix == ".csv":
                texts = pa.csv.ConvertOptions(column_types={name: pa.string() for name in self.names}, strings_can_be_null=True,
                                                  null_values=[""])
                batches = pa.csv.open_csv(self.path, convert_options=texts,
                                          read_options=pa.csv.ReadOptions(block_size=1 << 24))
            else:
                batches = pa.parquet.ParquetFile(self.path).iter_batches(self.rows)
            for batch in batches:
                for start in range(0, batch.num_rows, self.rows):
                    part = batch.slice(start, self.rows)
                    log = self._log(part, first)
                    check(log, str(self.path), first)
                    first += part.num_rows
                    yield log
        except pa.ArrowException as error:
            raise self._unreadable(error) from error
        if not first:
            raise ValueError(f"{self.path}: expected decisions, got no row")

    def _log(self, batch, first: int) -> Logged:
        n, pa = batch.num_rows, self.pa

        def column(name: str, kind, dtype: torch.dtype) -> Tensor:
            if name not in self.names:
                return torch.full((n,), DEFAULTS[name], dtype=dtype)
            values = batch.column(name)
            try:
                cast = values.cast(kind)
            except pa.ArrowException:
                wrong = torch.tensor([not self._castable(x, kind) for x in values])
                got = values[wrong.nonzero()[0].item()].as_py()
                raise ValueError(f"{self.path}: {named_rows(wrong, first)}, column '{name}': expected {_kind(kind)}, got "
                                 f"'{got}'") from None
            if cast.null_count and name != "propensity":
                wrong = torch.from_numpy(cast.is_null().to_numpy(zero_copy_only=False).copy())
                raise ValueError(f"{self.path}: {named_rows(wrong, first)}, column '{name}': expected {_kind(kind)}, got "
                                 "nothing")
            return torch.from_numpy(cast.to_numpy(zero_copy_only=False).copy()).to(dtype)

        def table(names: list[str], kind, dtype: torch.dtype) -> Tensor:
            return torch.stack([column(name, kind, dtype) for name in names], 1) if names else torch.zeros(n, 0, dtype=dtype)

        def coded(name: str, codes: dict[str, int]) -> Tensor:
            return torch.tensor([codes.setdefault(x, len(codes)) for x in batch.column(name).cast(pa.string()).to_pylist()])

        whole, number, bit = pa.int64(), pa.float64(), pa.bool_()
        long, single, flag = torch.int64, torch.float32, torch.bool
        named = self.path.suffix == ".csv" or not pa.types.is_integer(batch.schema.field("customer").type)
        features = table(self.static, number, single)
        action = table([f"action_{k}" for k in range(len(self.nvec))], whole, long)
        outside = ((action < 0) | (action >= torch.tensor(self.nvec))).any(1)
        if outside.any():
            raise ValueError(f"{self.path}: {named_rows(outside, first)}, column 'action_*': expected an action of {self.nvec}"
                             f", got {action[outside][0].tolist()}")
        probs = combinations("prob", self.nvec)
        log = Logged(
            self.nvec, len(self.static), (),
            column("decision", whole, long) if "decision" in self.names else first + torch.arange(n),
            coded("customer", self.customers) if named else column("customer", whole, long),
            column("season", whole, long), column("week", whole, long),
            coded("policy", self.policies) if "policy" in self.names else torch.zeros(n, dtype=long),
            torch.cat((features, table(self.dynamic, number, single)), 1),
            table(combinations("valid", self.nvec), bit, flag), flatten(action, self.nvec),
            column("propensity", number, torch.float64),
            table(probs, number, single) if all(name in self.names for name in probs) else None,
            *(column(name, number, single) for name in ("price", *OUTCOMES)),
            torch.cat((features, table([f"next_{x}" for x in self.dynamic], number, single)), 1) if self.following else None,
            table(combinations("next_valid", self.nvec), bit, flag) if self.following else None,
            column("terminated", bit, flag) if "terminated" in self.names else torch.ones(n, dtype=flag),
            column("truncated", bit, flag))
        return replace(log, policies=tuple(self.policies) or ("log",))

    def _castable(self, value, kind) -> bool:
        try:
            value.cast(kind)
        except self.pa.ArrowException:
            return False
        return True


def _kind(kind) -> str:
    return {"int64": "a whole number", "bool": "true or false"}.get(str(kind), "a number")


def read(path: Path | str, kept: Callable[[Logged], Logged] = lambda chunk: chunk) -> Logged:
    """Read a whole log, keeping of each chunk what `kept` returns."""
    return Logged.cat([kept(chunk) for chunk in Reader(path)])
