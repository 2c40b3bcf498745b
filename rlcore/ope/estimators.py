"""Off-policy estimators: the value of a target policy from the decisions of a logging policy; pure functions.

Shapes may have batch dimensions ahead, [...]. An estimate averages over M decisions, or over M episodes of T decisions.
w = π(a|x) / p(a|x) is the importance weight of the action taken, q̂ a model's outcome of it, v̂ = Σ_a π(a|x)·q̂(x, a).
rlcore/ope/intervals.py turns the terms into estimates and intervals.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """An estimate in parts: the mean of `plain` [..., M] and the sum over K of Σ numerator / Σ weight, [..., M, K] each.

    A bootstrap that resamples the terms recomputes the denominators too.
    """

    plain: Tensor
    numerator: Tensor | None = None
    weight: Tensor | None = None

    def ratios(self) -> tuple[Tensor, Tensor]:
        """Numerators and weights, of no columns where there are none."""
        empty = self.plain[..., None][..., :0]
        return (empty, empty) if self.numerator is None else (self.numerator, self.weight)


# ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────────
def select_actions(table: Tensor, action: Tensor) -> Tensor:
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


# ── episodes: ratio, reward, v, q, next_v [..., M, T]; after an episode's end ratio is 1 and the others are 0 ─────────
def discounts(like: Tensor, gamma: float) -> Tensor:
    """γ^t, [T]."""
    return gamma ** torch.arange(like.shape[-1], device=like.device, dtype=like.dtype)


def pdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """Σ_t γ^t·w_{1:t}·r_t (Precup, Sutton & Singh 2000), w_{1:t} the product of the ratios so far."""
    return Terms((discounts(reward, gamma) * ratio.cumprod(-1) * reward).sum(-1))


def wpdis(ratio: Tensor, reward: Tensor, gamma: float) -> Terms:
    """PDIS with the weights of each t divided by their mean over episodes."""
    w = ratio.cumprod(-1)
    return Terms(torch.zeros_like(w[..., 0]), discounts(reward, gamma) * w * reward, w)


def residual(reward: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Tensor:
    """γ^t·(r_t + γ·v̂_{t+1} − q̂_t), the discounted TD error of a model; `next_v` is v̂ of the next state, 0 at the end."""
    return discounts(reward, gamma) * (reward + gamma * next_v - q)


def sequential_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Terms:
    """v̂_1 + Σ_t w_{1:t}·residual_t (Jiang & Li 2016)."""
    return Terms(v[..., 0] + (ratio.cumprod(-1) * residual(reward, q, next_v, gamma)).sum(-1))


def weighted_dr(ratio: Tensor, reward: Tensor, v: Tensor, q: Tensor, next_v: Tensor, gamma: float) -> Terms:
    """Sequential DR with the weights of each t divided by their mean over episodes (Thomas & Brunskill 2016)."""
    w = ratio.cumprod(-1)
    return Terms(v[..., 0], w * residual(reward, q, next_v, gamma), w)


# ── support ────────────────────────────────────────────────────────────────────────────────────────────────────────
def effective_sample_size(w: Tensor) -> Tensor:
    """(Σw)² / Σw² of weights [..., M] (Kish 1965)."""
    return w.sum(-1).square() / w.square().sum(-1).clamp_min(1e-300)


def unsupported_share(target: Tensor, probs: Tensor) -> Tensor:
    """Share of the target's probability [..., N, A] on actions that the logging policy never takes, [...]."""
    return torch.where(probs > 0, 0.0, target).sum(-1).mean(-1)
