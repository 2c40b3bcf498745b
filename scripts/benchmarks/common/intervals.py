"""Student's intervals of means over seeds."""
from __future__ import annotations

import math

import torch
from scipy.stats import t
from torch import Tensor


def half_width(x: Tensor) -> Tensor:
    """Student's 95 % half-width of the mean over the first dimension: values [S, …] → […]; 0 where S is 1."""
    if len(x) == 1:
        return torch.zeros_like(x[0])
    return t.ppf(0.975, len(x) - 1) * x.std(0) / math.sqrt(len(x))


def mean_and_half_width(x: Tensor) -> list[float]:
    """Mean of values [S] and its 95 % half-width."""
    return [x.mean().item(), half_width(x).item()]
