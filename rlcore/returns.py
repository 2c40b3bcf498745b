"""From rewards to advantages, as pure functions."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from rlcore.losses import masked_mean


def gae(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float,
        lam: float) -> Tensor:
    """Generalised advantages [T, N] (Schulman et al. 2016, eq. 16).

    δ = r + γ·(1 − terminated)·next_value − value; the trace stops at `done` (terminated or truncated). `next_value`
    of a truncated step is the value of the observation that the reset has replaced.
    """
    delta = reward + gamma * torch.where(terminated, 0.0, next_value) - value
    decay = gamma * lam * (~done).to(delta.dtype)
    return discounted_sum(delta, decay)


def discounted_sum(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t · y_{t+1} of [T, N], by doubling (Hillis and Steele 1986): log T passes instead of T."""
    reach = 1  # y has x up to so many steps ahead, decay what is left of it by then
    while reach < len(x):
        near, far = x[:-reach], x[reach:]
        x = torch.cat((torch.addcmul(near, decay[:len(near)], far), x[-reach:]))
        decay, reach = decay[:-reach] * decay[reach:], 2 * reach
    return x


def whiten(x: Tensor, mask: Tensor | None = None, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Shift to mean 0 and scale to standard deviation 1 over the mask; zero elsewhere.

    Where x is one of many parts, `total` adds up over all (rlcore/backends/distributed.py).
    """
    centred = x - masked_mean(x, mask, total)
    scaled = centred * torch.rsqrt(masked_mean(centred.square(), mask, total) + 1e-8)
    return scaled if mask is None else torch.where(mask > 0, scaled, 0.0)


def rescale(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale to standard deviation 1 over the mask and keep the mean where it was; zero elsewhere."""
    mean = masked_mean(x, mask)
    scaled = whiten(x, mask) + mean
    return scaled if mask is None else torch.where(mask > 0, scaled, 0.0)
