"""PPO's losses and diagnostics as pure functions; every mean can be taken over a mask (or weights) of the same shape."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor | None = None, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Mean of x over the mask (bool or weights), 0 where the mask is empty; what it leaves out gets no gradient.

    Where x is one of many parts, `total` adds up over all (rlcore/backends/distributed.py).
    """
    if mask is None:
        if total is None:
            return x.mean()
        mask = torch.ones_like(x)
    mask = mask.to(x.dtype)
    summed, weight = torch.where(mask > 0, x * mask, 0.0).sum(), mask.sum()
    if total is not None:
        summed, weight = total(torch.stack((summed, weight)))
    return summed / weight.clamp_min(1e-8)


def policy_loss(log_ratio: Tensor, advantage: Tensor, clip: float, mask: Tensor | None = None) -> Tensor:
    """Clipped surrogate, the pessimistic maximum of both (Schulman et al. 2017, eq. 7); log_ratio = log π − log π_old."""
    if mask is not None:  # before the exponential: an overflow there would make its zero gradient NaN
        log_ratio = torch.where(mask > 0, log_ratio, 0.0)
    ratio = log_ratio.exp()
    return masked_mean(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)), mask)


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None,
               mask: Tensor | None = None) -> Tensor:
    """Half the squared error; with `clip`, the larger of that and of the error of a value kept near its old one."""
    error = (value - target).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - target).square())
    return 0.5 * masked_mean(error, mask)


def kl_k1(log_ratio: Tensor) -> Tensor:
    """Estimate KL(π_old ‖ π) from samples of π_old, elementwise: unbiased, signed (Schulman 2020, joschu.net)."""
    return -log_ratio


def kl_k2(log_ratio: Tensor) -> Tensor:
    """The same, biased but of low variance: half the squared log-ratio."""
    return 0.5 * log_ratio.square()


def kl_k3(log_ratio: Tensor) -> Tensor:
    """The same, unbiased and never negative: (r − 1) − log r."""
    return log_ratio.exp() - 1 - log_ratio


def clip_fraction(log_ratio: Tensor, clip: float, mask: Tensor | None = None) -> Tensor:
    """Share of samples whose ratio has left [1 − clip, 1 + clip]."""
    return masked_mean(((log_ratio.exp() - 1).abs() > clip).to(log_ratio.dtype), mask)


def explained_variance(value: Tensor, target: Tensor, mask: Tensor | None = None,
                       total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """1 − Var(target − value) / Var(target); 0 where the target is constant."""
    def variance(x):
        return masked_mean((x - masked_mean(x, mask, total)).square(), mask, total)
    spread = variance(target)
    constant = spread <= 1e-12 * masked_mean(target.square(), mask, total)  # but for rounding
    return torch.where(constant, 0.0, 1 - variance(target - value) / spread.clamp_min(1e-30))


def ppo(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, entropy: Tensor, value: Tensor, old_value: Tensor,
        target: Tensor, mask: Tensor | None, value_mask: Tensor | None = None, *, clip: float, clip_value: float | None,
        vf_coef: float, ent_coef: Tensor | float, weight: Tensor | float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum PPO's three terms; all inputs have one shape. Return the loss and the field's diagnostics, detached.

    `mask` marks the samples that the policy is answerable for: policy, entropy and KL are means over it, times the
    `weight` of this part in the mean over all. The value is learned over `value_mask`, or everywhere.
    """
    log_ratio = log_prob - old_log_prob
    surrogate = weight * policy_loss(log_ratio, advantage, clip, mask)
    critic = value_loss(value, old_value, target, clip_value, value_mask)
    bonus = weight * masked_mean(entropy, mask)
    with torch.no_grad():
        metrics = {"policy_loss": surrogate, "value_loss": critic, "entropy": bonus,
                   "old_approx_kl": weight * masked_mean(kl_k1(log_ratio), mask),
                   "approx_kl": weight * masked_mean(kl_k3(log_ratio), mask),
                   "clipfrac": weight * clip_fraction(log_ratio, clip, mask)}
        metrics = {name: x.detach() for name, x in metrics.items()}
    return surrogate + vf_coef * critic - ent_coef * bonus, metrics
