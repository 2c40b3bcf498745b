"""PPO's losses and diagnostics as pure functions. A bool mask leaves samples out; a float mask weights them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]  # adds a tensor up over all processes (rlcore/backends/distributed.py)


def masked_mean(x: Tensor, mask: Tensor | None = None, all_reduce: AllReduce | None = None) -> Tensor:
    """Return the mean of x over the samples where `mask` is true or positive; floats weight the samples.

    The mean of no sample is 0. Samples that are left out get no gradient. With `all_reduce`, the mean is over the
    samples of all processes.
    """
    if mask is None:
        if all_reduce is None:
            return x.mean()
        mask = torch.ones_like(x)
    weight = mask.to(x.dtype)
    weighted = torch.where(weight > 0, x * weight, 0.0)
    numerator = weighted.sum()
    denominator = weight.sum()
    if all_reduce is not None:
        numerator, denominator = all_reduce(torch.stack((numerator, denominator)))
    return numerator / denominator.clamp_min(1e-8)


def policy_loss(log_ratio: Tensor, advantage: Tensor, clip: float, mask: Tensor | None = None) -> Tensor:
    """Return the clipped surrogate loss (Schulman et al. 2017, eq. 7); log_ratio = log π − log π_old."""
    if mask is not None:
        # Samples outside the mask get ratio 1. Otherwise exp could overflow, and their gradient 0 · inf would be NaN.
        log_ratio = torch.where(mask > 0, log_ratio, 0.0)
    ratio = log_ratio.exp()
    unclipped_loss = -advantage * ratio
    clipped_loss = -advantage * ratio.clamp(1 - clip, 1 + clip)
    pessimistic_loss = torch.maximum(unclipped_loss, clipped_loss)
    return masked_mean(pessimistic_loss, mask)


def expected_policy_loss(
    log_ratio: Tensor, old_prob: Tensor, advantage: Tensor, clip: float, mask: Tensor | None = None
) -> Tensor:
    """Return the clipped surrogate loss in expectation over the old policy.

    Inputs are [B, P]: B samples, P joint actions. The loss is the mean, over the samples in `mask` [B], of
    −Σ_a π_old(a)·min(ratio(a)·A(a), clip(ratio(a))·A(a)). The caller sets log_ratio to 0 at invalid actions. At ratio 1
    the loss has the gradient of −Σ_a π(a)·A(a), without the noise of sampled actions.
    """
    ratio = log_ratio.exp()
    pessimistic_gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -masked_mean((old_prob * pessimistic_gain).sum(-1), mask)


def value_loss(
    value: Tensor, old_value: Tensor, target: Tensor, clip: float | None, mask: Tensor | None = None
) -> Tensor:
    """Return half the mean squared error of the value.

    With `clip`, a sample has the larger of two squared errors: that of the value, and that of the value clipped to
    within `clip` of `old_value`.
    """
    squared_error = (value - target).square()
    if clip is not None:
        change = (value - old_value).clamp(-clip, clip)
        clipped_value = old_value + change
        clipped_error = (clipped_value - target).square()
        squared_error = torch.maximum(squared_error, clipped_error)
    return 0.5 * masked_mean(squared_error, mask)


def kl_k1(log_ratio: Tensor) -> Tensor:
    """Estimate KL(π_old ‖ π) from samples of π_old, elementwise: unbiased, signed (Schulman 2020, joschu.net)."""
    return -log_ratio


def kl_k3(log_ratio: Tensor) -> Tensor:
    """Estimate the same KL by (r − 1) − log r with r = exp(log_ratio) = π/π_old: unbiased, never negative."""
    return log_ratio.exp() - 1 - log_ratio


def clip_fraction(log_ratio: Tensor, clip: float, mask: Tensor | None = None) -> Tensor:
    """Return the share of samples whose ratio has left [1 − clip, 1 + clip]."""
    deviation = (log_ratio.exp() - 1).abs()
    clipped = (deviation > clip).to(log_ratio.dtype)
    return masked_mean(clipped, mask)


def explained_variance(
    value: Tensor, target: Tensor, mask: Tensor | None = None, all_reduce: AllReduce | None = None
) -> Tensor:
    """Return 1 − Var(target − value) / Var(target), and 0 where the target is constant."""

    def variance(x: Tensor) -> Tensor:
        mean = masked_mean(x, mask, all_reduce)
        squared_deviation = (x - mean).square()
        return masked_mean(squared_deviation, mask, all_reduce)

    target_variance = variance(target)
    mean_square = masked_mean(target.square(), mask, all_reduce)
    is_constant = target_variance <= 1e-12 * mean_square  # up to rounding
    residual_variance = variance(target - value)
    explained = 1 - residual_variance / target_variance.clamp_min(1e-30)
    return torch.where(is_constant, 0.0, explained)


def ppo(
    *,
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    entropy: Tensor,
    value: Tensor,
    old_value: Tensor,
    target: Tensor,
    mask: Tensor | None,
    value_mask: Tensor | None = None,
    clip: float,
    clip_value: float | None,
    vf_coef: float,
    ent_coef: Tensor | float,
    weight: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return PPO's loss (Schulman et al. 2017, eq. 9), and detached diagnostics.

    All tensors up to `value_mask` have one shape. `mask` marks the samples that the policy learns from, such as those
    with several valid actions. Policy loss, entropy, KL and clip fraction are means over these samples, times `weight`.
    `weight` is the number of these samples in this process, divided by the mean number per process. The average over
    processes is then the mean over all samples. The value loss is a mean over `value_mask`.
    """
    log_ratio = log_prob - old_log_prob
    policy_term = weight * policy_loss(log_ratio, advantage, clip, mask)
    value_term = value_loss(value, old_value, target, clip_value, value_mask)
    entropy_term = weight * masked_mean(entropy, mask)
    with torch.no_grad():
        old_approx_kl = weight * masked_mean(kl_k1(log_ratio), mask)
        approx_kl = weight * masked_mean(kl_k3(log_ratio), mask)
        clipfrac = weight * clip_fraction(log_ratio, clip, mask)
    metrics = {
        "policy_loss": policy_term.detach(),
        "value_loss": value_term.detach(),
        "entropy": entropy_term.detach(),
        "old_approx_kl": old_approx_kl,
        "approx_kl": approx_kl,
        "clipfrac": clipfrac,
    }
    return policy_term + vf_coef * value_term - ent_coef * entropy_term, metrics
