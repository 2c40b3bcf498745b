"""Estimates and intervals: normal and Student quantiles, and of off-policy terms the central limit, Bernstein and bootstrap."""
from __future__ import annotations

import math

import torch
from scipy.stats import t as student_t
from torch import Tensor

from rlcore.ope.estimators import Terms

LEVEL = 0.95  # of intervals whose level nobody chooses


# ── means ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def normal_quantile(level: float) -> float:
    """Half-width of the central interval of a standard normal that holds probability `level`: 1.96 at 0.95."""
    return torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()


def normal_half_width(x: Tensor, level: float) -> Tensor:
    """Half-width of the central limit interval of the mean over the first dimension of x [N, ...]; 0 of one value."""
    return normal_quantile(level) * x.std(dim=0, correction=min(1, len(x) - 1)) / len(x) ** 0.5


def student_half_width(x: Tensor, level: float) -> Tensor:
    """Half-width of Student's interval of the mean over the first dimension of x [N, ...]; 0 of one value."""
    if len(x) == 1:
        return torch.zeros_like(x[0])
    return student_t.ppf((1 + level) / 2, len(x) - 1) * x.std(0) / math.sqrt(len(x))


def central(draws: Tensor, level: float) -> Tensor:
    """Ends of the central interval that holds a share `level` of draws [..., R], [..., 2]."""
    tail = (1 - level) / 2
    return torch.quantile(draws, draws.new_tensor([tail, 1 - tail]), dim=-1).movedim(0, -1)


# ── off-policy estimates ────────────────────────────────────────────────────────────────────────────────────────────
def estimate(terms: Terms) -> Tensor:
    """Value of an estimator, [...]."""
    numerator, weight = terms.ratios()
    return terms.plain.mean(-1) + (numerator.sum(-2) / weight.sum(-2)).nan_to_num(0.0).sum(-1)


def influence(terms: Terms) -> Tensor:
    """Influence of each term on the estimate, times their number M, [..., M]: of mean zero (delta method)."""
    numerator, weight = terms.ratios()
    mean = weight.mean(-2, keepdim=True)
    ratio = numerator.mean(-2, keepdim=True) / mean
    moved = ((numerator - ratio * weight) / mean).nan_to_num(0.0).sum(-1)
    return terms.plain - terms.plain.mean(-1, keepdim=True) + moved


def sum_by_cluster(x: Tensor, cluster: Tensor | None) -> Tensor:
    """Sum terms [..., M] within clusters int64 [M] numbered from 0, [..., C]; without clusters each term is its own."""
    if cluster is None:
        return x
    return x.new_zeros(*x.shape[:-1], int(cluster.amax()) + 1).index_add_(-1, cluster, x)


def normal(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Central limit interval [...] of independent clusters, whose terms may be correlated within."""
    moved, value = sum_by_cluster(influence(terms), cluster), estimate(terms)
    count = moved.shape[-1]
    variance = count / max(count - 1, 1) * moved.square().sum(-1)
    half = normal_quantile(level) * variance.sqrt() / terms.plain.shape[-1]
    return value - half, value + half


def bernstein(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Empirical Bernstein interval [...] (Maurer & Pontil 2009), of any distribution whose range is the observed one."""
    moved, value = sum_by_cluster(influence(terms), cluster), estimate(terms)
    count = moved.shape[-1]
    moved = moved * (count / terms.plain.shape[-1])
    log = math.log(4 / (1 - level))
    half = (2 * moved.var(-1) * log / count).sqrt() + 7 * (moved.amax(-1) - moved.amin(-1)) * log / (3 * max(count - 1, 1))
    return value - half, value + half


def bootstrap(several: list[Terms], cluster: Tensor | None, replications: int, generator: torch.Generator,
              chunk: int = 4096) -> Tensor:
    """Estimates [L, replications] of several terms (no batch dimensions) on the same resampled clusters.

    Denominators are resampled too. Each cluster is drawn Poisson(1) times, independently of the others, so that clusters can
    be summed in chunks (Chamandy et al. 2012).
    """
    columns = [torch.ones_like(several[0].plain)[:, None]]
    for terms in several:
        columns += [terms.plain[:, None], *terms.ratios()]
    sums = sum_by_cluster(torch.cat(columns, 1).T, cluster).T  # [C, columns]
    total = sums.new_zeros(replications, sums.shape[1])
    for rows in sums.split(chunk):
        ones = torch.ones(replications, len(rows), device=rows.device)
        total += torch.poisson(ones, generator=generator).to(rows) @ rows
    count, estimates, at = total[:, 0], [], 1
    for terms in several:
        k = terms.ratios()[0].shape[-1]
        plain, numerator, weight = total[:, at:at + 1 + 2 * k].split((1, k, k), 1)
        estimates.append(plain[:, 0] / count + (numerator / weight).nan_to_num(0.0).sum(1))
        at += 1 + 2 * k
    return torch.stack(estimates)
