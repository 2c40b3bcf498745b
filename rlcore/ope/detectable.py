"""How small a true difference of two groups' means a test finds, said before the test from what units brought so far.

A two-sided test at `level` finds a true difference d with probability `power` if d = (z_level + z_power) · error, but
for the chance, negligible at a power of a half or more, of finding it with the wrong sign (Cohen 1988, ch. 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.ope.intervals import normal_quantile


class Spread(NamedTuple):
    """How much units differ in what they brought, and how much of that was known before."""

    mean: float
    deviation: float  #: standard deviation over units
    correlation: float  #: with what units had brought before; 0 where nothing is known of it, or where all are alike


def spread_of_units(x: Tensor, before: Tensor) -> Spread:
    """Return the spread of x [N], where `before` [N] is what each unit had brought earlier, NaN where unknown.

    As in the adjusted comparison (`rlcore.ope.logged_rules.adjusted`), the mean of the others stands for an unknown
    value.
    """
    x, known = x.double(), ~before.isnan()
    before = torch.where(known, before.double(), before[known].double().mean())
    deviation = x.std().item()
    has_both = known.any() and deviation > 0 and before.std() > 0
    correlation = torch.corrcoef(torch.stack((x, before)))[0, 1].item() if has_both else 0.0
    return Spread(x.mean().item(), deviation, correlation)


def smallest_difference(
    spread: Spread, units: Sequence[float], level: float, power: float, *, is_adjusted: bool
) -> float:
    """Return the smallest true difference that a share `power` of tests of two groups of so many units tells from 0.

    Groups are drawn at random and spread alike. An adjusted comparison (CUPED: Deng, Xu, Kohavi & Walker 2013) has the
    error of a deviation that is smaller by √(1 − ρ²).
    """
    left = math.sqrt(max(1 - spread.correlation**2, 0.0)) if is_adjusted else 1.0
    error = spread.deviation * left * math.sqrt(sum(1 / n for n in units))
    return found_with(error, level, power)


def found_with(error: float, level: float, power: float) -> float:
    """Return the true difference that a share `power`, [½, 1), of two-sided tests at `level` tells from 0.

    `error` is the standard error of the estimated difference.
    """
    return (normal_quantile(level) + normal_quantile(2 * power - 1)) * error
