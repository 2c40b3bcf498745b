"""Plan for a batch of customers at a time, so that a million customers need the memory of a thousand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.planning.dynamic_program import best_plan, expected_use
from envs.offers.planning.state_values import StateValues
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, CustomerState, Rows, World

BATCH_SIZE = {"cpu": 1000, "cuda": 2**17}  # customers a batch: few for a CPU's caches, many to fill a GPU
MAX_TABLE_BYTES = 2**29  # of V⁰ and of V^λ each; larger tables are not kept, but computed again where needed


def batches(each: Tensor) -> list[slice]:
    """Cut N customers into batches that suit the device of `each` [N]."""
    n, size = len(each), BATCH_SIZE[each.device.type]
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def no_contact_values_if_they_fit(c: Customers, world: World) -> list[StateValues] | None:
    """V⁰ of weeks 1..T+1, computed a batch at a time; None where the tables would exceed MAX_TABLE_BYTES."""
    if len(c) * (world.weeks + 1) * (FATIGUES * EXPECTATIONS + 1) * HABITS * c.alpha.element_size() > MAX_TABLE_BYTES:
        return None
    return concat([fast_no_contact_values(c[rows], world) for rows in batches(c.alpha)])


def concat(tables: list[list[StateValues]]) -> list[StateValues]:
    """Concatenate the tables of batches of customers."""
    if len(tables) == 1:
        return tables[0]
    return [StateValues(*(torch.cat(x, -1) for x in zip(*week))) for week in zip(*tables)]


def recompute(
    c: Customers, world: World, price: Tensor, scarcity: Tensor | None, contacts: Tensor | None, week: int, rows: Rows
) -> StateValues:
    """Compute V^λ of a week (from 0) again for some of the customers."""
    some = c[rows]
    return best_plan(
        some,
        world,
        fast_no_contact_values(some, world),
        price,
        scarcity,
        since=week,
        contacts=None if contacts is None else contacts[..., rows],
    )[0][0]


class Plan(NamedTuple):
    """Values and expected use of the best plan at some prices."""

    values: list[StateValues] | None  # V^λ of weeks 1..T+1
    use: Tensor  # expected, of each week's money and each stocked offer [T + S], float64
    no_contact_value: Tensor  # V⁰(s_1) [N]
    gain: Tensor  # V^λ(s_1) − V⁰(s_1) [N]


def plan_in_batches(
    c: Customers,
    world: World,
    v0: list[StateValues] | None,
    start: CustomerState,
    price: Tensor,
    scarcity: Tensor | None = None,
    stocked: tuple[int, ...] = (),
    *,
    contacts: Tensor | None = None,
) -> Plan:
    """Plan as `best_plan` does, a batch of customers at a time.

    A customer's tables V⁰ and V^λ take 78 numbers a week each. Without `v0` no table is kept: V⁰ is computed again for
    each batch (a tenth of the work), and memory grows by a few numbers a customer.
    """
    tables: list[list[StateValues]] = []
    uses, no_contact_values, gains = [], [], []
    for rows in batches(c.alpha):
        some, at = c[rows], CustomerState(*(x[rows] for x in start))
        free = fast_no_contact_values(some, world) if v0 is None else [v.take(rows) for v in v0]
        values, actions = best_plan(
            some, world, free, price, scarcity, contacts=None if contacts is None else contacts[..., rows]
        )
        if v0 is not None:
            tables.append(values)
        uses.append(expected_use(some, world, at, actions, stocked).sum(1, dtype=torch.float64))
        no_contact_values.append(free[0].at(at))
        gains.append(values[0].at(at) - no_contact_values[-1])
    return Plan(
        values=None if v0 is None else concat(tables),
        use=torch.stack(uses).sum(0),
        no_contact_value=torch.cat(no_contact_values),
        gain=torch.cat(gains),
    )
