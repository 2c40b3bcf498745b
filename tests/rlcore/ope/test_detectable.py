"""How small a difference a test finds: by simulated tests, by the normal distribution, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from rlcore.ope.detectable import Spread, found_with, smallest_difference, spread_of_units

TESTS, UNITS = 4000, (90, 210)


def slopes(x: Tensor, before: Tensor) -> Tensor:
    """Least-squares slope of each row of x [R, n] on the same row of before."""
    x, before = x - x.mean(1, keepdim=True), before - before.mean(1, keepdim=True)
    return ((x * before).sum(1) / before.square().sum(1))[:, None]


def share_found(planted: float, level: float, correlation: float, is_adjusted: bool) -> float:
    """Simulate tests whose units' profits, of standard deviation 3, are skewed; return how many find the difference."""
    generator = torch.Generator().manual_seed(0)
    groups = []
    for n, effect in zip(UNITS, (planted, 0.0)):
        lasting, luck = torch.rand(2, TESTS, n, generator=generator, dtype=torch.float64).log().neg() - 1
        x = 5 + 3 * (correlation * lasting + math.sqrt(1 - correlation**2) * luck) + effect
        groups.append((x, 2 + 0.5 * lasting))
    if is_adjusted:
        middle = torch.cat([before for _, before in groups], 1).mean(1, keepdim=True)
        groups = [(x - slopes(x, before) * (before - middle), before) for x, before in groups]
    means = [x.mean(1) for x, _ in groups]
    error = torch.stack([x.var(1) / x.shape[1] for x, _ in groups]).sum(0).sqrt()
    is_found = means[0] - means[1] > stats.norm.ppf((1 + level) / 2) * error
    return is_found.double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("is_adjusted", [False, True], ids=["plain", "adjusted"])
def test_a_difference_of_the_size_that_is_said_is_found_as_often_as_is_said(is_adjusted):
    spread = Spread(mean=5.0, deviation=3.0, correlation=0.8)
    planted = smallest_difference(spread, UNITS, 0.95, 0.8, is_adjusted=is_adjusted)
    assert share_found(planted, 0.95, 0.8, is_adjusted) == pytest.approx(0.8, abs=0.05)
    assert share_found(0.5 * planted, 0.95, 0.8, is_adjusted) < 0.4


@pytest.mark.parametrize(("level", "power"), [(0.95, 0.8), (0.9, 0.95), (0.8, 0.5)])
def test_the_power_of_the_normal_test_is_that_which_was_asked_for(level, power):
    found = found_with(0.37, level, power)
    assert stats.norm.sf(stats.norm.ppf((1 + level) / 2) - found / 0.37) == pytest.approx(power, rel=1e-12)


def test_the_adjusted_difference_is_smaller_by_the_part_of_the_spread_that_is_known_before():
    spread = Spread(mean=1.0, deviation=2.0, correlation=-0.6)
    plain, adjusted = (smallest_difference(spread, (50, 200), 0.95, 0.8, is_adjusted=way) for way in (False, True))
    assert plain == pytest.approx((1.959963985 + 0.841621234) * 2 * math.sqrt(1 / 50 + 1 / 200), rel=1e-8)
    assert adjusted == pytest.approx(0.8 * plain, rel=1e-12)
    fourfold = smallest_difference(spread, (200, 800), 0.95, 0.8, is_adjusted=True)
    assert fourfold == pytest.approx(adjusted / 2, rel=1e-12)


def test_an_unknown_past_counts_as_the_mean_of_the_others():
    x, before = torch.tensor([1.0, 2.0, 4.0, 9.0]), torch.tensor([1.0, math.nan, 2.0, 6.0])
    found = spread_of_units(x, before)
    assert found.mean == 4 and found.deviation == pytest.approx(math.sqrt(38 / 3))
    assert found.correlation == pytest.approx(stats.pearsonr([1, 2, 4, 9], [1, 3, 2, 6]).statistic)


@pytest.mark.parametrize("before", [[3.0, 3.0, 3.0], [math.nan] * 3, [math.nan, 2.0, 2.0]])
def test_a_past_that_is_alike_or_unknown_tells_nothing(before):
    spread = spread_of_units(torch.tensor([1.0, 2.0, 6.0]), torch.tensor(before))
    assert spread.correlation == 0
    assert smallest_difference(spread, (9, 9), 0.95, 0.8, is_adjusted=True) == smallest_difference(
        spread, (9, 9), 0.95, 0.8, is_adjusted=False
    )


def test_units_that_are_alike_have_no_correlation():
    assert spread_of_units(torch.full((3,), 2.0), torch.tensor([1.0, 2.0, 3.0])) == (2.0, 0.0, 0.0)
