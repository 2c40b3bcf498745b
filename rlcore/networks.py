"""Multi-layer perceptrons: the actor-critic, and what actions are worth."""
from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.distributions import MaskedCategorical, outer_sum
from rlcore.normalization import RunningNorm


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


# tanh x ≈ x·P(x²) / Q(x²) for |x| ≤ 8, fitted to the relative error (Lawson's weights): 6e-9, in float32 3.4e-7.
NUMERATOR = (1.523037937e-08, 2.189463458e-05, 0.003571596368, 0.1344449659, 0.9999999936)
DENOMINATOR = (8.522431029e-07, 0.0003411289305, 0.02616443664, 0.467778239, 1.0)


def tanh(x: Tensor) -> Tensor:
    """tanh to float precision, in less time than torch.tanh: compiled a rational function, else 1 − 2·σ(−2x)."""
    if torch.compiler.is_compiling() and x.dtype == torch.float32:
        x = x.clamp(-8, 8)
        return x * polynomial(x * x, NUMERATOR) / polynomial(x * x, DENOMINATOR)
    return torch.rsub(torch.sigmoid(-2 * x), 1, alpha=2)


def polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, the highest power first."""
    total = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


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
        """Move the observation scale, where there is one, by observations [..., D]."""
        if isinstance(self.normalize, RunningNorm):
            self.normalize.update(obs)

    def logits(self, obs: Tensor) -> Tensor:
        """Logits of all combinations [B, Πn] for observations [B, D]."""
        hidden, last = self.actor[:-1](self.normalize(obs)), self.actor[-1]
        if torch.compiler.is_compiling():
            # Heads are added in the softmax's own passes, whose vectors run along the batch.
            heads = torch.addmm(last.bias[:, None], last.weight, hidden.T).T
            return outer_sum(heads, self.nvec) if self.heads == "independent" else heads
        return functional.linear(hidden, self.pairs @ last.weight, self.pairs @ last.bias)

    def policy(self, obs: Tensor, mask: Tensor) -> MaskedCategorical:
        """Distribution over actions for observations [B, D] under masks [B, *nvec]."""
        return MaskedCategorical(self.logits(obs), mask, self.nvec)

    def value(self, obs: Tensor) -> Tensor:
        """Values [...] of observations [..., D]."""
        return self.critic(self.normalize(obs))[..., 0]


class ActionValues(nn.Module):
    """One network from a context [B, D] to the expected reward of every combination of heads, [B, Πn]."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, hidden: list[int], activation: Callable, gain: float,
                 normalize_obs: bool, clip_obs: float):
        super().__init__()
        self.num_actions, self.width = math.prod(nvec), hidden[-1] if hidden else obs_dim
        self.normalize = RunningNorm(obs_dim, clip_obs) if normalize_obs else nn.Identity()
        self.body = mlp([obs_dim, *hidden, self.num_actions], activation, gain)

    rescale = ActorCritic.rescale

    def forward(self, context: Tensor) -> Tensor:
        return self.body(self.normalize(context))

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Half the mean squared error at the actions taken, flat [B]; the others' outcomes nobody saw."""
        return 0.5 * (self(context).gather(1, action[:, None])[:, 0] - reward).square().mean()

    def features(self, context: Tensor) -> Tensor:
        """What the last layer sees and a constant, [B, width + 1]."""
        return functional.pad(self.body[:-1](self.normalize(context)), (0, 1), value=1.0)

    @torch.no_grad()
    def gradients(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Gradients of every action's output, a pair of factors for each linear layer: δ [B, Πn, m] and x [B, n + 1].

        The gradient of output a by the layer's weight and bias together is the outer product of δ[:, a] and x, whose last
        column is 1: nothing of the size of the parameters is ever laid out.
        """
        x, inputs, slopes = self.normalize(context), [], []
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                inputs.append(functional.pad(x, (0, 1), value=1.0))
                x = layer(x)
            else:
                x, pull = torch.func.vjp(layer, x)  # elementwise: the pull of ones is the derivative
                slopes.append(pull(torch.ones_like(x))[0])
        layers = [layer for layer in self.body if isinstance(layer, nn.Linear)]
        deltas = [torch.eye(self.num_actions, device=x.device, dtype=x.dtype).expand(len(x), -1, -1)]
        for layer, slope in zip(layers[:0:-1], slopes[::-1]):
            deltas.append(deltas[-1] @ layer.weight * slope[:, None])
        return list(zip(deltas[::-1], inputs))


class FactoredValues(ActionValues):
    """The same with few parameters a combination: what nothing (the first choice of the first head) is worth, plus Σ_k
    Π_h u_hk(choice of head h), of `rank` terms, one u a choice. Offers seen through channels are of this kind."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, rank: int, hidden: list[int], activation: Callable,
                 gain: float, normalize_obs: bool, clip_obs: float):
        super().__init__(obs_dim, nvec, hidden=hidden, activation=activation, gain=gain, normalize_obs=normalize_obs,
                         clip_obs=clip_obs)
        self.nvec, self.rank = tuple(nvec), rank
        self.body = mlp([obs_dim, *hidden, 1 + rank * sum(nvec)], activation, gain)
        with torch.no_grad():
            self.body[-1].bias[1:] = 0.3 * torch.randn(rank * sum(nvec))  # products of zeros would never leave zero

    def forward(self, context: Tensor) -> Tensor:
        out = self.body(self.normalize(context))
        terms = out[:, 1:].unflatten(1, (self.rank, -1)).split(self.nvec, -1)  # [B, rank, n] each
        table = torch.cat((torch.zeros_like(terms[0][..., :1]), terms[0][..., 1:]), -1)
        for head in terms[1:]:
            table = (table[..., :, None] * head[..., None, :]).flatten(2)
        return table.sum(1) + out[:, :1]

    def gradients(self, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Refuse: products of outputs are not laid out by layer."""
        raise ValueError("algo.net: explorers that go by gradients need algo/net=values, not factored")


class SuccessProbabilities(ActionValues):
    """P(reward > 0) of every combination of heads; without hidden layers, one logistic regression an action."""

    def forward(self, context: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(context))

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Mean cross-entropy at the actions taken, flat [B]."""
        logit = super().forward(context).gather(1, action[:, None])[:, 0]
        return functional.binary_cross_entropy_with_logits(logit, (reward > 0).to(logit.dtype))
