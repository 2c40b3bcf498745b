"""Was a test randomised? Differences between its arms before the treatment, and the sizes of its arms."""

from __future__ import annotations

import torch
from scipy.stats import chi2, f
from torch import Tensor

RANK_TOLERANCE = 1e-9  # of the greatest eigenvalue: columns, scaled, that depend on others are left out


def standardized_differences(x: Tensor, treated: Tensor) -> Tensor:
    """Differences of the columns' means between treated and control units, in pooled standard deviations, [D].

    x is [N, D], treated bool [N]. A column that never differs has 0, a column that is constant within both and tells
    them apart ±∞.
    """
    x = x.double()
    variance = 0.5 * (x[treated].var(0) + x[~treated].var(0))
    difference = x[treated].mean(0) - x[~treated].mean(0)
    return torch.where(difference == 0, 0.0, difference / variance.sqrt())


def hotelling(x: Tensor, treated: Tensor) -> float:
    """P-value of equal means of all columns in treated and control units: Hotelling's T² (1931), by its F statistic.

    x is [N, D], treated bool [N]. Columns that depend on others, as the levels of a text do, count once. The p-value is
    0 where columns tell the units apart without a doubt.
    """
    x = x.double()
    deviation = (0.5 * (x[treated].var(0) + x[~treated].var(0))).sqrt()
    x = x / torch.where(deviation > 0, deviation, 1.0)  # so that the rank depends on no column's unit
    one, none = x[treated], x[~treated]
    m, n = len(one), len(none)
    difference = one.mean(0) - none.mean(0)
    scatter = (one - one.mean(0)).T @ (one - one.mean(0)) + (none - none.mean(0)).T @ (none - none.mean(0))
    values, vectors = torch.linalg.eigh(scatter / (m + n - 2))
    kept = values > RANK_TOLERANCE * values.amax().clamp_min(torch.finfo(torch.float64).tiny)
    rank = int(kept.sum())
    scale = x.abs().amax().clamp_min(1.0)
    if ((difference @ vectors[:, ~kept]).abs() > RANK_TOLERANCE * scale).any():  # apart where neither side varies
        return 0.0
    if rank == 0 or m + n - 2 <= rank:
        return 1.0
    projected = (difference @ vectors[:, kept]).square() / values[kept]
    t_squared = (m * n / (m + n) * projected.sum()).item()
    statistic = t_squared * (m + n - rank - 1) / (rank * (m + n - 2))
    return float(f.sf(statistic, rank, m + n - rank - 1))


def sample_ratio(counts: Tensor, shares: Tensor) -> float:
    """P-value of the arms' sizes [A] if each unit got an arm with probabilities `shares` [A]: Pearson's χ² test."""
    expected = shares.double() / shares.sum() * counts.sum()
    statistic = ((counts - expected).square() / expected).sum().item()
    return float(chi2.sf(statistic, len(counts) - 1))
