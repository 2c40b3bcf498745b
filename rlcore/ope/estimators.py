"""Off-policy evaluation: what another policy would have brought, from what a logging policy did; pure functions.

Shapes may have batch dimensions ahead, [...]. A unit is what is averaged over: a decision, or a season of T decisions.
w = π(a|x) / p(a|x) is the weight of an action taken, q̂ a model's outcome of it, v̂ = Σ_a π(a|x)·q̂(x, a).
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """An estimate in parts: mean of `plain` [..., M] and the sum over K of Σ part / Σ weight, [..., M, K] each.

    So that whoever resamples units recomputes the denominators too.
    """

    plain: Tensor
    part: Tensor | None = None
    weight: Tensor | None = None

    def parts(self) -> tuple[Tensor, Tensor]:
        """Parts and weights, of no columns where there are none."""
        none = self.plain[..., None][..., :0]
        return (none, none) if self.part is None else (self.part, self.weight)


# ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────────
def taken(table: Tensor, action: Tensor) -> Tensor:
    """Pick the entries of a table [..., N, A] at actions [..., N]."""
    return table.gather(-1, action[..., None])[..., 0]


def ips(w: Tensor, reward: Tensor, clip: float = math.inf) -> Terms:
    """min(w, clip)·r (Horvitz & Thompson 1952; clipped, Ionides 2008)."""
    return Terms(w.clamp_max(clip) * reward)


def snips(w: Tensor, reward: Tensor) -> Terms:
    """Σ w·r / Σ w (Swaminathan & Joachims 2015)."""
    return Terms(torch.zeros_like(w), (w * reward)[..., None], w[..., None])


def dm(v: Tensor) -> Terms:
    """v̂, the direct method."""
    return Terms(v)


def dr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, clip: float = math.inf) -> Terms:
    """v̂ + min(w, clip)·(r − q̂) (Dudík, Langford & Li 2011)."""
    return Terms(v + w.clamp_max(clip) * (reward - q))


def sndr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor) -> Terms:
    """v̂ + Σ w·(r − q̂) / Σ w."""
    return Terms(v, (w * (reward - q))[..., None], w[..., None])


def switch_dr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, limit: float) -> Terms:
    """v̂ + 1{w ≤ limit}·w·(r − q̂) (Wang, Agarwal & Dudík 2017): at 0 the direct method, at ∞ doubly robust."""
    return Terms(v + torch.where(w <= limit, w, 0.0) * (reward - q))


def dros(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, shrinkage: float) -> Terms:
    """v̂ + λw/(w² + λ)·(r − q̂) (Su, Dimakopoulou, Krishnamurthy & Dudík 2020): at ∞ doubly robust."""
    shrunk = w if math.isinf(shrinkage) else shrinkage * w / (w.square() + shrinkage)
    return Terms(v + shrunk * (reward - q))


# ── seasons: ratio, reward, v, q, following [..., M, T], ratio 1 and the others 0 where a season is over ────────────
def discounts(like: Tensor, gamma: float) -> Tensor:
    """γ^t, [T]."""
    return gamma ** torch.arange(like.shape[-1], device=like.device, dtype=like.dtype)


def pdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """Σ_t γ^t·w_{1:t}·r_t (Precup, Sutton & Singh 2000), w_{1:t} the product of the ratios so far."""
    return Terms((discounts(reward, gamma) * ratio.cumprod(-1) * reward).sum(-1))


def wpdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """The same with the weights of each t divided by their mean over seasons."""
    w = ratio.cumprod(-1)
    return Terms(torch.zeros_like(w[..., 0]), discounts(reward, gamma) * w * reward, w)


def residual(reward: Tensor, q: Tensor, following: Tensor, gamma: float) -> Tensor:
    """γ^t·(r_t + γ·v̂_{t+1} − q̂_t), by which a model of values was wrong; `following` is v̂ of the next state, 0 at the end."""
    return discounts(reward, gamma) * (reward + gamma * following - q)


def sequential_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, following: Tensor, gamma: float) -> Terms:
    """v̂_1 + Σ_t w_{1:t}·residual_t (Jiang & Li 2016)."""
    return Terms(v[..., 0] + (ratio.cumprod(-1) * residual(reward, q, following, gamma)).sum(-1))


def weighted_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, following: Tensor, gamma: float) -> Terms:
    """The same with the weights of each t divided by their mean over seasons (Thomas & Brunskill 2016)."""
    w = ratio.cumprod(-1)
    return Terms(v[..., 0], w * residual(reward, q, following, gamma), w)


# ── estimates and intervals ─────────────────────────────────────────────────────────────────────────────────────────
def estimate(terms: Terms) -> Tensor:
    """The estimate, [...]."""
    part, weight = terms.parts()
    return terms.plain.mean(-1) + (part.sum(-2) / weight.sum(-2)).nan_to_num(0.0).sum(-1)


def influence(terms: Terms) -> Tensor:
    """How much each unit moves the estimate, times their number, [..., M]: mean zero (delta method)."""
    part, weight = terms.parts()
    mean = weight.mean(-2, keepdim=True)
    ratio = part.mean(-2, keepdim=True) / mean
    moved = ((part - ratio * weight) / mean).nan_to_num(0.0).sum(-1)
    return terms.plain - terms.plain.mean(-1, keepdim=True) + moved


def clustered(x: Tensor, cluster: Tensor | None) -> Tensor:
    """Sum units [..., M] within clusters int64 [M] numbered from 0, [..., C]; without, each is its own."""
    if cluster is None:
        return x
    return x.new_zeros(*x.shape[:-1], int(cluster.amax()) + 1).index_add_(-1, cluster, x)


def normal(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Central limit interval [...], clusters being independent and units within one not."""
    moved, value = clustered(influence(terms), cluster), estimate(terms)
    count, z = moved.shape[-1], torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item()
    half = z * (count / max(count - 1, 1) * moved.square().sum(-1)).sqrt() / terms.plain.shape[-1]
    return value - half, value + half


