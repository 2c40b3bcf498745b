"""Matrices whose repeated rows are held once, so that a log of millions of decisions fits into memory."""
from __future__ import annotations

import torch
from torch import Tensor


def unique_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unique rows of x [N, D], and the index of each row among them, int32 [N]. A row may be held twice: only memory is lost."""
    weights = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    keys, index = torch.unique((x * weights).sum(1), return_inverse=True)  # sorting numbers is faster than sorting rows
    rows = x.new_empty(len(keys), x.shape[1])
    rows[index] = x
    if not torch.equal(rows[index], x):  # two rows had the same key
        rows, index = torch.unique(x, dim=0, return_inverse=True)
    return rows, index.int()


class DeduplicatedMatrix:
    """A matrix [N, D] as blocks of columns: of each block its unique rows [U, d] and the index of each row, int32 [N].

    Indexing by rows, or rows and a slice of columns, gives a plain tensor, equal to that of the dense matrix.
    """

    def __init__(self, blocks: list[tuple[Tensor, Tensor]]):
        self.blocks = blocks

    @classmethod
    def from_dense(cls, x: Tensor, splits: tuple[int, ...]) -> DeduplicatedMatrix:
        """Deduplicate x [N, D] in blocks of the columns before each of `splits` and after the last."""
        return cls([unique_rows(part) for part in x.tensor_split(splits, 1)])

    @classmethod
    def cat(cls, matrices: list[DeduplicatedMatrix]) -> DeduplicatedMatrix:
        """Concatenate matrices of the same blocks; a row that two of them hold is held twice."""
        blocks = []
        for parts in zip(*(matrix.blocks for matrix in matrices)):
            first, shifted = 0, []
            for rows, index in parts:
                shifted.append(index + first)
                first += len(rows)
            blocks.append((torch.cat([rows for rows, _ in parts]), torch.cat(shifted)))
        return cls(blocks)

    def take(self, rows) -> DeduplicatedMatrix:
        """Select rows, still deduplicated."""
        return DeduplicatedMatrix([(unique, index[rows]) for unique, index in self.blocks])

    def to(self, device) -> DeduplicatedMatrix:
        """Return the same on a device."""
        return DeduplicatedMatrix([(unique.to(device), index.to(device)) for unique, index in self.blocks])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), sum(unique.shape[1] for unique, _ in self.blocks)))

    def __len__(self) -> int:
        return len(self.blocks[0][1])

    def __getitem__(self, key) -> Tensor:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        first, last, _ = columns.indices(self.shape[1])
        parts, end = [], 0
        for unique, index in self.blocks:
            start, end = end, end + unique.shape[1]
            if start < last and end > first:  # of the columns asked for
                parts.append(unique[:, max(first - start, 0):last - start][index[rows].long()])
        return torch.cat(parts, -1)
