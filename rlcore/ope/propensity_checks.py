"""Covariate-balance test: are the logged propensities those that drew the decisions?"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.normalization import Standardizer
from rlcore.ope.intervals import normal_quantile

MIN_STD = 1e-9
MIN_STANDARD_ERROR = 1e-12


def imbalance(known: Tensor, nothing: Tensor, propensity: Tensor, valid: Tensor) -> Tensor:
    """Return z statistics [2, D + 1]: do the inverse propensities of N decisions correlate with known columns?

    `known` [N, D] gets a constant column. `nothing`, bool [N], marks a = 0. `propensity` [N] is that of the action
    taken. `valid` [N] is the number of actions that the sender may have taken, nothing included.

    With true propensities E[1{a = 0}/p | x] = 1, and E[1{a ≠ 0}/p | x] is the number of other valid actions. Both
    terms, less these expectations, are uncorrelated with everything known before the decision (the balance of Imai &
    Ratkovic 2014), and each z is standard normal. Confounded decisions, which used more than the log has, pass this
    test.
    """
    known = known.double()
    standardized = Standardizer(known.shape[1], MIN_STD).fit(known)(known)
    constant = torch.ones_like(known[:, :1])
    x = torch.cat((standardized, constant), 1)

    inverse = 1 / propensity
    excess_nothing = torch.where(nothing, inverse, 0.0) - 1
    excess_others = torch.where(nothing, 0.0, inverse) - (valid - 1)
    excess = torch.stack((excess_nothing, excess_others))

    decided = valid > 1  # else there was no choice
    x = x[decided]
    moment = excess[:, decided, None] * x
    standard_error = moment.std(1) / len(x) ** 0.5
    z: Tensor = moment.mean(1) / standard_error.clamp_min(MIN_STANDARD_ERROR)
    return z


def least_significant(z: Tensor, level: float) -> float:
    """Return the least |z| that is significant among statistics z (Bonferroni).

    By chance alone, any of them is greater with probability `level` at most.
    """
    return normal_quantile(1 - level / z.numel())


def significant(z: Tensor, level: float) -> Tensor:
    """Return which z statistics are significant, bool like z."""
    return z.abs() > least_significant(z, level)
