"""Are importance weights what they should be? Their mean is 1, they are finite, and many of them count."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.ope import estimators as ope
from rlcore.ope.intervals import normal_quantile, sum_by_cluster

MEAN_LEVEL = 0.99  # of the interval of the mean weight that should hold 1
MEAN_TOLERANCE = 0.01  # and a mean this near to 1 is right, whatever the interval: probabilities are rounded


def check_weights(
    ratio: Tensor, cluster: Tensor, min_ess_share: float, undefined: list[str], least_propensity: float, sample: str
) -> tuple[dict[str, float], list[str]]:
    """Return diagnostics and warnings of the ratios [M, T] of episodes, which are clustered by `cluster` int64 [M].

    `undefined` names the estimators that are NaN, `sample` an episode. Weights are products of an episode's ratios.
    """
    weights = ratio.prod(1)
    episodes = len(weights)
    ess = ope.effective_sample_size(weights).item()
    diagnostics = {
        "effective": ess,
        "effective_share": ess / episodes,
        "max_weight": weights.amax().item(),
        "mean_weight": weights.mean().item(),
    }
    warnings = []
    if undefined:
        infinite = int((~ratio.cumprod(1).isfinite()).any(1).sum())
        of_weights = (
            f"; {infinite:,} of {episodes:,} {sample}s have an infinite weight, the least propensity is "
            f"{least_propensity:g}"
        )
        warnings.append(
            f"{', '.join(undefined)}: undefined, with sums greater than numbers can hold"
            f"{of_weights if infinite else ''}"
        )
    elif not ess >= min_ess_share * episodes:
        warnings.append(
            f"the weights are worth {ess:,.0f} of {episodes:,} {sample}s: intervals are too narrow where "
            "weights are so uneven; log with a policy nearer to the target, or more"
        )
    return diagnostics, warnings + mean_weight_warnings(weights, cluster, sample)


def mean_weight_warnings(weights: Tensor, cluster: Tensor, sample: str) -> list[str]:
    """Warn where the mean of weights [M], whose expectation is 1, is further from 1 than chance explains.

    With true propensities and a log of all that the target does, E[π(a|x)/p(a|x)] = 1.
    """
    mean = weights.mean()
    excess = sum_by_cluster(weights - mean, cluster)
    standard_error = excess.square().sum().sqrt() / len(weights)
    tolerance = torch.clamp(normal_quantile(MEAN_LEVEL) * standard_error, min=MEAN_TOLERANCE)
    if (mean - 1).abs() <= tolerance:
        return []
    return [
        f"the mean weight of a {sample} is {mean:.3g} and should be about 1: the propensities are not those that drew "
        "the decisions, or the log lacks decisions that the target would make"
    ]
