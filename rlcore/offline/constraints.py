"""Q-learning on tables of values [B, Πn] of all actions, and the constraints that keep it to actions which a dataset has."""
from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


def supported(logits: Tensor, action_mask: Tensor, threshold: float) -> Tensor:
    """Return the valid actions whose probability exceeds `threshold` times the largest one, and the most probable action
    (BCQ for discrete actions; Fujimoto et al. 2019b)."""
    logits = torch.where(action_mask, logits, -torch.inf)
    gap = logits - logits.amax(-1, keepdim=True)
    smallest_gap = math.log(threshold) if threshold > 0 else -torch.inf
    return (gap > smallest_gap) | (gap == 0)


def double_target(reward: Tensor, discount: Tensor, online: Tensor, target: Tensor, cost: Tensor | float,
                  allowed: Tensor) -> Tensor:
    """Return r + γ·(target − cost)(s', a*), where a* is the allowed action that maximises online − cost (van Hasselt et al. 2016).

    online, target and cost are tables [B, Πn] of the next state; the discounts γ [B] are 0 where an episode has ended.
    """
    action = (online - cost).masked_fill(~allowed, -torch.inf).argmax(-1, keepdim=True)
    return reward + discount * (target - cost).gather(1, action)[:, 0]


def td_loss(value: Tensor, target: Tensor, weight: Tensor, huber: float | None) -> Tensor:
    """Return the weighted mean of Huber's loss of width `huber`, or of half the squared error, whose minimum is the mean."""
    if huber is None:
        return 0.5 * (weight * (value - target).square()).mean()
    error = functional.huber_loss(value, target, delta=huber, reduction="none")
    return (weight * error).mean()


def cql_penalty(q: Tensor, action_mask: Tensor, action: Tensor) -> Tensor:
    """Return the mean of log Σ exp Q over the valid actions minus Q of the action taken (Kumar et al. 2020, eq. 4)."""
    soft_maximum = torch.where(action_mask, q, -torch.inf).logsumexp(-1)
    return (soft_maximum - q.gather(1, action[:, None])[:, 0]).mean()


def behaviour_cloning(logits: Tensor, action_mask: Tensor, action: Tensor, penalty: float) -> Tensor:
    """Return the cross-entropy of the actions taken, plus `penalty` times the mean square of the valid actions' logits."""
    log_probs = torch.where(action_mask, logits, -torch.inf).log_softmax(-1)
    square = torch.where(action_mask, logits, 0.0).square().sum() / action_mask.sum()
    return -log_probs.gather(1, action[:, None])[:, 0].mean() + penalty * square


class Batch(NamedTuple):
    """B logged decisions to learn from."""

    obs: Tensor  #: with a price drawn anew, [B, D]
    action_mask: Tensor  #: bool [B, Πn]
    action: Tensor  #: flat action [B]
    cost: Tensor  #: what actions cost at that price, [B, Πn]
    target: Tensor  #: of the value of the action taken, [B]
    weight: Tensor  #: of the decision in the loss, [B]
    logged_obs: Tensor  #: the observation that the decision was made on, [B, D]
    logged_cost: Tensor  #: what actions cost at the price of the decision, [B, Πn]


class CQLPenalty(nn.Module):
    """Conservative Q-learning: the values of valid actions shall not exceed those of the actions taken, with weight `alpha`."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, alpha: float):
        super().__init__()
        self.alpha = alpha

    def allowed(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return all valid actions."""
        return action_mask

    def loss(self, batch: Batch, network: Callable) -> Tensor:
        """Return the penalty on values less cost at the logged price; at another price the logging policy may act otherwise."""
        return self.alpha * cql_penalty(network(batch.logged_obs) - batch.logged_cost, batch.action_mask, batch.action)


class BCQConstraint(nn.Module):
    """Batch-constrained Q-learning: only actions whose probability under the logging policy exceeds `threshold` times that of
    the most probable one. A network of its own learns the logging policy."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, network: Callable, threshold: float, penalty: float):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"algo.behaviour_constraint.threshold: expected a share in [0, 1], got {threshold}")
        self.network, self.threshold, self.penalty = network(obs_dim, nvec), threshold, penalty

    def allowed(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the valid actions that the logging policy takes often enough."""
        return supported(self.network(obs), action_mask, self.threshold) if self.threshold > 0 else action_mask

    def loss(self, batch: Batch, network: Callable) -> Tensor:
        """Return the loss of the model of the logging policy, on the observations that it acted on."""
        return behaviour_cloning(self.network(batch.logged_obs), batch.action_mask, batch.action, self.penalty)
