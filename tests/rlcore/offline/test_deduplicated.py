"""Tables that store repeated rows once: the same numbers, and the same learning."""

from __future__ import annotations

import pytest
import torch

from rlcore.offline.deduplicated import DeduplicatedMatrix


def rows(n, seed):
    g = torch.Generator().manual_seed(seed)
    few = torch.randint(0, 2, (4, 5), generator=g).float()
    return torch.cat(
        (
            torch.randn(3, 3, generator=g).repeat_interleave(n // 3, 0),
            few[torch.randint(4, (n,), generator=g)],
            torch.randn(n, 2, generator=g),
        ),
        1,
    )


def test_a_table_gives_what_it_was_given():
    x, y = rows(30, 0), rows(60, 1)
    table = DeduplicatedMatrix.cat([DeduplicatedMatrix.from_dense(x, (3, 8)), DeduplicatedMatrix.from_dense(y, (3, 8))])
    both = torch.cat((x, y))
    assert table.shape == both.shape and len(table) == 90 and table.blocks[1][0].shape[0] <= 8
    g = torch.Generator().manual_seed(2)
    for key in (torch.randint(90, (40,), generator=g), slice(5, 50, 3), torch.rand(90, generator=g) < 0.3, slice(None)):
        assert torch.equal(table[key], both[key]) and torch.equal(table.take(key)[:], both[key])
        for columns in (slice(8), slice(2, 4), slice(4, 6), slice(9, None)):
            assert torch.equal(table[key, columns], both[key, columns])
    assert torch.equal(table.to("cpu")[:], both)
    mask = y > 0
    assert (
        torch.equal(DeduplicatedMatrix.from_dense(mask, ())[:], mask)
        and DeduplicatedMatrix.from_dense(mask, ())[:].dtype == torch.bool
    )


@pytest.mark.parametrize("same", [0.0, 1.0])
def test_rows_of_the_same_key_are_told_apart(monkeypatch, same):
    x = rows(30, 0)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, same, dtype=torch.float64))
    shuffled = torch.cat((x, x.flip(1)))  # of the same sums
    assert torch.equal(DeduplicatedMatrix.from_dense(shuffled, ())[:], shuffled)
