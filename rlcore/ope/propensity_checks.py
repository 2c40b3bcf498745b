"""Are a log's propensities those that its decisions were made with? What an imbalance tells, and what it can't."""
from __future__ import annotations

import torch
from torch import Tensor


def imbalance(known: Tensor, nothing: Tensor, propensity: Tensor, valid: Tensor) -> Tensor:
    """Standard normal statistics [2, D + 1] of decisions [N] on what was known of them [N, D], and on a constant.

    With true propensities E[1{a = 0}/p | x] = 1 and E[1{a ≠ 0}/p | x] is the number of other valid pairs, so that both, less
    that, are uncorrelated with whatever was known before (the balance of Imai & Ratkovic 2014). nothing: bool [N], a = 0.
    valid: valid pairs [N], `nothing` among them. Decisions that knew more than the log are not seen by this.
    """
    x = known.double()
    x = torch.cat(((x - x.mean(0)) / x.std(0).clamp_min(1e-9), torch.ones_like(x[:, :1])), 1)
    share = torch.stack((torch.where(nothing, 1 / propensity, 0.0) - 1,
                         torch.where(nothing, 0.0, 1 / propensity) - (valid - 1)))
    share = share[:, valid > 1]  # else there was nothing to decide
    moment = share[:, :, None] * x[valid > 1]
    return moment.mean(1) / (moment.std(1) / len(x[valid > 1]) ** 0.5).clamp_min(1e-12)


def beyond(z: Tensor, level: float) -> Tensor:
    """Which of standard normal statistics are too great for chance, if none is to be by a probability `level` (Bonferroni)."""
    tail = torch.tensor(1 - level / 2 / z.numel(), dtype=torch.float64)
    return z.abs() > torch.special.ndtri(tail).to(z)
