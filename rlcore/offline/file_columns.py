"""The columns of a file of logged decisions: how a dataset maps to columns, and how bad cells are reported by line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rlcore.distributions import unflatten
from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset, named_rows


def arrow():
    """Import pyarrow, which files need; raise ValueError where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"logs are read and written by pyarrow, which is not installed: pip install -e '.[logs]' ({error})"
        ) from error
    return pyarrow


def combinations(prefix: str, nvec: tuple[int, ...]) -> list[str]:
    """Name a column for every combination of the heads, in the order of flat actions: prefix_0_0, prefix_0_1 …"""
    columns = []
    for action in itertools.product(*map(range, nvec)):
        parts = [str(choice) for choice in action]
        columns.append("_".join((prefix, *parts)))
    return columns


def numbered(prefix: str, count: int) -> list[str]:
    """Name `count` columns: prefix_0, prefix_1 …"""
    return [f"{prefix}_{k}" for k in range(count)]


def to_columns(dataset: LoggedDataset) -> dict:
    """Lay a dataset out as the columns of a file, {name: values}."""
    data = dataset.to("cpu")
    names = data.names
    static = data.static_dim
    dynamic = data.obs.shape[1] - static
    columns: dict = {}

    def add(name: str, x: Tensor) -> None:
        columns[name] = x.numpy()

    def add_matrix(headers: list[str], x: Tensor) -> None:
        transposed = x.T.contiguous().numpy()
        columns.update(zip(headers, transposed))

    add(names.unit, data.unit)
    add(names.episode, data.episode)
    add(names.step, data.step)
    columns["policy"] = [data.policies[k] for k in data.policy.tolist()]
    add("price", data.price)
    action = unflatten(data.action, data.nvec)
    add_matrix(numbered("action", len(data.nvec)), action)
    add("propensity", data.propensity)
    add(names.reward, data.reward)
    for name, outcome in data.outcomes.items():
        add(name, outcome)
    add(names.cost, data.cost)
    add(names.terminal_value, data.terminal_value)
    add("terminated", data.terminated)
    add("truncated", data.truncated)
    add_matrix(numbered("feature", static), data.obs[:, :static])
    add_matrix(numbered("state", dynamic), data.obs[:, static:])
    add_matrix(combinations("valid", data.nvec), dense(data.action_mask))
    if data.next_obs is not None:
        assert data.next_action_mask is not None
        add_matrix(numbered("next_state", dynamic), data.next_obs[:, static:])
        add_matrix(combinations("next_valid", data.nvec), dense(data.next_action_mask))
    if data.probs is not None:
        add_matrix(combinations("prob", data.nvec), data.probs)
    return columns


class ChunkReader:
    """Columns of a chunk of a file as tensors of its n rows. A missing column has a default.

    `path` is the file's path, for messages. `batch` is the chunk, a pyarrow.RecordBatch. `first` is the number of rows
    before the chunk, without the header.
    """

    def __init__(self, path: Path, batch, first: int):
        self.pa = arrow()
        self.path = path
        self.batch = batch
        self.present = set(batch.schema.names)
        self.size = batch.num_rows
        self.row = torch.arange(self.size) + first + FIRST_ROW

    def column(self, name: str, kind, dtype: torch.dtype, default: float | None = None) -> Tensor:
        """A column [n] of a pyarrow type `kind`, as `dtype`.

        Raises ValueError where a cell is not of this kind, or empty (an empty propensity becomes NaN).
        """
        if name not in self.present:
            assert default is not None, name  # the reader has seen that the other columns are there
            return torch.full((self.size,), default, dtype=dtype)
        values = self.batch.column(name)
        try:
            if self.pa.types.is_temporal(values.type):
                raise self.pa.ArrowInvalid("a date is no number")
            cast = self._cast(values, kind)
        except self.pa.ArrowException:
            wrong = torch.tensor([not self._castable(x, kind) for x in values])
            first_wrong = wrong.nonzero()[0].item()
            got = values[first_wrong].as_py()
            raise self._refusal(wrong, name, kind, f"'{got}'") from None
        if cast.null_count and name != "propensity":
            raise self._refusal(to_tensor(cast.is_null()), name, kind, "nothing")
        return to_tensor(cast).to(dtype)

    def whole(self, name: str, default: float | None = None) -> Tensor:
        """A column of whole numbers, int64 [n]."""
        return self.column(name, self.pa.int64(), torch.int64, default)

    def number(self, name: str, default: float | None = None) -> Tensor:
        """A column of numbers, float32 [n]."""
        return self.column(name, self.pa.float64(), torch.float32, default)

    def double(self, name: str, default: float | None = None) -> Tensor:
        """A column of numbers, float64 [n]."""
        return self.column(name, self.pa.float64(), torch.float64, default)

    def flag(self, name: str, default: float | None = None) -> Tensor:
        """A column of true or false, bool [n]."""
        return self.column(name, self.pa.bool_(), torch.bool, default)

    def matrix(self, read: Callable[[str], Tensor], names: list[str]) -> Tensor:
        """Columns side by side, [n, len(names)]."""
        if not names:
            return torch.zeros(self.size, 0)
        columns = [read(name) for name in names]
        return torch.stack(columns, 1)

    def coded(self, name: str, codes: dict[str, int]) -> Tensor:
        """A column of texts as numbers, int64 [n]; texts that are new join `codes`.

        Raises ValueError where a cell is empty.
        """
        column = self.batch.column(name)
        if column.null_count:
            raise self._refusal(to_tensor(column.is_null()), name, None, "nothing")
        texts = column.cast(self.pa.string()).to_pylist()
        numbers = [codes.setdefault(text, len(codes)) for text in texts]
        return torch.tensor(numbers)

    def is_whole(self, name: str) -> bool:
        """Whether the file says that a column holds whole numbers."""
        field = self.batch.schema.field(name)
        return self.pa.types.is_integer(field.type)

    def _cast(self, values, kind):
        """Cast an array or a scalar. A whole number may be written 1.0, as pandas writes it."""
        try:
            return values.cast(kind)
        except self.pa.ArrowException:
            if kind != self.pa.int64():
                raise
            return values.cast(self.pa.float64()).cast(kind)

    def _castable(self, value, kind) -> bool:
        if self.pa.types.is_temporal(value.type):
            return False
        try:
            self._cast(value, kind)
        except self.pa.ArrowException:
            return False
        return True

    def _refusal(self, wrong: Tensor, name: str, kind, got: str) -> ValueError:
        words = {"int64": "a whole number", "bool": "true or false", "None": "a text or a number"}
        expected = words.get(str(kind), "a number")
        rows = named_rows(wrong, self.row)
        return ValueError(f"{self.path}: {rows}, column '{name}': expected {expected}, got {got}")


def to_tensor(array) -> Tensor:
    """Copy a pyarrow.Array [n] into a tensor [n]; empty cells become NaN."""
    values = array.to_numpy(zero_copy_only=False)
    return torch.from_numpy(values.copy())
