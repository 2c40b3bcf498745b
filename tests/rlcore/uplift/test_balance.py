"""Checks of randomisation against scipy's tests and scalar versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, ttest_ind

from rlcore.uplift.balance import hotelling, sample_ratio, standardized_differences


def columns(n=500, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.rand(n, generator=g) < 0.3


def test_one_column_is_students_test():
    x, treated = columns(d=1)
    wanted = ttest_ind(x[treated, 0].numpy(), x[~treated, 0].numpy()).pvalue
    assert hotelling(x, treated) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.slow
def test_p_values_of_randomised_tests_are_uniform():
    values = [hotelling(*columns(n=120, d=4, seed=seed)) for seed in range(300)]
    assert kstest(values, "uniform").pvalue > 0.01


def test_columns_that_depend_on_others_count_once():
    x, treated = columns()
    twice = torch.cat((x, x[:, :1] - 2 * x[:, 1:2]), 1)
    assert hotelling(twice, treated) == pytest.approx(hotelling(x, treated), rel=1e-6)


def test_units_of_the_columns_change_nothing():
    x, treated = columns()
    scaled = x * torch.tensor([1e7, 1.0, 1e-4], dtype=torch.float64)
    assert hotelling(scaled, treated) == pytest.approx(hotelling(x, treated), rel=1e-6)


def test_a_shifted_column_is_found():
    x, treated = columns()
    x[treated, 1] += 0.8
    assert hotelling(x, treated) < 1e-6
    differences = standardized_differences(x, treated)
    a, b = x[treated, 1].numpy(), x[~treated, 1].numpy()
    wanted = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert differences[1].item() == pytest.approx(wanted)


def test_sizes_of_arms_are_pearsons_test():
    counts, shares = torch.tensor([520, 480, 1100]), torch.tensor([0.25, 0.25, 0.5])
    wanted = chisquare(counts.numpy(), shares.numpy() * 2100).pvalue
    assert sample_ratio(counts, shares) == pytest.approx(wanted, rel=1e-9)
