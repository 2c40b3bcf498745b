"""Means of an experiment's groups and their differences, where rows may come in clusters that were drawn as a whole."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import t as student_t
from torch import Tensor

from rlcore.ope.intervals import sum_by_cluster


class GroupMean(NamedTuple):
    """The mean of a group's rows, and how it would move without each cluster."""

    value: float
    moves: Tensor  #: influence of each cluster on the mean, [C]; 0 where the cluster has no row of the group
    clusters: int  #: number of clusters with a row of the group

    @property
    def variance(self) -> float:
        """Variance of the mean over draws of clusters."""
        return self.moves.square().sum().item()


class Estimate(NamedTuple):
    """A value with its interval, and the p-value of its being 0."""

    value: float
    low: float
    high: float
    p: float


def group_mean(x: Tensor, in_group: Tensor, cluster: Tensor) -> GroupMean:
    """Return the mean of x [N] over the rows `in_group`, bool [N]; `cluster` int64 [N] is numbered from 0.

    The variance is that of a ratio of sums over independent clusters, with the correction C / (C − 1) (Liang & Zeger
    1986): correlation within a cluster may be anything. With one row a cluster it is s² / n. Raises ValueError where
    the group has fewer than two clusters, whose spread nothing tells.
    """
    x = x.double()
    rows = int(in_group.sum())
    count = len(cluster[in_group].unique())
    if count < 2:
        raise ValueError(f"expected two clusters or more in each group, got {count}")
    mean = x[in_group].mean()
    moved = torch.where(in_group, x - mean, 0.0) / rows
    correction = math.sqrt(count / (count - 1))
    return GroupMean(mean.item(), correction * sum_by_cluster(moved, cluster), count)


def mean_estimate(mean: GroupMean, level: float) -> Estimate:
    """Return a mean with Student's interval over its clusters."""
    return with_interval(mean.value, mean.variance, mean.clusters - 1, level)


def difference(one: GroupMean, other: GroupMean, level: float) -> Estimate:
    """Return `one` − `other` with Welch's interval (1947); a cluster with rows in both groups counts as paired."""
    variance = (one.moves - other.moves).square().sum().item()
    spread = one.variance**2 / (one.clusters - 1) + other.variance**2 / (other.clusters - 1)
    freedom = (one.variance + other.variance) ** 2 / spread if spread else math.inf
    return with_interval(one.value - other.value, variance, freedom, level)


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
