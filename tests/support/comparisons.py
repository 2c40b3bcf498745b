"""States of algorithms, compared bit for bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weights(ppo) -> Tensor:
    """Concatenate all parameters and buffers of the network."""
    return torch.cat([x.flatten() for x in ppo.network.state_dict().values()])


def identical(a, b) -> bool:
    """Compare nested states bit for bit; NaN is what NaN is."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b
