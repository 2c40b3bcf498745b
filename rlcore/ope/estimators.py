"""Off-policy estimators: the value of a target policy from the decisions of a logging policy; pure functions.

Shapes may have batch dimensions ahead, [...]. An estimate averages over M decisions, or over M episodes of T decisions.
w = π(a|x) / p(a|x) is the importance weight of the action taken, q̂ a model's outcome of it, v̂ = Σ_a π(a|x)·q̂(x, a).
Values are in the reward's unit. rlcore/ope/intervals.py turns the terms into estimates and intervals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """An estimate in parts: the mean of `plain` over M, plus the sum over K of Σ numerator / Σ weight over M.

    A bootstrap that resamples the terms recomputes the denominators too.
    """

    plain: Tensor  #: [..., M]
    numerator: Tensor | None = None  #: [..., M, K], None where the estimator has no ratio
    weight: Tensor | None = None  #: [..., M, K], the denominators' terms

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Return numerators and weights, of no columns where there are none."""
        if self.numerator is None or self.weight is None:
            no_columns = self.plain[..., None][..., :0]
            return no_columns, no_columns
        return self.numerator, self.weight


# ── one step: w, reward, v, q [..., M] ──────────────────────────────────────────────────────────────────────────────
def select_actions(table: Tensor, action: Tensor) -> Tensor:
    """Pick the entries of a table [..., N, A] at actions [..., N], [..., N]."""
    index = action[..., None]
    return table.gather(-1, index)[..., 0]


def ips(w: Tensor, reward: Tensor, clip: float = math.inf) -> Terms:
    """Inverse propensity scoring: min(w, clip)·r (Horvitz & Thompson 1952; clipped, Ionides 2008)."""
    clipped = w.clamp_max(clip)
    return Terms(plain=clipped * reward)


def snips(w: Tensor, reward: Tensor) -> Terms:
    """Self-normalised IPS: Σ w·r / Σ w (Swaminathan & Joachims 2015)."""
    zero = torch.zeros_like(w)
    numerator = (w * reward)[..., None]
    weight = w[..., None]
    return Terms(plain=zero, numerator=numerator, weight=weight)


def dm(v: Tensor) -> Terms:
    """The direct method: v̂."""
    return Terms(plain=v)


def dr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, clip: float = math.inf) -> Terms:
    """Doubly robust: v̂ + min(w, clip)·(r − q̂) (Dudík, Langford & Li 2011)."""
    clipped = w.clamp_max(clip)
    residual = reward - q
    return Terms(plain=v + clipped * residual)


def sndr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor) -> Terms:
    """Self-normalised doubly robust: v̂ + Σ w·(r − q̂) / Σ w."""
    residual = reward - q
    numerator = (w * residual)[..., None]
    weight = w[..., None]
    return Terms(plain=v, numerator=numerator, weight=weight)


def switch_dr(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, limit: float) -> Terms:
    """v̂ + 1{w ≤ limit}·w·(r − q̂) (Wang, Agarwal & Dudík 2017): at 0 the direct method, at ∞ doubly robust."""
    kept = torch.where(w <= limit, w, 0.0)
    residual = reward - q
    return Terms(plain=v + kept * residual)


def dros(w: Tensor, reward: Tensor, v: Tensor, q: Tensor, shrinkage: float) -> Terms:
    """v̂ + λw/(w² + λ)·(r − q̂) (Su, Dimakopoulou, Krishnamurthy & Dudík 2020): at ∞ doubly robust."""
    if math.isinf(shrinkage):
        shrunk = w
    else:
        shrunk = shrinkage * w / (w.square() + shrinkage)
    residual = reward - q
    return Terms(plain=v + shrunk * residual)


# ── episodes: ratio, reward, v, q, next_v [..., M, T]; after an episode's end ratio is 1 and the others are 0 ─────────
def discounts(like: Tensor, gamma: float) -> Tensor:
    """γ^t for t = 0 … T − 1, [T], of the type and on the device of `like` [..., T]."""
    t = torch.arange(like.shape[-1], device=like.device, dtype=like.dtype)
    return gamma**t


def pdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """Per-decision importance sampling (Precup et al. 2000): Σ_t γ^t·w_{1:t}·r_t.

    w_{1:t} is the product of the ratios of decisions 1 to t.
    """
    w = ratio.cumprod(-1)
    weighted = discounts(reward, gamma) * w * reward
    return Terms(plain=weighted.sum(-1))


def wpdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """Weighted PDIS: the weights of each t are divided by their mean over episodes."""
    w = ratio.cumprod(-1)
    weighted = discounts(reward, gamma) * w * reward
    zero = torch.zeros_like(w[..., 0])
    return Terms(plain=zero, numerator=weighted, weight=w)


def td_error(reward: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Tensor:
    """γ^t·(r_t + γ·v̂_{t+1} − q̂_t), a model's discounted TD error; `next_v` is v̂ of the next state, 0 at the end."""
    return discounts(reward, gamma) * (reward + gamma * next_v - q)


def sequential_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Terms:
    """Sequential doubly robust: v̂_1 + Σ_t w_{1:t}·δ_t, δ_t the discounted TD error (Jiang & Li 2016)."""
    w = ratio.cumprod(-1)
    delta = td_error(reward, q, next_v, gamma)
    correction = (w * delta).sum(-1)
    first_v = v[..., 0]
    return Terms(plain=first_v + correction)


def weighted_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Terms:
    """Sequential DR with the weights of each t divided by their mean over episodes (Thomas & Brunskill 2016)."""
    w = ratio.cumprod(-1)
    delta = td_error(reward, q, next_v, gamma)
    first_v = v[..., 0]
    return Terms(plain=first_v, numerator=w * delta, weight=w)


# ── support ────────────────────────────────────────────────────────────────────────────────────────────────────────
def effective_sample_size(w: Tensor) -> Tensor:
    """(Σw)² / Σw² of weights [..., M] (Kish 1965), [...], in samples; NaN where a weight is infinite.

    Weights are divided by a power of 2 near the greatest, lest their squares leave the range of numbers.
    """
    _, exponent = torch.frexp(w.amax(-1, keepdim=True))
    scaled = torch.ldexp(w, -exponent)
    square_of_sum = scaled.sum(-1).square()
    sum_of_squares = scaled.square().sum(-1)
    return square_of_sum / sum_of_squares.clamp_min(1e-300)


def unsupported_share(target: Tensor, probs: Tensor) -> Tensor:
    """Share of the target's probability [..., N, A] on actions that the logging policy never takes (probs 0), [...]."""
    unsupported = torch.where(probs > 0, 0.0, target)
    return unsupported.sum(-1).mean(-1)
