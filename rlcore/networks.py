"""Multi-layer perceptrons and the actor-critic."""
from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn

from rlcore.distributions import MaskedCategorical, outer_sum
from rlcore.normalize import RunningNorm


def orthogonal_(layer: nn.Linear, gain: float) -> nn.Linear:
    """Initialise a layer orthogonally with zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes: list[int], activation: Callable[[], nn.Module], gain: float) -> nn.Sequential:
    """Stack linear layers of the given sizes; hidden gain √2, last layer `gain`, no activation after it."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(zip(sizes, sizes[1:])):
        last = i == len(sizes) - 2
        layers.append(orthogonal_(nn.Linear(n, m), gain if last else math.sqrt(2)))
        layers += [] if last else [activation()]
    return nn.Sequential(*layers)


def tanh(x: Tensor) -> Tensor:
    """1 − 2·σ(−2x), tanh to float precision; on a CPU σ takes a sixth of the time of torch.tanh."""
    return torch.rsub(torch.sigmoid(-2 * x), 1, alpha=2)


class FastTanh(torch.autograd.Function):
    """The same with its derivative in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        y, = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


class Tanh(nn.Module):
    """The hyperbolic tangent as an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return FastTanh.apply(x) if torch.is_grad_enabled() else tanh(x)


class ActorCritic(nn.Module):
    """Two separate networks over normalised observations: a policy over all combinations of heads, and a value.

    heads: `independent` adds one row of logits a head, `joint` has a logit a combination. `first_bias` is what the first
    choice of the first head ("nothing", where it means that) has above the others at the start, as a logit.
    """

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, hidden: list[int], activation: Callable, heads: str,
                 policy_gain: float, first_bias: float, normalize_obs: bool, clip_obs: float):
        super().__init__()
        if heads not in ("independent", "joint"):
            raise ValueError(f"algo.net.heads: expected 'independent' or 'joint', got '{heads}'")
        self.nvec, self.heads = tuple(nvec), heads
        self.normalize = RunningNorm(obs_dim, clip_obs) if normalize_obs else nn.Identity()
        size = sum(nvec) if heads == "independent" else math.prod(nvec)
        self.actor = mlp([obs_dim, *hidden, size], activation, policy_gain)
        self.critic = mlp([obs_dim, *hidden, 1], activation, 1.0)
        # Adding heads into a table is linear, so it is one with the last layer: fewer passes than adding its outputs.
        pairs = outer_sum(torch.eye(size), self.nvec).T if heads == "independent" else torch.eye(size)
        self.register_buffer("pairs", pairs.contiguous(), persistent=False)
        with torch.no_grad():
            self.actor[-1].bias[:1 if heads == "independent" else math.prod(nvec[1:])] = first_bias

    def rescale(self, obs: Tensor) -> None:
        """Move the observation scale, where there is one, by a rollout's observations [T, N, D]."""
        if isinstance(self.normalize, RunningNorm):
            self.normalize.update(obs)

    def logits(self, obs: Tensor) -> Tensor:
        """Logits of all combinations [B, Πn] for observations [B, D]."""
        hidden, last = self.actor[:-1](self.normalize(obs)), self.actor[-1]
        return nn.functional.linear(hidden, self.pairs @ last.weight, self.pairs @ last.bias)

    def policy(self, obs: Tensor, mask: Tensor) -> MaskedCategorical:
        """Distribution over actions for observations [B, D] under masks [B, *nvec]."""
        return MaskedCategorical(self.logits(obs), mask, self.nvec)

    def value(self, obs: Tensor) -> Tensor:
        """Values [...] of observations [..., D]."""
        return self.critic(self.normalize(obs))[..., 0]
