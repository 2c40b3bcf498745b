"""The columns of a file of logged decisions: how a dataset is laid out in them, and how they are read with a line for bad cells."""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Callable, Iterable

import torch
from torch import Tensor

from rlcore.distributions import unflatten
from rlcore.offline.logged_dataset import LoggedDataset, named_rows


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


def to_columns(dataset: LoggedDataset) -> dict:
    """Lay a dataset out as the columns of a file."""
    data, names = dataset.to("cpu"), dataset.names
    static = data.static_dim
    columns: dict = {}

    def add(vectors: dict[str, Tensor]) -> None:
        columns.update({name: x.numpy() for name, x in vectors.items()})

    def add_matrix(headers: Iterable[str], x: Tensor) -> None:
        columns.update(zip(headers, x.T.contiguous().numpy()))

    add({"decision": data.decision, names.unit: data.unit, names.episode: data.episode, names.step: data.step})
    columns["policy"] = [data.policies[k] for k in data.policy.tolist()]
    add({"price": data.price})
    add_matrix((f"action_{k}" for k in range(len(data.nvec))), unflatten(data.action, data.nvec))
    add({"propensity": data.propensity, names.reward: data.reward, **data.outcomes, names.cost: data.cost,
         names.terminal_value: data.terminal_value, "terminated": data.terminated, "truncated": data.truncated})
    add_matrix((f"feature_{k}" for k in range(static)), data.obs[:, :static])
    add_matrix((f"state_{k}" for k in range(data.obs.shape[1])), data.obs[:, static:])
    add_matrix(combinations("valid", data.nvec), data.action_mask)
    if data.next_obs is not None:
        add_matrix((f"next_state_{k}" for k in range(data.obs.shape[1])), data.next_obs[:, static:])
        add_matrix(combinations("next_valid", data.nvec), data.next_action_mask)
    if data.probs is not None:
        add_matrix(combinations("prob", data.nvec), data.probs)
    return columns


class ChunkReader:
    """Columns of a chunk of a file as tensors; `first` rows came before. A column that is not there has a default."""

    def __init__(self, path: Path, batch, first: int):
        self.pa, self.path, self.batch, self.first = arrow(), path, batch, first
        self.present = set(batch.schema.names)
        self.size = batch.num_rows

    def column(self, name: str, kind, dtype: torch.dtype, default: float | None = None) -> Tensor:
        """A column [n]; raise ValueError where a cell is not of its kind, or empty (a propensity may be: NaN)."""
        if name not in self.present:
            return torch.full((self.size,), default, dtype=dtype)
        values = self.batch.column(name)
        try:
            cast = values.cast(kind)
        except self.pa.ArrowException:
            wrong = torch.tensor([not self._castable(x, kind) for x in values])
            got = values[wrong.nonzero()[0].item()].as_py()
            raise self._refusal(wrong, name, kind, f"'{got}'") from None
        if cast.null_count and name != "propensity":
            wrong = torch.from_numpy(cast.is_null().to_numpy(zero_copy_only=False).copy())
            raise self._refusal(wrong, name, kind, "nothing")
        return torch.from_numpy(cast.to_numpy(zero_copy_only=False).copy()).to(dtype)

    def whole(self, name: str, default: int | None = None) -> Tensor:
        """A column of whole numbers, int64 [n]."""
        return self.column(name, self.pa.int64(), torch.int64, default)

    def number(self, name: str, default: float | None = None) -> Tensor:
        """A column of numbers, float32 [n]."""
        return self.column(name, self.pa.float64(), torch.float32, default)

    def double(self, name: str, default: float | None = None) -> Tensor:
        """A column of numbers, float64 [n]."""
        return self.column(name, self.pa.float64(), torch.float64, default)

    def flag(self, name: str, default: bool | None = None) -> Tensor:
        """A column of true or false, bool [n]."""
        return self.column(name, self.pa.bool_(), torch.bool, default)

    def matrix(self, read: Callable[[str], Tensor], names: list[str]) -> Tensor:
        """Columns side by side, [n, len(names)]."""
        return torch.stack([read(name) for name in names], 1) if names else torch.zeros(self.size, 0)

    def coded(self, name: str, codes: dict[str, int]) -> Tensor:
        """A column of texts as numbers, int64 [n]; texts that are new join `codes`."""
        texts = self.batch.column(name).cast(self.pa.string()).to_pylist()
        return torch.tensor([codes.setdefault(x, len(codes)) for x in texts])

    def is_whole(self, name: str) -> bool:
        """Whether the file says that a column holds whole numbers."""
        return self.pa.types.is_integer(self.batch.schema.field(name).type)

    def _castable(self, value, kind) -> bool:
        try:
            value.cast(kind)
        except self.pa.ArrowException:
            return False
        return True

    def _refusal(self, wrong: Tensor, name: str, kind, got: str) -> ValueError:
        expected = {"int64": "a whole number", "bool": "true or false"}.get(str(kind), "a number")
        return ValueError(f"{self.path}: {named_rows(wrong, self.first)}, column '{name}': expected {expected}, got {got}")
