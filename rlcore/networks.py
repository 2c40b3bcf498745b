"""Multi-layer perceptrons, actors and critics."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.distributions import MaskedMultiDiscrete, outer_sum
from rlcore.normalization import RunningNormalizer


def orthogonal_(layer: nn.Linear, gain: float) -> nn.Linear:
    """Initialise a layer orthogonally, with bias 0."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(sizes: list[int], activation: Callable[[], nn.Module], gain: float) -> nn.Sequential:
    """Stack linear layers of the given sizes: gain √2 for hidden layers, `gain` and no activation for the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers.append(orthogonal_(nn.Linear(fan_in, fan_out), math.sqrt(2)))
        layers.append(activation())
    layers.append(orthogonal_(nn.Linear(sizes[-2], sizes[-1]), gain))
    return nn.Sequential(*layers)


def output_layer(layers: nn.Sequential) -> nn.Linear:
    """Return the last layer of an `mlp`."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    return last


def sigmoid_tanh(x: Tensor) -> Tensor:
    """tanh x = 1 − 2·σ(−2x)."""
    return torch.rsub(torch.sigmoid(-2 * x), 1, alpha=2)


class SigmoidTanh(torch.autograd.Function):
    """`sigmoid_tanh` with the derivative 1 − tanh² in one pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = sigmoid_tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradient, y)


class Tanh(nn.Module):
    """The hyperbolic tangent by the logistic function, which a CPU computes in less time than torch.tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return SigmoidTanh.apply(x) if torch.is_grad_enabled() else sigmoid_tanh(x)


def combine_rows(beginnings: Tensor, endings: Tensor) -> Tensor:
    """Return all rows [G, B, D] made of a beginning [B, D − E] and an ending [G, E]."""
    beginnings = beginnings.expand(endings.shape[0], -1, -1)
    return torch.cat((beginnings, endings[:, None].expand(-1, beginnings.shape[1], -1)), -1)


class Actor(nn.Module):
    """A policy network over all combinations of heads, on normalised observations.

    `heads`: `independent` adds the logits of the heads, `joint` has a logit for each combination. `first_bias` is the
    logit that the first choice of the first head (usually "do nothing") has above the others before training.
    """

    observes_price = True
    combination: Tensor  #: of the heads' logits into those of the pairs, [Πn, number of logits]

    def __init__(
        self,
        obs_dim: int,
        nvec: tuple[int, ...],
        *,
        hidden: list[int],
        activation: Callable,
        heads: str,
        policy_gain: float,
        first_bias: float,
        normalize_obs: bool,
        clip_obs: float,
    ):
        super().__init__()
        if heads not in ("independent", "joint"):
            raise ValueError(f"algo.network.heads: expected 'independent' or 'joint', got '{heads}'")
        self.nvec, self.heads = tuple(nvec), heads
        self.normalize = RunningNormalizer(obs_dim, clip_obs) if normalize_obs else nn.Identity()
        independent = heads == "independent"
        num_logits = sum(nvec) if independent else math.prod(nvec)
        self.actor = mlp([obs_dim, *hidden, num_logits], activation, policy_gain)
        # Adding the heads' logits is linear: as part of the last layer it takes fewer passes than on its output.
        combination = outer_sum(torch.eye(num_logits), self.nvec).T if independent else torch.eye(num_logits)
        self.register_buffer("combination", combination.contiguous(), persistent=False)
        with torch.no_grad():
            first_choices = 1 if independent else math.prod(nvec[1:])
            output_layer(self.actor).bias[:first_choices] = first_bias

    def update_normalization(self, obs: Tensor) -> None:
        """Add observations [..., D] to the running moments, where observations are normalised."""
        if isinstance(self.normalize, RunningNormalizer):
            self.normalize.update(obs)

    def logits(self, obs: Tensor) -> Tensor:
        """Return the logits of all combinations [B, Πn] for observations [B, D]."""
        return self._outputs(self.actor[:-1](self.normalize(obs)))

    def _outputs(self, hidden: Tensor) -> Tensor:
        last = output_layer(self.actor)
        return functional.linear(hidden, self.combination @ last.weight, self.combination @ last.bias)

    def logits_with_endings(self, beginnings: Tensor, endings: Tensor) -> Tensor:
        """Return `logits` [G, B, Πn] of all observations made of a beginning [B, D − E] and an ending [G, E].

        The first layer multiplies each beginning once, whatever the number of endings.
        """
        if len(self.actor) == 1:  # no hidden layer
            return self.logits(combine_rows(beginnings, endings))
        first, *between = list(self.actor)[:-1]
        assert isinstance(first, nn.Linear)
        if isinstance(self.normalize, RunningNormalizer):
            beginnings = self.normalize.part(beginnings, slice(None, beginnings.shape[1]))
            endings = self.normalize.part(endings, slice(beginnings.shape[1], None))
        weight, ending_weight = first.weight.split([beginnings.shape[1], endings.shape[1]], 1)
        by_beginning = functional.linear(beginnings, weight, first.bias)
        hidden = by_beginning + functional.linear(endings, ending_weight)[:, None]
        rows = hidden.flatten(0, 1)  # one product a layer, for which runtimes have their fastest form
        for layer in between:
            rows = layer(rows)
        return self._outputs(rows).unflatten(0, hidden.shape[:2])

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        """Return the policy's distribution for observations [B, D] under masks [B, *nvec]."""
        return MaskedMultiDiscrete(self.logits(obs), action_mask, self.nvec)

    def act(self, obs: Tensor, action_mask: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw actions [B, K] by uniforms u [B], or take the mode; return them and their log-probabilities [B]."""
        pi = self.distribution(obs, action_mask)
        return pi.mode_with_log_prob() if u is None else pi.sample_with_log_prob(u)


class ActorCritic(Actor):
    """An Actor, and a value network of the same hidden layers on the same observations."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, hidden: list[int], activation: Callable, **actor: Any):
        super().__init__(obs_dim, nvec, hidden=hidden, activation=activation, **actor)
        self.critic = mlp([obs_dim, *hidden, 1], activation, 1.0)

    def value(self, obs: Tensor) -> Tensor:
        """Return the values [...] of observations [..., D]."""
        return self.critic(self.normalize(obs))[..., 0]


class StateCritic(nn.Module):
    """The values of all S states of an agent in one pass, [..., S], from a critic's observations [..., C].

    `scale` is the unit of reward that the network counts in.
    """

    def __init__(self, critic_dim: int, num_states: int, *, hidden: list[int], activation: Callable, scale: float):
        super().__init__()
        self.scale = scale
        self.layers = mlp([critic_dim, *hidden, num_states], activation, 0.1)

    def forward(self, critic_obs: Tensor) -> Tensor:
        return self.scale * self.layers(critic_obs)
