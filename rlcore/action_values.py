"""Networks that predict the value of every action in a context, and the policy that is greedy with respect to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.distributions import MaskedMultiDiscrete
from rlcore.networks import mlp, output_layer
from rlcore.normalization import RunningNormalizer


class LayerGradients(NamedTuple):
    """Gradients of every action's output by the weight and bias of a linear layer, as two factors.

    The gradient of output a by weight and bias together is the outer product of delta[:, a] and input.
    """

    delta: Tensor  #: gradient by the layer's output, [B, Πn, outputs of the layer]
    input: Tensor  #: input of the layer and a 1 for its bias, [B, inputs of the layer + 1]


def with_constant(x: Tensor) -> Tensor:
    """Append a column of ones, for the bias: [B, n] → [B, n + 1]."""
    return functional.pad(x, (0, 1), value=1.0)


class ActionValues(nn.Module):
    """One network from a context [B, D] to the expected reward of every combination of heads, [B, Πn]."""

    def __init__(
        self,
        obs_dim: int,
        nvec: tuple[int, ...],
        *,
        hidden: list[int],
        activation: Callable,
        gain: float,
        normalize_obs: bool,
        clip_obs: float,
    ):
        super().__init__()
        layer_sizes = [obs_dim, *hidden]
        self.num_actions = math.prod(nvec)
        self.width = layer_sizes[-1]
        self.normalize = RunningNormalizer(obs_dim, clip_obs) if normalize_obs else nn.Identity()
        self.body = mlp([*layer_sizes, self.num_actions], activation, gain)

    def update_normalization(self, obs: Tensor) -> None:
        """Add contexts [..., D] to the running moments, where contexts are normalised."""
        if isinstance(self.normalize, RunningNormalizer):
            self.normalize.update(obs)

    def forward(self, context: Tensor) -> Tensor:
        return self.body(self.normalize(context))

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Return half the mean squared error at the flat actions taken [B]; other actions' rewards are unobserved."""
        predicted = self(context).gather(1, action[:, None])[:, 0]
        return 0.5 * (predicted - reward).square().mean()

    def features(self, context: Tensor) -> Tensor:
        """Return the input of the last layer and a constant 1, [B, width + 1]."""
        last_hidden = self.body[:-1](self.normalize(context))
        return with_constant(last_hidden)

    @torch.no_grad()
    def gradients(self, context: Tensor) -> list[LayerGradients]:
        """Return the gradients of every action's output in contexts [B, D], linear layer by linear layer.

        The backpropagation is by factors: no tensor of the size [B, Πn, parameters] is ever allocated.
        """
        # Forward: the input of every linear layer, and the derivative of every activation.
        x = self.normalize(context)
        linear_layers = []
        inputs = []
        slopes = []
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                linear_layers.append(layer)
                inputs.append(with_constant(x))
                x = layer(x)
            else:
                x, pullback, *_ = torch.func.vjp(layer, x)
                (slope,) = pullback(torch.ones_like(x))  # an activation is elementwise: its Jacobian is diagonal
                slopes.append(slope)
        # Backward: from the outputs themselves, whose gradient is the identity.
        identity = torch.eye(self.num_actions, device=x.device, dtype=x.dtype)
        delta = identity.expand(len(x), -1, -1)
        deltas = [delta]
        for layer, slope in zip(reversed(linear_layers[1:]), reversed(slopes)):
            delta = delta @ layer.weight * slope[:, None]
            deltas.append(delta)
        deltas.reverse()
        return [LayerGradients(*factors) for factors in zip(deltas, inputs)]


