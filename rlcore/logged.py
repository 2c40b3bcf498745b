"""Logged decisions: one row a decision, as tensors and as Parquet or CSV files that may be larger than memory.

Columns of a file, K heads of the action: decision, customer (number or text), season, week, policy; price (of money);
feature_0 … (what holds all season), state_0 … (the rest of what was observed), next_state_0 …; valid_I_J … and
next_valid_I_J … (one a combination of the heads); action_0 … action_K-1; propensity of the action taken, and of all
combinations prob_I_J … if you like; profit, trips, redeemed, spend as they came true; terminal, what the state after
the last decision is worth; terminated, truncated. What `DEFAULTS` names may be left out.
"""
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Iterable, Iterator

import torch
from torch import Tensor

from rlcore import checkpoint
from rlcore.distributions import flatten, unflatten

KEYS = ("decision", "customer", "season", "week", "policy")
OUTCOMES = ("profit", "trips", "redeemed", "spend", "terminal")
NUMBERS = ("price", "propensity", *OUTCOMES)
ENDS = ("terminated", "truncated")
DEFAULTS = {"season": 0, "week": 0, "price": 0.0, "propensity": math.nan, "trips": 0.0, "redeemed": 0.0, "spend": 0.0,
            "terminal": 0.0, "truncated": False}  # besides decision (counted), policy (one), and all of what comes next
SHOWN = 5  # rows that a message names


@dataclass(frozen=True)
class Logged:
    """N decisions. Actions are flat combinations of the heads `nvec`; the first `features` columns of an observation hold
    all season. `propensity` is NaN where missing; next_obs, next_mask and probs are None where a log has none."""

    nvec: tuple[int, ...]
    features: int
    policies: tuple[str, ...]
    decision: Tensor  # int64 [N], as the next four
    customer: Tensor
    season: Tensor
    week: Tensor
    policy: Tensor  # place in `policies`
    obs: Tensor  # [N, D]
    mask: Tensor  # bool [N, Πn]
    action: Tensor  # int64 [N]
    propensity: Tensor  # float64 [N]
    probs: Tensor | None  # [N, Πn]
    price: Tensor  # [N], as the next five
    profit: Tensor
    trips: Tensor
    redeemed: Tensor
    spend: Tensor
    terminal: Tensor
    next_obs: Tensor | None  # [N, D]
    next_mask: Tensor | None  # bool [N, Πn]
    terminated: Tensor  # bool [N], as the next
    truncated: Tensor

    def __len__(self) -> int:
        return len(self.action)

    def map(self, function) -> Logged:
        """Apply `function` to every tensor."""
        return replace(self, **{f.name: function(x) for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)})

    def __getitem__(self, rows) -> Logged:
        return self.map(lambda x: x[rows])

    def to(self, device) -> Logged:
        """Return the same on a device."""
        return self.map(lambda x: x.to(device))

    @property
    def earned(self) -> Tensor:
        """Profit with what the end is worth, [N]: what is to be as high as can be, before the price of spend."""
        return self.profit + self.terminal

    @property
    def reward(self) -> Tensor:
        """What is earned less the spend at the logged price, [N]."""
        return self.earned - self.price * self.spend

    @classmethod
    def cat(cls, logs: list[Logged]) -> Logged:
        """Put logs of the same shape one after the other."""
        names = tuple(dict.fromkeys(name for log in logs for name in log.policies))
        logs = [replace(log, policy=torch.tensor([names.index(x) for x in log.policies])[log.policy.cpu()].to(log.policy),
                        policies=names) for log in logs]
        return replace(logs[0], **{f.name: torch.cat([getattr(log, f.name) for log in logs]) for f in fields(cls)
                                   if isinstance(getattr(logs[0], f.name), Tensor)})

    @classmethod
    def from_obp(cls, feedback: dict) -> Logged:
        """Take over `bandit_feedback` of the Open Bandit Pipeline: one step; a position joins the context, one-hot."""
        n, actions = int(feedback["n_rounds"]), int(feedback["n_actions"])
        obs = torch.tensor(feedback["context"], dtype=torch.float32)
        position = feedback.get("position")
        if position is not None and (position := torch.tensor(position).long()).amax() > 0:
            obs = torch.cat((obs, torch.nn.functional.one_hot(position).to(obs)), -1)
        zeros, rows = torch.zeros(n), torch.arange(n)
        pscore = feedback.get("pscore")
        log = cls((actions,), obs.shape[1], ("obp",), rows, rows, 0 * rows, 0 * rows, 0 * rows, obs,
                  torch.ones(n, actions, dtype=torch.bool), torch.tensor(feedback["action"]).long(),
                  torch.full((n,), math.nan).double() if pscore is None else torch.tensor(pscore).double(), None, zeros,
                  torch.tensor(feedback["reward"]).float(), zeros, zeros, zeros, zeros, None, None, zeros == 0, zeros > 0)
        check(log, "bandit_feedback", 0)
        return log


def named_rows(wrong: Tensor, first: int) -> str:
    """Name the rows of a file where `wrong` holds, the header being row 1; `first` rows came before."""
    rows = (wrong.nonzero()[:, 0] + first + 2).tolist()
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:SHOWN]))}{more}"


def check(log: Logged, where: str, first: int) -> None:
    """Raise ValueError, with the rows, where decisions can't be used; a missing propensity can."""
    def refuse(wrong: Tensor, column: str, expected: str, got: Tensor | None = None) -> None:
        if wrong.any():
            got = "" if got is None else f", got {got[wrong][0].item():g}"
            raise ValueError(f"{where}: {named_rows(wrong, first)}, column '{column}': expected {expected}{got}")

    for name in (*OUTCOMES, "price"):
        x = getattr(log, name)
        refuse(~x.isfinite(), name, "a number", x)
    for name, x in (("feature_* or state_*", log.obs), ("next_state_*", log.next_obs)):
        if x is not None:
            refuse(~x.isfinite().all(1), name, "numbers")
    refuse(~log.mask.any(1), "valid_*", "at least one valid pair")
    refuse((log.action < 0) | (log.action >= math.prod(log.nvec)), "action_*", f"an action of {log.nvec}")
    refuse(~log.mask.gather(1, log.action[:, None])[:, 0], "action_*", "a pair that valid_* allows")
    p = log.propensity
    refuse((p <= 0) | (p > 1), "propensity", "a probability above 0, at most 1, or nothing", p)
    if log.probs is not None:
        given = log.probs.double()
        refuse((given < 0).any(1) | ((given.sum(1) - 1).abs() > 1e-4) | (given * ~log.mask > 0).any(1), "prob_*",
               "probabilities of the valid pairs that add up to 1")
        refuse((given.gather(1, log.action[:, None])[:, 0] - p).abs() > 1e-4, "propensity", "what prob_* says of the action", p)


def fitting(log: Logged, env, where: str) -> Logged:
    """Return a log on an environment's device; raise ValueError where it is not of the same observations and actions."""
    if log.nvec != tuple(env.nvec) or log.obs.shape[1] != env.obs_dim:
        raise ValueError(f"{where}: a log of {log.obs.shape[1]} observed numbers and actions of {log.nvec} doesn't fit an "
                         f"environment of {env.obs_dim} and {tuple(env.nvec)}")
    return log.to(env.device)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
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


def read(path: Path | str) -> Logged:
    """Read a whole log."""
    return Logged.cat(list(Reader(path)))
