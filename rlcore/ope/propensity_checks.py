"""Covariate-balance test of logged propensities: are they those that the decisions were made with?"""
from __future__ import annotations

import torch
from torch import Tensor

from rlcore.normalization import Standardizer
from rlcore.ope.intervals import normal_quantile

MIN_STD = 1e-9


def imbalance(known: Tensor, nothing: Tensor, propensity: Tensor, valid: Tensor) -> Tensor:
    """Standard normal statistics [2, D + 1] of decisions [N] on what was known of them [N, D], and on a constant.

    With true propensities E[1{a = 0}/p | x] = 1 and E[1{a ≠ 0}/p | x] is the number of other valid actions, so that both, less
    that, are uncorrelated with all that was known before (the balance of Imai & Ratkovic 2014). nothing: bool [N], a = 0.
    valid: number of valid actions [N], `nothing` among them. Decisions that knew more than the log pass this test.
    """
    x = known.double()
    x = torch.cat((Standardizer(x.shape[1], MIN_STD).fit(x)(x), torch.ones_like(x[:, :1])), 1)
    share = torch.stack((torch.where(nothing, 1 / propensity, 0.0) - 1,
                         torch.where(nothing, 0.0, 1 / propensity) - (valid - 1)))
    share = share[:, valid > 1]  # else there was nothing to decide
    moment = share[:, :, None] * x[valid > 1]
    return moment.mean(1) / (moment.std(1) / len(x[valid > 1]) ** 0.5).clamp_min(1e-12)


def significant(z: Tensor, level: float) -> Tensor:
    """Which standard normal statistics are significant, if none is to be by chance but with probability `level` (Bonferroni)."""
    return z.abs() > normal_quantile(1 - level / z.numel())
