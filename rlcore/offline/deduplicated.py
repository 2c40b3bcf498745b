"""Rows that repeat each other, each held once: what lets a log of millions of decisions fit into memory."""
from __future__ import annotations

import torch
from torch import Tensor


def distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of x [N, D], and which of them stands where, int32 [N]. A row can come twice: that costs but memory."""
    weights = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    keys, place = torch.unique((x * weights).sum(1), return_inverse=True)  # sorting numbers is faster than sorting rows
    rows = x.new_empty(len(keys), x.shape[1])
    rows[place] = x
    if not torch.equal(rows[place], x):  # two had the same key
        rows, place = torch.unique(x, dim=0, return_inverse=True)
    return rows, place.int()


class Table:
    """A matrix [N, D] of blocks of columns, each its distinct rows [U, d] and which of them stands where, int32 [N].

    Indexing by rows, or rows and a slice of columns, gives a plain tensor, equal to what `of` was given.
    """

    def __init__(self, blocks: list[tuple[Tensor, Tensor]]):
        self.blocks = blocks

    @classmethod
    def of(cls, x: Tensor, ends: tuple[int, ...]) -> Table:
        """Hold x [N, D] slim, in blocks of the columns before each of `ends` and after the last."""
        return cls([distinct(part) for part in x.tensor_split(ends, 1)])

    @classmethod
    def cat(cls, tables: list[Table]) -> Table:
        """Put tables of the same blocks one below the other; what is distinct in one may stand in the other too."""
        blocks = []
        for parts in zip(*(table.blocks for table in tables)):
            first, shifted = 0, []
            for distinct, place in parts:
                shifted.append(place + first)
                first += len(distinct)
            blocks.append((torch.cat([distinct for distinct, _ in parts]), torch.cat(shifted)))
        return cls(blocks)

    def take(self, rows) -> Table:
        """Some of the rows, as slim."""
        return Table([(distinct, place[rows]) for distinct, place in self.blocks])

    def to(self, device) -> Table:
        """Return the same on a device."""
        return Table([(distinct.to(device), place.to(device)) for distinct, place in self.blocks])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), sum(distinct.shape[1] for distinct, _ in self.blocks)))

    def __len__(self) -> int:
        return len(self.blocks[0][1])

    def __getitem__(self, key) -> Tensor:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        first, last, _ = columns.indices(self.shape[1])
        parts, at = [], 0
        for distinct, place in self.blocks:
            start, at = at, at + distinct.shape[1]
            if start < last and at > first:  # of the columns asked for
                parts.append(distinct[:, max(first - start, 0):last - start][place[rows].long()])
        return torch.cat(parts, -1)
