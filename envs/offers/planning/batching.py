"""A block of customers at a time: tables for a million of them in the memory that a thousand take."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.planning.triton_organic_value import organic
from envs.offers.planning.state_values import Values
from envs.offers.planning.dynamic_program import best_plan, expected_use
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, State, World

BLOCK = {"cpu": 1000, "cuda": 2**17}  # customers whose tables are made at once: a few for a CPU's caches, many to fill a GPU
KEPT = 2**29  # bytes of tables that are kept, V⁰ and V^λ each; those of more customers are made anew where they are needed


def blocks(each: Tensor) -> list[slice]:
    """Cut customers, of whom `each` [N] tells something, into blocks that suit its device."""
    n, block = len(each), BLOCK[each.device.type]
    return [slice(i, min(i + block, n)) for i in range(0, n, block)]


def kept(c: Customers, world: World) -> list[Values] | None:
    """V⁰ as `organic` has it, a block of customers at a time; None where that is more than is kept."""
    if len(c) * (world.weeks + 1) * (FATIGUES * EXPECTATIONS + 1) * HABITS * c.alpha.element_size() > KEPT:
        return None
    return joined([organic(c[rows], world) for rows in blocks(c.alpha)])


def joined(tables: list[list[Values]]) -> list[Values]:
    """Join the tables of blocks of customers."""
    return tables[0] if len(tables) == 1 else [Values(*(torch.cat(x, -1) for x in zip(*week))) for week in zip(*tables)]


def ahead(c: Customers, world: World, price: Tensor, scarcity: Tensor | None, contacts: Tensor | None, week: int,
          rows: slice) -> Values:
    """V^λ of a week (from 0) for some of the customers, made anew."""
    some = c[rows]
    return best_plan(some, world, organic(some, world), price, scarcity, since=week,
                     contacts=None if contacts is None else contacts[..., rows])[0][0]


class Plan(NamedTuple):
    """What comes of the best plan at some prices."""

    values: list[Values] | None  # V^λ of weeks 1..T+1
    use: Tensor  # expected, of each week's money and each stocked offer [T + S], float64
    untouched: Tensor  # V⁰(s_1) [N]
    gain: Tensor  # V^λ(s_1) − V⁰(s_1) [N]


def planned(c: Customers, world: World, v0: list[Values] | None, start: State, price: Tensor, scarcity: Tensor | None = None,
            stocked: tuple[int, ...] = (), *, contacts: Tensor | None = None) -> Plan:
    """Plan as `best_plan` does, a block of customers at a time.

    A customer's tables take 78 numbers a week, twice: V⁰ and V^λ. Without `v0` none is kept, V⁰ is made for each block
    anew (a tenth of the work), and memory grows by a few numbers a customer.
    """
    parts = []
    for rows in blocks(c.alpha):
        some, at = c[rows], State(*(x[rows] for x in start))
        free = organic(some, world) if v0 is None else [v.take(rows) for v in v0]
        values, actions = best_plan(some, world, free, price, scarcity,
                                    contacts=None if contacts is None else contacts[..., rows])
        use = expected_use(some, world, at, actions, stocked).sum(1, dtype=torch.float64)
        untouched = free[0].at(at)
        parts.append((None if v0 is None else values, use, untouched, values[0].at(at) - untouched))
    tables, use, untouched, gain = zip(*parts)
    return Plan(None if v0 is None else joined(tables), torch.stack(use).sum(0), torch.cat(untouched), torch.cat(gain))


