"""Matrices whose repeated rows are stored once, so that a log of millions of decisions fits into memory."""

from __future__ import annotations

import torch
from torch import Tensor


def unique_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unique rows [U, D] of x [N, D], and the index of each row among them, int32 [N].

    A row may be stored twice, which costs memory and changes nothing else.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(x.shape[1], generator=generator, dtype=torch.float64)
    hashes = (x * weights.to(x.device)).sum(1)
    keys, index = torch.unique(hashes, return_inverse=True)  # sorting numbers is faster than sorting rows
    rows = x.new_empty(len(keys), x.shape[1])
    rows[index] = x
    collision = not torch.equal(rows[index], x)
    if collision:
        rows, index = torch.unique(x, dim=0, return_inverse=True)
    return rows, index.int()


class DeduplicatedMatrix:
    """A matrix [N, D] as blocks of columns: each block has its unique rows [U, d] and the index of each row, int32 [N].

    Indexing by rows, or rows and a slice of columns, gives a plain tensor, equal to that of the dense matrix.
    """

    def __init__(self, blocks: list[tuple[Tensor, Tensor]]):
        self.blocks = blocks

    @classmethod
    def from_dense(cls, x: Tensor, splits: tuple[int, ...]) -> DeduplicatedMatrix:
        """Deduplicate x [N, D] in blocks of the columns before each of `splits` and after the last."""
        parts = x.tensor_split(splits, 1)
        return cls([unique_rows(part) for part in parts])

    @classmethod
    def cat(cls, matrices: list[DeduplicatedMatrix]) -> DeduplicatedMatrix:
        """Concatenate matrices of the same blocks; a row that two of them have is stored twice."""
        blocks = []
        for k in range(len(matrices[0].blocks)):
            uniques = []
            indices = []
            rows_before = 0
            for matrix in matrices:
                unique, index = matrix.blocks[k]
                uniques.append(unique)
                indices.append(index + rows_before)
                rows_before += len(unique)
            block = (torch.cat(uniques), torch.cat(indices))
            blocks.append(block)
        return cls(blocks)

    def take(self, rows) -> DeduplicatedMatrix:
        """Select rows, still deduplicated."""
        blocks = [(unique, index[rows]) for unique, index in self.blocks]
        return DeduplicatedMatrix(blocks)

    def to(self, device) -> DeduplicatedMatrix:
        """Return the same on a device."""
        blocks = [(unique.to(device), index.to(device)) for unique, index in self.blocks]
        return DeduplicatedMatrix(blocks)

    @property
    def shape(self) -> torch.Size:
        """The shape [N, D] of the dense matrix."""
        columns = sum(unique.shape[1] for unique, _ in self.blocks)
        return torch.Size((len(self), columns))

    def __len__(self) -> int:
        _, index = self.blocks[0]
        return len(index)

    def __getitem__(self, key) -> Tensor:
        """Return rows, or rows and a slice of columns, as a plain tensor."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        first, last, _ = columns.indices(self.shape[1])
        parts = []
        end = 0
        for unique, index in self.blocks:
            start = end
            end = start + unique.shape[1]
            if start >= last or end <= first:  # the block has none of the requested columns
                continue
            first_here = max(first - start, 0)
            last_here = last - start
            wanted = unique[:, first_here:last_here]
            parts.append(wanted[index[rows].long()])
        return torch.cat(parts, -1)


def dense(matrix: Tensor | DeduplicatedMatrix) -> Tensor:
    """Return a matrix [N, D] as a plain tensor."""
    return matrix if isinstance(matrix, Tensor) else matrix[:]
