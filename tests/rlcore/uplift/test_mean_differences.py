"""Means of groups and their differences: Welch's interval, clusters, Holm's adjustment."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from rlcore.uplift.mean_differences import difference, group_mean, holm, mean_estimate


def test_without_clusters_a_difference_is_welch_s():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, generator=generator).exp()
    treated = torch.rand(90, generator=generator) < 0.2
    alone = torch.arange(90)
    one, other = group_mean(x, treated, alone), group_mean(x, ~treated, alone)
    found = difference(one, other, 0.9)
    reference = stats.ttest_ind(x[treated].double(), x[~treated].double(), equal_var=False)
    interval = reference.confidence_interval(0.9)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], rel=1e-9)
    mean = mean_estimate(one, 0.9)
    low, high = stats.t.interval(0.9, one.clusters - 1, loc=x[treated].mean(), scale=stats.sem(x[treated]))
    assert [mean.low, mean.high] == pytest.approx([low, high], rel=1e-6)


def test_clusters_of_equal_size_count_as_their_means():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=generator).double() + torch.randn(20, 1, generator=generator)
    cluster = torch.arange(20).repeat_interleave(3)
    treated = cluster < 8
    found = difference(group_mean(x.flatten(), treated, cluster), group_mean(x.flatten(), ~treated, cluster), 0.95)
    means = x.mean(1)
    reference = stats.ttest_ind(means[:8], means[8:], equal_var=False)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.value == pytest.approx((means[:8].mean() - means[8:].mean()).item())


def test_a_cluster_in_both_groups_counts_as_paired():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 1, generator=generator) + 0.1 * torch.randn(30, 2, generator=generator)
    cluster = torch.arange(30).repeat_interleave(2)
    first = torch.tensor([True, False]).repeat(30)
    found = difference(group_mean(x.flatten(), first, cluster), group_mean(x.flatten(), ~first, cluster), 0.95)
    pairs = (x[:, 0] - x[:, 1]).double()
    error = (found.high - found.value) / stats.t.ppf(0.975, 58)
    assert error == pytest.approx(stats.sem(pairs), rel=0.02)


def test_p_values_are_adjusted_from_the_least_on():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_group_whose_spread_nothing_tells_is_refused():
    x, cluster = torch.arange(4.0), torch.tensor([0, 0, 1, 2])
    with pytest.raises(ValueError, match="expected two clusters or more in each group, got 1"):
        group_mean(x, cluster == 0, cluster)
    same = group_mean(torch.ones(4), cluster > 0, cluster)
    assert difference(same, same, 0.95)[:3] == (0.0, 0.0, 0.0) and math.isfinite(mean_estimate(same, 0.95).p)
