"""Normal and Student quantiles; intervals of off-policy estimates: central limit, Bernstein, bootstrap."""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student_t
from torch import Tensor

from rlcore.ope.estimators import Terms

LEVEL = 0.95  # of intervals whose level is no setting


# ── means ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def normal_quantile(level: float) -> float:
    """Half-width of the central interval of a standard normal that holds probability `level`: 1.96 at 0.95."""
    share_below = (1 + level) / 2
    quantile = torch.special.ndtri(torch.tensor(share_below, dtype=torch.float64))
    return float(quantile)


def normal_half_width(x: Tensor, level: float) -> Tensor:
    """Half-width of the central limit interval of the mean over the first dimension of x [N, ...]; 0 of one value."""
    count = len(x)
    correction = min(1, count - 1)
    deviation = x.std(dim=0, correction=correction)
    half_width: Tensor = normal_quantile(level) * deviation / count**0.5
    return half_width


def student_half_width(x: Tensor, level: float) -> Tensor:
    """Half-width of Student's interval of the mean over the first dimension of x [N, ...]; 0 of one value."""
    count = len(x)
    if count == 1:
        return torch.zeros_like(x[0])
    share_below = (1 + level) / 2
    quantile = student_t.ppf(share_below, count - 1)
    half_width: Tensor = quantile * x.std(0) / math.sqrt(count)
    return half_width


def mean_and_half_width(x: Tensor) -> list[float]:
    """Mean of values [N] and the half-width of its Student's interval at LEVEL."""
    return [x.mean().item(), student_half_width(x, LEVEL).item()]


def central(draws: Tensor, level: float) -> Tensor:
    """Ends of the central interval that holds a share `level` of the draws [..., R] that are numbers, [..., 2]."""
    tail = (1 - level) / 2
    shares = draws.new_tensor([tail, 1 - tail])
    ends = torch.nanquantile(draws, shares, dim=-1)
    return ends.movedim(0, -1)


# ── off-policy estimates ────────────────────────────────────────────────────────────────────────────────────────────
def estimate(terms: Terms) -> Tensor:
    """Value of an estimator, [...], in the reward's unit."""
    numerator, weight = terms.ratios()
    plain = terms.plain.mean(-1)
    ratio = divided(numerator.sum(-2), weight.sum(-2))
    return plain + ratio.sum(-1)


def divided(numerator: Tensor, weight: Tensor) -> Tensor:
    """Return numerator / weight, and 0 where no weight is: at a step that no target's episode reaches."""
    return torch.where(weight == 0, 0.0, numerator / weight)


def influence(terms: Terms) -> Tensor:
    """Influence of each term on the estimate, times their number M, [..., M]: of mean zero (delta method)."""
    numerator, weight = terms.ratios()
    mean_numerator = numerator.mean(-2, keepdim=True)
    mean_weight = weight.mean(-2, keepdim=True)
    ratio = divided(mean_numerator, mean_weight)
    of_ratio = divided(numerator - ratio * weight, mean_weight)
    mean_plain = terms.plain.mean(-1, keepdim=True)
    of_plain = terms.plain - mean_plain
    return of_plain + of_ratio.sum(-1)


def sum_by_cluster(x: Tensor, cluster: Tensor | None) -> Tensor:
    """Sum terms [..., M] within clusters int64 [M] numbered from 0, [..., C]; without clusters each term is its own."""
    if cluster is None:
        return x
    clusters = int(cluster.amax()) + 1
    shape = (*x.shape[:-1], clusters)
    sums = x.new_zeros(shape)
    return sums.index_add_(-1, cluster, x)


def normal(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Ends [...] of the central limit interval of independent clusters, whose terms may be correlated within."""
    value = estimate(terms)
    size = terms.plain.shape[-1]
    moved = sum_by_cluster(influence(terms), cluster)
    count = moved.shape[-1]
    correction = count / max(count - 1, 1)
    variance = correction * moved.square().sum(-1)
    half_width = normal_quantile(level) * variance.sqrt() / size
    return value - half_width, value + half_width


def bernstein(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Ends [...] of the empirical Bernstein interval (Maurer & Pontil 2009): any distribution of the observed range."""
    value = estimate(terms)
    size = terms.plain.shape[-1]
    moved = sum_by_cluster(influence(terms), cluster)
    count = moved.shape[-1]
    moved = moved * (count / size)  # so that the estimate moves by the mean over clusters
    variance = moved.var(-1)
    spread = moved.amax(-1) - moved.amin(-1)
    delta = 1 - level
    log = math.log(4 / delta)
    variance_term = (2 * variance * log / count).sqrt()
    range_term = 7 * spread * log / (3 * max(count - 1, 1))
    half_width = variance_term + range_term
    return value - half_width, value + half_width


def bootstrap(
    several: list[Terms], cluster: Tensor | None, replications: int, generator: torch.Generator, chunk: int = 4096
) -> Tensor:
    """Estimates [L, replications] of L terms (no batch dimensions) on the same resampled clusters int64 [M].

    Denominators are resampled too. Each cluster is drawn Poisson(1) times, independently of the others, so that
    clusters can be summed `chunk` at a time (Chamandy et al. 2012). NaN is a replication without a cluster, and of a
    ratio one without the weight that all clusters together have.
    """
    one = torch.ones_like(several[0].plain)
    columns = [one[:, None]]
    for terms in several:
        numerator, weight = terms.ratios()
        columns += [terms.plain[:, None], numerator, weight]
    table = torch.cat(columns, 1)  # [M, columns]
    sums = sum_by_cluster(table.T, cluster).T  # [C, columns]
    total = sums.new_zeros(replications, sums.shape[1])
    for rows in torch.split(sums, chunk):
        rate = torch.ones(replications, len(rows), device=rows.device)
        times_drawn = torch.poisson(rate, generator=generator)
        total += times_drawn.to(rows) @ rows

    count = total[:, 0]
    estimates = []
    start = 1
    for terms in several:
        numerator, _ = terms.ratios()
        k = numerator.shape[-1]
        end = start + 1 + 2 * k
        sums_of_terms = total[:, start:end]
        plain, numerator, weight = torch.split(sums_of_terms, [1, k, k], 1)
        mean = plain[:, 0] / count
        ratio = divided(numerator, weight)
        lacks_weight = ((weight == 0) & (terms.ratios()[1].sum(-2) != 0)).any(1)
        estimates.append((mean + ratio.sum(1)).masked_fill(lacks_weight, torch.nan))
        start = end
    return torch.stack(estimates)
