"""Means of groups and their differences: Welch's interval, clusters, Holm's adjustment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rlcore.uplift.mean_differences import (
    difference,
    difference_of_shares,
    freedom,
    group_mean,
    holm,
    mean_estimate,
    overlap,
    standardized_mean,
)


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
    low, high = stats.t.interval(0.9, int(treated.sum()) - 1, loc=x[treated].mean(), scale=stats.sem(x[treated]))
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
    reference = stats.ttest_1samp(pairs, 0.0)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6)
    assert [found.low, found.high] == pytest.approx([*reference.confidence_interval(0.95)], rel=1e-6)


def moves_of_rows(in_group, cluster):
    """Moves of every row's unit change, [N, C]: the group's mean is linear in its rows."""
    return torch.stack([group_mean(row, in_group, cluster).moves for row in torch.eye(len(cluster)).double()])


def test_variance_and_degrees_of_freedom_are_those_of_matrices():
    """The references are those of regression: CR2 by inverse square roots of I − H, df by the moves' covariance."""
    generator = torch.Generator().manual_seed(3)
    cluster = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 5, 6, 7, 7])
    first = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]).bool()
    x = torch.randn(20, generator=generator).double() * torch.where(first, 3.0, 1.0)
    one, other = group_mean(x, first, cluster), group_mean(x, ~first, cluster)
    design = torch.stack((first, ~first), 1).double()
    bread = torch.linalg.inv(design.T @ design)
    residual = x - design @ bread @ design.T @ x
    meat = torch.zeros(2, 2, dtype=torch.float64)
    for c in range(8):
        rows = design[cluster == c]
        values, vectors = torch.linalg.eigh(torch.eye(len(rows)) - rows @ bread @ rows.T)
        score = rows.T @ vectors @ torch.diag(values**-0.5) @ vectors.T @ residual[cluster == c]
        meat += torch.outer(score, score)
    contrast = bread @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert (one.moves - other.moves).square().sum() == pytest.approx((contrast @ meat @ contrast).item())
    moves = moves_of_rows(first, cluster) - moves_of_rows(~first, cluster)
    spread = torch.where(first, one.variance * first.sum(), other.variance * (~first).sum())  # of a row
    covariance = moves.T @ (spread[:, None] * moves)
    assert freedom(one, other) == pytest.approx((covariance.trace() ** 2 / covariance.square().sum()).item())
    assert 1 / overlap(one, one) < len(cluster[first].unique()) - 1  # of unequal sizes


def degrees_of_freedom_by_matrices(means, unit_changes, in_groups):
    """(tr G)² / tr G² of the moves' covariance G, which `unit_changes` of each row's value [N, C] give, by group."""
    covariance = torch.zeros(unit_changes[0].shape[1], unit_changes[0].shape[1], dtype=torch.float64)
    for mean, changes, in_group in zip(means, unit_changes, in_groups):
        own = changes[in_group]
        covariance += mean.variance / own.square().sum() * own.T @ own
    return (covariance.trace() ** 2 / covariance.square().sum()).item()


