"""Q-learning on tables of values [B, Πn] of all actions, and the constraints that keep it near a dataset's actions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.ope.estimators import select_actions


def supported(logits: Tensor, action_mask: Tensor, threshold: float) -> Tensor:
    """Return the valid actions whose probability exceeds `threshold` times the largest one, bool [B, Πn].

    The most probable action is always among them. The logits [B, Πn] are those of the logging policy (BCQ for discrete
    actions; Fujimoto et al. 2019b).
    """
    logits = torch.where(action_mask, logits, -torch.inf)
    gap = logits - logits.amax(-1, keepdim=True)
    smallest_gap = math.log(threshold) if threshold > 0 else -torch.inf
    return (gap > smallest_gap) | (gap == 0)


def double_target(
    reward: Tensor, discount: Tensor, online: Tensor, target: Tensor, cost: Tensor | float, allowed: Tensor
) -> Tensor:
    """Return r + γ·(target − cost)(s', a*), [B], where a* is the allowed action that maximises online − cost.

    This is the target of double Q-learning (van Hasselt et al. 2016). `online`, `target` and `cost` are tables [B, Πn]
    of the next state. The discounts γ [B] are 0 where an episode has ended.
    """
    net_online = online - cost
    net_target = target - cost
    action = net_online.masked_fill(~allowed, -torch.inf).argmax(-1)
    next_value = select_actions(net_target, action)
    return reward + discount * next_value


def td_loss(value: Tensor, target: Tensor, weight: Tensor, huber: float | None) -> Tensor:
    """Return the weighted mean loss of values [B]: Huber's of width `huber`, or half the squared error.

    Only the squared error's minimum is the mean of the targets.
    """
    if huber is None:
        squared_error = (value - target).square()
        return 0.5 * (weight * squared_error).mean()
    loss = functional.huber_loss(value, target, delta=huber, reduction="none")
    return (weight * loss).mean()


def cql_penalty(q: Tensor, action_mask: Tensor, action: Tensor) -> Tensor:
    """Return the mean of log Σ exp Q over the valid actions minus Q of the action taken (Kumar et al. 2020, eq. 4)."""
    valid_q = torch.where(action_mask, q, -torch.inf)
    soft_maximum = valid_q.logsumexp(-1)
    return (soft_maximum - select_actions(q, action)).mean()


def behaviour_cloning(logits: Tensor, action_mask: Tensor, action: Tensor, penalty: float) -> Tensor:
    """Return the cross-entropy of the actions taken plus a penalty on logits.

    The penalty is `penalty` times the mean square of the valid actions' logits.
    """
    log_probs = torch.where(action_mask, logits, -torch.inf).log_softmax(-1)
    cross_entropy = -select_actions(log_probs, action).mean()
    valid_logits = torch.where(action_mask, logits, 0.0)
    mean_square = valid_logits.square().sum() / action_mask.sum()
    return cross_entropy + penalty * mean_square


class DecisionBatch(NamedTuple):
    """B logged decisions to learn from."""

    obs: Tensor  #: with a price drawn anew, [B, D]
    action_mask: Tensor  #: bool [B, Πn]
    action: Tensor  #: flat action [B]
    target: Tensor  #: target of the value of the action taken, [B]
    weight: Tensor  #: weight of the decision in the loss, [B]
    logged_obs: Tensor  #: the observation that the decision was made on, [B, D]
    logged_cost: Tensor  #: cost of all actions at the logged price, [B, Πn]


class BehaviourConstraint(nn.Module, ABC):
    """What keeps a policy near a dataset's actions, by the actions that it may choose or by a term of the loss."""

    def allowed(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the valid actions that may be chosen, bool [B, Πn]."""
        return action_mask

    @abstractmethod
    def loss(self, batch: DecisionBatch, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is added to the error of the values of `network`, []."""

    def update_normalization(self, obs: Tensor) -> None:
        """Add observations [B, D] to the running moments of the constraint's own networks, if there are any."""
        return


MakeConstraint = Callable[[int, tuple[int, ...]], BehaviourConstraint]  # of the length of an observation and nvec


class CQLPenalty(BehaviourConstraint):
    """Conservative Q-learning: a penalty on values of valid actions above those of the actions taken.

    `alpha` is the penalty's weight.
    """

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, alpha: float):
        super().__init__()
        self.alpha = alpha

    def loss(self, batch: DecisionBatch, network: Callable) -> Tensor:
        """Return the penalty on values less cost at the logged price.

        The logged price is used because the logging policy may act otherwise at another price.
        """
        net_q = network(batch.logged_obs) - batch.logged_cost
        return self.alpha * cql_penalty(net_q, batch.action_mask, batch.action)


class BCQConstraint(BehaviourConstraint):
    """Batch-constrained Q-learning: only actions that the logging policy is likely to take.

    These are the actions whose probability exceeds `threshold` times that of the most probable action. A separate
    network learns the logging policy, by behaviour cloning with a `penalty` on its logits.
    """

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], *, network: Callable, threshold: float, penalty: float):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"algo.behaviour_constraint.threshold: expected a share in [0, 1], got {threshold}")
        self.network = network(obs_dim, nvec)
        self.threshold = threshold
        self.penalty = penalty

    def allowed(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the valid actions that the logging policy takes often enough."""
        if self.threshold == 0:
            return action_mask
        logits = self.network(obs)
        return supported(logits, action_mask, self.threshold)

    def update_normalization(self, obs: Tensor) -> None:
        """Add observations [B, D] to the running moments of the model of the logging policy."""
        self.network.update_normalization(obs)

    def loss(self, batch: DecisionBatch, network: Callable) -> Tensor:
        """Return the loss of the model of the logging policy, at the prices of the batch.

        Where prices are drawn anew, they tell nothing of the actions. The model then learns what the log does in a
        state at any price, which is what values are learned from, and knows every price that it is asked at.
        """
        logits = self.network(batch.obs)
        return behaviour_cloning(logits, batch.action_mask, batch.action, self.penalty)