class FactoredActionValues(ActionValues):
    """Action values of low rank: v₀ + Σ_k Π_h u_hk(choice of head h), with k up to `rank` and outputs v₀ and u.

    The first choice of the first head (nothing) has the value v₀. The form is exact where the heads' effects multiply.
    A term has Σn outputs instead of Πn.
    """

    def __init__(
        self,
        obs_dim: int,
        nvec: tuple[int, ...],
        *,
        rank: int,
        hidden: list[int],
        activation: Callable,
        gain: float,
        normalize_obs: bool,
        clip_obs: float,
    ):
        super().__init__(
            obs_dim,
            nvec,
            hidden=hidden,
            activation=activation,
            gain=gain,
            normalize_obs=normalize_obs,
            clip_obs=clip_obs,
        )
        self.nvec = tuple(nvec)
        self.rank = rank
        num_factors = rank * sum(nvec)
        self.body = mlp([obs_dim, *hidden, 1 + num_factors], activation, gain)
        with torch.no_grad():
            # a product of zeros has gradient zero
            output_layer(self.body).bias[1:] = 0.3 * torch.randn(num_factors)

    def forward(self, context: Tensor) -> Tensor:
        output = self.body(self.normalize(context))
        value_of_nothing = output[:, :1]
        factors = output[:, 1:].unflatten(1, (self.rank, -1))  # [B, rank, Σn]
        first_head, *other_heads = factors.split(self.nvec, -1)
        nothing = torch.zeros_like(first_head[..., :1])
        product = torch.cat((nothing, first_head[..., 1:]), -1)
        for head in other_heads:
            outer_product = product[..., :, None] * head[..., None, :]
            product = outer_product.flatten(2)
        return product.sum(1) + value_of_nothing

    def gradients(self, context: Tensor) -> list[LayerGradients]:
        """Raise ValueError: the gradient of a product of outputs does not split by layers."""
        raise ValueError("algo.network: explorers that go by gradients need algo/network=action_values, not factored")


class LogisticActionValues(ActionValues):
    """P(reward > 0) of every combination of heads; without hidden layers, one logistic regression an action."""

    def forward(self, context: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(context))

    def gradients(self, context: Tensor) -> list[LayerGradients]:
        """Raise ValueError: the gradient of a logit is not that of a probability."""
        raise ValueError("algo.network: explorers that go by gradients need algo/network=action_values, not logistic")

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Return the mean cross-entropy at the flat actions taken [B]."""
        logits = super().forward(context)
        logit = logits.gather(1, action[:, None])[:, 0]
        label = (reward > 0).to(logit.dtype)
        return functional.binary_cross_entropy_with_logits(logit, label)


class GreedyPolicy:
    """The policy that takes the action of the highest value, less what the action costs at the observed price.

    action_values(obs [B, D], action_mask bool [B, Πn]) → [B, Πn] returns values before the price of spend.
    action_cost(obs) → [B, Πn] returns the price times the expected spend, or None where nothing is priced.
    """

    def __init__(
        self,
        nvec: tuple[int, ...],
        action_values: Callable[[Tensor, Tensor], Tensor],
        action_cost: Callable[[Tensor], Tensor] | None,
        *,
        observes_price: bool,
    ):
        self.nvec = tuple(nvec)
        self.observes_price = observes_price
        self._action_values = action_values
        self._action_cost = action_cost

    @torch.no_grad()
    def action_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return action values before the price of the actions' own spend, [B, Πn], −inf where masked."""
        action_mask = action_mask.flatten(1)
        values = self._action_values(obs, action_mask)
        return values.masked_fill(~action_mask, -torch.inf)

    @torch.no_grad()
    def net_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return action values less the actions' cost at the observed price, [B, Πn], −inf where masked."""
        values = self.action_values(obs, action_mask)
        return values if self._action_cost is None else values - self._action_cost(obs)

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        """Return the distribution with all probability on the best action."""
        values = self.net_values(obs, action_mask)
        best_action = values.argmax(-1, keepdim=True)
        impossible = torch.full_like(values, -torch.inf)
        logits = impossible.scatter_(-1, best_action, 0.0)
        return MaskedMultiDiscrete(logits, action_mask, self.nvec)

    def act(self, obs: Tensor, action_mask: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best actions [B, K] and their log-probabilities [B], which are 0."""
        return self.distribution(obs, action_mask).mode_with_log_prob()
