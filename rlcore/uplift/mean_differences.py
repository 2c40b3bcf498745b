"""Means of an experiment's groups and their differences, where rows may come in clusters that were drawn as a whole.

Variances are the bias-reduced CR2 of Bell & McCaffrey (2002); degrees of freedom are Satterthwaite's, from the
variance's own distribution. One row a cluster gives Welch's interval (1947), and clusters that are all in both groups
with equal sizes give that of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

from rlcore.ope.intervals import normal_quantile


class GroupMean(NamedTuple):
    """The mean of a group's rows, and how it would move without each cluster."""

    value: float
    moves: Tensor  #: influence of each cluster on the mean, [C]; 0 where the cluster has no row of the group
    shares: Tensor  #: share of each cluster in the mean of each of S strata, [S, C]; a stratum's add up to 1
    parts: Tensor  #: share of each stratum in the variance if rows are independent and alike, [S]

    @property
    def variance(self) -> float:
        """Variance of the mean over draws of clusters."""
        return self.moves.square().sum().item()

    def times(self, factor: float) -> GroupMean:
        """Return the mean of the rows times a factor."""
        return self._replace(value=factor * self.value, moves=factor * self.moves)


class Estimate(NamedTuple):
    """A value with its interval, and the p-value of its being 0."""

    value: float
    low: float
    high: float
    p: float


def group_mean(x: Tensor, in_group: Tensor, cluster: Tensor) -> GroupMean:
    """Return the mean of x [N] over the rows `in_group`, bool [N]; `cluster` int64 [N] is numbered from 0.

    Correlation within a cluster may be anything. With one row a cluster the variance is s² / n. Raises ValueError
    where the group has fewer than two clusters, whose spread nothing tells.
    """
    return standardized_mean(x, in_group, cluster, torch.zeros_like(cluster), torch.ones(1, dtype=torch.float64))


def standardized_mean(x: Tensor, in_group: Tensor, cluster: Tensor, stratum: Tensor, weight: Tensor) -> GroupMean:
    """Return the mean of the group's strata under weights [S] that add up to 1; `stratum` int64 [N], below S.

    The strata's sizes count as given. Raises ValueError where the group has fewer than two clusters in a stratum of
    some weight. Rows in strata without weight don't count.
    """
    used = in_group & (weight[stratum] > 0)
    x, cluster_of_row, stratum = x[used].double(), cluster[used], stratum[used]
    clusters = int(cluster.amax()) + 1
    rows = stratum.bincount(minlength=len(weight)).double()  # of each stratum
    cell, of_row, rows_of_cell = (clusters * stratum + cluster_of_row).unique(return_inverse=True, return_counts=True)
    count = (cell // clusters).bincount(minlength=len(weight))[weight > 0].amin()
    if count < 2:
        raise ValueError(f"expected two clusters or more in each group, got {int(count)}")
    mean = torch.zeros_like(weight).index_add_(0, stratum, x) / rows.clamp_min(1)
    row_weight = (weight / rows)[stratum]
    share = rows_of_cell[of_row] / rows[stratum]  # of the row's cluster in its stratum
    moved = row_weight * (x - mean[stratum]) / (1 - share).sqrt()
    moves = torch.zeros(clusters, dtype=torch.float64).index_add_(0, cluster_of_row, moved)
    shares = torch.zeros(len(weight) * clusters, dtype=torch.float64)
    shares[cell] = rows_of_cell / rows[cell // clusters]
    has_weight = weight > 0
    parts = weight[has_weight].square() / rows[has_weight]
    shares = shares.view(len(weight), clusters)[has_weight]
    return GroupMean((weight * mean).sum().item(), moves, shares, parts / parts.sum())


def mean_estimate(mean: GroupMean, level: float) -> Estimate:
    """Return a mean with Student's interval over its clusters."""
    return with_interval(mean.value, mean.variance, 1 / overlap(mean, mean), level)


def difference(one: GroupMean, other: GroupMean, level: float) -> Estimate:
    """Return `one` − `other` with its interval; a cluster with rows in both groups counts as paired."""
    return total([one, other.times(-1)], level)


def total(means: Sequence[GroupMean], level: float) -> Estimate:
    """Return the sum of means with its interval; a cluster with rows in several of them moves the sum as a whole."""
    variance = torch.stack([mean.moves for mean in means]).sum(0).square().sum().item()
    return with_interval(sum(mean.value for mean in means), variance, freedom(*means), level)


def freedom(*means: GroupMean) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of means.

    The moves have a covariance G = Σ_k G_k, and the sum of their squares has (tr G)² / tr G² degrees of freedom.
    G_k = V_k·Σ_s ω_s·(diag(d_s) − p_s·p_sᵀ), d_s = h_s / (1 − h_s), p_s = h_s / √(1 − h_s), for a mean of variance V_k
    in whose stratum s clusters have the shares h_s, if rows are independent and alike (the working model of Bell &
    McCaffrey 2002); ω_s is the stratum's part of the variance.
    """
    spread = sum(
        (1 if one is other else 2) * one.variance * other.variance * overlap(one, other)
        for one, other in combinations_with_replacement(means, 2)
    )
    return sum(mean.variance for mean in means) ** 2 / spread if spread else math.inf


def overlap(one: GroupMean, other: GroupMean) -> float:
    """Return tr(G₁·G₂) for two means, as if their variances were 1.

    Of a mean with itself it is 1 / (C − 1) for C equal shares in one stratum, and of two means without a common cluster
    0.
    """
    h, g = one.shares, other.shares
    d, e = one.parts @ (h / (1 - h)), other.parts @ (g / (1 - g))
    p, q = h / (1 - h).sqrt(), g / (1 - g).sqrt()
    squares = one.parts @ (p @ q.T).square() @ other.parts
    return (d @ e - other.parts @ (q.square() @ d) - one.parts @ (p.square() @ e) + squares).item()


def difference_of_shares(one: Tensor, other: Tensor, level: float) -> Estimate:
    """Return the mean of `one` [N] − that of `other` [M], of independent zeros and ones (Agresti & Caffo 2000).

    A one and a zero more in each group keep the interval honest where few are one, or few are zero.
    """
    adjusted, variances = [], []
    for x in (one, other):
        share = (x.sum().item() + 1) / (len(x) + 2)
        adjusted.append(share)
        variances.append(share * (1 - share) / (len(x) + 2))
    error = math.sqrt(sum(variances))
    middle = adjusted[0] - adjusted[1]
    half_width = normal_quantile(level) * error
    value = one.double().mean().item() - other.double().mean().item()
    return Estimate(value, middle - half_width, middle + half_width, math.erfc(abs(middle) / error / math.sqrt(2)))


def with_interval(value: float, variance: float, freedom: float, level: float) -> Estimate:
    """Return a value with Student's interval of so many degrees of freedom, and the two-sided p-value of 0."""
    error = math.sqrt(variance)
    half_width = float(student_t.ppf((1 + level) / 2, freedom)) * error
    if error == 0:
        return Estimate(value, value, value, 1.0 if value == 0 else 0.0)
    p = 2 * float(student_t.sf(abs(value) / error, freedom))
    return Estimate(value, value - half_width, value + half_width, p)


def holm(p: list[float]) -> list[float]:
    """Adjust p-values so that with probability 1 − α no true hypothesis has one of α or less (Holm 1979)."""
    order = sorted(range(len(p)), key=lambda k: p[k])
    adjusted = [0.0] * len(p)
    greatest = 0.0
    for rank, k in enumerate(order):
        greatest = max(greatest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = greatest
    return adjusted
