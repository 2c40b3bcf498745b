"""Clearing one budget over the customers of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.planning.knapsack import Increments, latest
from rlcore.backends import distributed

LARGEST = 2**63 - 1  # the largest whole number in 64 bits


def clear_together(steps: Increments, budget: Tensor) -> tuple[Tensor, Tensor]:
    """Clear the customers of all processes under one budget, as `clear` does.

    Returns this process's actions [N] and the price. Processes exchange sums only. The price where the money ends is
    found by bisection over all floats, with one sum for each of 64 bits. Among steps at that price, those of lower
    ranks come first.
    """
    price, order = steps.price.double().flatten().sort(descending=True, stable=True)
    real = price > -torch.inf
    spent = torch.where(real, steps.spend.flatten()[order], 0.0).double().cumsum(0)
    spent = torch.cat((torch.zeros_like(spent[:1]), spent))  # by each number of first steps
    place = -ordered(price)  # rises where prices fall
    low, high = place.new_tensor([-LARGEST, LARGEST])
    for _ in range(64):
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        within = distributed.all_reduce_sum(spent[torch.searchsorted(place, middle, right=True)]) <= budget
        low, high = torch.where(within, middle, low), torch.where(within, high, middle)
    before, until = (torch.searchsorted(place, high, right=right) for right in (False, True))
    ties = spent.new_zeros(distributed.num_processes())
    ties[distributed.rank()] = spent[until] - spent[before]
    elsewhere = (
        distributed.all_reduce_sum(spent[before])
        - spent[before]
        + distributed.all_reduce_sum(ties)[: distributed.rank()].sum()
    )
    covered = distributed.all_reduce_sum(spent[-1]) <= budget
    accepted = real & (covered | (place < high) | ((place == high) & (elsewhere + spent[1:] <= budget)))
    refused = torch.where(covered, 0.0, ordered(-high).view(torch.float64)).clamp_min(0)
    return latest(steps, order, accepted), refused.to(steps.price)


def ordered(x: Tensor) -> Tensor:
    """Turn float64 into whole numbers of the same order, or these numbers back into the bits of the floats."""
    bits = x.view(torch.int64)
    return bits ^ ((bits >> 63) & LARGEST)