@pytest.mark.parametrize("weights", [[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
def test_degrees_of_freedom_of_strata_are_those_of_matrices(weights):
    """Clusters of several rows and strata, some in both groups; each stratum has a mean of its own."""
    generator = torch.Generator().manual_seed(6)
    n = 60
    cluster, stratum = (torch.randint(k, (n,), generator=generator) for k in (9, 3))
    first = torch.rand(n, generator=generator) < 0.4
    weight = torch.tensor(weights, dtype=torch.float64)
    x = torch.randn(n, generator=generator).double() * torch.where(first, 3.0, 1.0)
    groups = [first, ~first]
    means = [standardized_mean(x, rows, cluster, stratum, weight) for rows in groups]
    rows = torch.eye(n).double()
    changes = [
        torch.stack([standardized_mean(row, rows_of, cluster, stratum, weight).moves for row in rows])
        for rows_of in groups
    ]
    assert freedom(*means) == pytest.approx(degrees_of_freedom_by_matrices(means, changes, groups))
    alone = degrees_of_freedom_by_matrices(means[:1], changes, groups)
    assert 1 / overlap(means[0], means[0]) == pytest.approx(alone)


def test_two_units_an_arm_and_week_have_a_degree_of_freedom_each():
    """26 weeks, all units different: a pair of units has one degree of freedom in each arm and week."""
    stratum, first = torch.arange(26).repeat_interleave(4), torch.tensor([True, True, False, False]).repeat(26)
    pair = torch.tensor([-1.0, 1.0, -1.0, 1.0]).repeat(26)
    weight = torch.full((26,), 1 / 26, dtype=torch.float64)
    means = [standardized_mean(pair, rows, torch.arange(104), stratum, weight) for rows in (first, ~first)]
    assert freedom(*means) == pytest.approx(52)
    assert 1 / overlap(means[0], means[0]) == pytest.approx(26)


@pytest.mark.long
def test_intervals_of_few_clusters_in_both_groups_hold():
    """Welch's formula would count each cluster twice: 10 and not 5 degrees of freedom."""
    generator = torch.Generator().manual_seed(4)
    cluster = torch.arange(6).repeat_interleave(4)
    first = torch.tensor([True, True, False, False]).repeat(6)
    holds = 0
    for x in torch.randn(800, 24, generator=generator):
        found = difference(group_mean(x, first, cluster), group_mean(x, ~first, cluster), 0.9)
        holds += found.low <= 0 <= found.high
    assert holds / 800 == pytest.approx(0.9, abs=0.02)


def test_a_panel_of_clusters_counts_as_their_means():
    """Every cluster has a row in each of three strata of equal weight."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, 3, generator=generator).double() + torch.randn(20, 1, generator=generator)
    cluster, stratum = torch.arange(20).repeat_interleave(3), torch.arange(3).repeat(20)
    weight = torch.full((3,), 1 / 3, dtype=torch.float64)
    means = [standardized_mean(x.flatten(), rows, cluster, stratum, weight) for rows in (cluster < 8, cluster >= 8)]
    found = difference(*means, 0.95)
    reference = stats.ttest_ind(x.mean(1)[:8], x.mean(1)[8:], equal_var=False)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert means[0].shares[0, :8].tolist() == pytest.approx([1 / 8] * 8)
    with pytest.raises(ValueError, match="expected two clusters or more in each group, got 1"):
        standardized_mean(x.flatten(), (cluster < 8) & ((stratum < 2) | (cluster < 1)), cluster, stratum, weight)


def coverage(rule, n, m, p, q):
    """Probability that an interval of the difference of two shares has the true one, over all numbers of ones."""
    chance = np.outer(stats.binom.pmf(range(n + 1), n, p), stats.binom.pmf(range(m + 1), m, q))
    total = 0.0
    for ones, others in np.argwhere(chance > 1e-5).tolist():
        low, high = rule(ones, n, others, m)
        total += chance[ones, others] * (low <= p - q <= high)
    return total


def test_the_interval_of_two_shares_holds_where_few_are_one():
    def rows(ones, n):
        return (torch.arange(n) < ones).double()

    def ours(ones, n, others, m):
        return difference_of_shares(rows(ones, n), rows(others, m), 0.95)[1:3]

    def wald(ones, n, others, m):
        a, b = ones / n, others / m
        half = 1.96 * math.sqrt(a * (1 - a) / n + b * (1 - b) / m)
        return a - b - half, a - b + half

    case = (60, 240, 0.05, 0.05)
    assert coverage(ours, *case) > 0.94
    assert coverage(wald, *case) < 0.92
    found = difference_of_shares(rows(3, 60), rows(12, 240), 0.95)
    assert found.value == 0 and found.low < 0 < found.high
    middle, error = 4 / 62 - 13 / 242, math.sqrt(4 / 62 * 58 / 62 / 62 + 13 / 242 * 229 / 242 / 242)
    assert [found.low, found.high] == pytest.approx([middle - 1.959964 * error, middle + 1.959964 * error])
    assert found.p == pytest.approx(2 * stats.norm.sf(middle / error))


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