def bernstein(terms: Terms, cluster: Tensor | None, level: float) -> tuple[Tensor, Tensor]:
    """Empirical Bernstein interval [...] (Maurer & Pontil 2009): for any law, of a range taken to be the one seen."""
    moved, value = clustered(influence(terms), cluster), estimate(terms)
    count = moved.shape[-1]
    moved = moved * (count / terms.plain.shape[-1])
    log = math.log(4 / (1 - level))
    half = (2 * moved.var(-1) * log / count).sqrt() + 7 * (moved.amax(-1) - moved.amin(-1)) * log / (3 * max(count - 1, 1))
    return value - half, value + half


def bootstrap(several: list[Terms], cluster: Tensor | None, replications: int, generator: torch.Generator,
              chunk: int = 4096) -> Tensor:
    """Estimates [L, replications] of several terms (no batch dimensions) on the same resampled clusters.

    Denominators are resampled too. How often a cluster is drawn is Poisson(1), each on its own, so that clusters can be
    gone through in chunks (Chamandy et al. 2012).
    """
    columns = [torch.ones_like(several[0].plain)[:, None]]
    for terms in several:
        columns += [terms.plain[:, None], *terms.parts()]
    sums = clustered(torch.cat(columns, 1).T, cluster).T  # [C, columns]
    total = sums.new_zeros(replications, sums.shape[1])
    for rows in sums.split(chunk):
        ones = torch.ones(replications, len(rows), device=rows.device)
        total += torch.poisson(ones, generator=generator).to(rows) @ rows
    count, estimates, at = total[:, 0], [], 1
    for terms in several:
        k = terms.parts()[0].shape[-1]
        plain, part, weight = total[:, at:at + 1 + 2 * k].split((1, k, k), 1)
        estimates.append(plain[:, 0] / count + (part / weight).nan_to_num(0.0).sum(1))
        at += 1 + 2 * k
    return torch.stack(estimates)


# ── how far a log can be trusted ────────────────────────────────────────────────────────────────────────────────────
def effective_sample_size(w: Tensor) -> Tensor:
    """(Σw)² / Σw² of weights [..., M] (Kish 1965)."""
    return w.sum(-1).square() / w.square().sum(-1).clamp_min(1e-300)


def unsupported(target: Tensor, probs: Tensor) -> Tensor:
    """Share of what the target does, [..., N, A], that the logging policy never would, [...]."""
    return torch.where(probs > 0, 0.0, target).sum(-1).mean(-1)
