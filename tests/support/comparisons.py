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
    if isinstance(a, Tensor):
        both_nan = (a != a) & (b != b) if a.shape == b.shape else torch.tensor(False)
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | both_nan).all())
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
