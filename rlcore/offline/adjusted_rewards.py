"""The rewards that values are learned from: logged rewards, or rewards adjusted to lower their variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.offline.logged_dataset import LoggedDataset


class AdjustedRewards(NamedTuple):
    """Columns [N] of a dataset of N decisions; a value's target is reward + discount · (value of the next state)."""

    reward: Tensor
    discount: Tensor
    weight: Tensor  #: weight of the decision in the loss; 0 leaves it out


# of an environment, a dataset, its rewards [N], the discount of a step, and random numbers
AdjustRewards = Callable[[Any, LoggedDataset, Tensor, float, torch.Generator], AdjustedRewards]


def unadjusted(
    env: Any, dataset: LoggedDataset, reward: Tensor, gamma: float, generator: torch.Generator
) -> AdjustedRewards:
    """Return rewards [N] as they were logged, plus the terminal values."""
    discount = torch.where(dataset.terminated, 0.0, gamma)
    return AdjustedRewards(reward + dataset.terminal_value, discount, torch.ones_like(reward))
