"""What actions are worth: networks from a context to a value of every action, and the policy that is greedy with them."""
from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.distributions import MaskedMultiDiscrete
from rlcore.networks import mlp
from rlcore.normalization import RunningNormalizer


class ActionValues(nn.Module):
    """One network from a context [B, D] to the expected reward of every combination of heads, [B, Πn]."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, hidden: list[int], activation: Callable, gain: float,
                 normalize_obs: bool, clip_obs: float):
        super().__init__()
        self.num_actions, self.width = math.prod(nvec), hidden[-1] if hidden else obs_dim
        self.normalize = RunningNormalizer(obs_dim, clip_obs) if normalize_obs else nn.Identity()
        self.body = mlp([obs_dim, *hidden, self.num_actions], activation, gain)

    def update_normalization(self, obs: Tensor) -> None:
        """Add contexts [..., D] to the running moments, where contexts are normalised."""
        if isinstance(self.normalize, RunningNormalizer):
            self.normalize.update(obs)

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


class FactoredActionValues(ActionValues):
    """The same with few parameters a combination: what nothing (the first choice of the first head) is worth, plus Σ_k
    Π_h u_hk(choice of head h), of `rank` terms, one u a choice. Heads whose effects multiply are of this kind."""

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
        raise ValueError("algo.network: explorers that go by gradients need algo/network=action_values, not factored")


class LogisticActionValues(ActionValues):
    """P(reward > 0) of every combination of heads; without hidden layers, one logistic regression an action."""

    def forward(self, context: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(context))

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Mean cross-entropy at the actions taken, flat [B]."""
        logit = super().forward(context).gather(1, action[:, None])[:, 0]
        return functional.binary_cross_entropy_with_logits(logit, (reward > 0).to(logit.dtype))


class GreedyPolicy:
    """The policy that takes the action of the highest value, less what the action costs at the observed price.

    action_values(obs [B, D], action_mask bool [B, Πn]) → [B, Πn], before the price of spend. action_cost(obs) → [B, Πn], the
    price times the expected spend, or None where nothing is priced.
    """

    def __init__(self, nvec: tuple[int, ...], action_values: Callable[[Tensor, Tensor], Tensor],
                 action_cost: Callable[[Tensor], Tensor] | None, *, observes_price: bool):
        self.nvec, self.observes_price = tuple(nvec), observes_price
        self._action_values, self._action_cost = action_values, action_cost

    @torch.no_grad()
    def action_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return what actions are worth before the price of their own spend, [B, Πn], −inf where masked."""
        action_mask = action_mask.flatten(1)
        return self._action_values(obs, action_mask).masked_fill(~action_mask, -torch.inf)

    @torch.no_grad()
    def net_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return what actions are worth less what they cost at the observed price, [B, Πn], −inf where masked."""
        values = self.action_values(obs, action_mask)
        return values if self._action_cost is None else values - self._action_cost(obs)

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        """Return the distribution with all probability on the best action."""
        values = self.net_values(obs, action_mask)
        best = values.argmax(-1, keepdim=True)
        logits = torch.full_like(values, -torch.inf).scatter_(-1, best, 0.0)
        return MaskedMultiDiscrete(logits, action_mask, self.nvec)

    def act(self, obs: Tensor, action_mask: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the best actions [B, K] and their log-probabilities [B], which are 0."""
        return self.distribution(obs, action_mask).mode_with_log_prob()
