"""Offline reinforcement learning: double Q-learning on a dataset of logged decisions, constrained by BCQ or CQL.

In a priced environment the network's table has action values before the price of the actions' own spend. Prices are
drawn anew whenever a decision is used in an update, so that one dataset serves every budget.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.action_values import ActionValues, GreedyPolicy
from rlcore.algorithm import OfflineAlgorithm
from rlcore.distributions import unflatten
from rlcore.network_algorithm import (
    LearningRateSchedule,
    MakeAuxiliaryModel,
    MakeNetwork,
    MakeOptimizer,
    NetworkAlgorithm,
)
from rlcore.offline.adjusted_rewards import AdjustRewards, unadjusted
from rlcore.offline.constraints import BehaviourConstraint, DecisionBatch, MakeConstraint, double_target, td_loss
from rlcore.offline.decision_replay import DecisionReplay
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.estimators import select_actions
from rlcore.ope.outcome_models import CHUNK

ADJUSTMENT_STREAM = 1  # of the random numbers of variance reduction, beside a training's seed
MASKED_VALUE = -1e9  # of an action that the dataset has too rarely; finite, so that two such values can be compared


class DoubleDQN(NetworkAlgorithm, OfflineAlgorithm):
    """Double Q-learning (van Hasselt et al. 2016) on a dataset of logged decisions.

    `behaviour_constraint` keeps the policy near the dataset's actions (null: no constraint). An iteration takes
    `updates` minibatches of `batch_size` decisions, and the training takes `total_steps` decisions. The target network
    moves by a share `tau` every `target_every` updates. `variance_reduction` removes from rewards the part that
    decisions did not cause. `relabel` draws new prices for every decision of a minibatch. Raises ValueError where the
    parts do not fit.
    """

    graph_regions = ("loss",)
    learned_from = ("a log",)

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        network: MakeNetwork,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule | None,
        auxiliary: MakeAuxiliaryModel | None,
        behaviour_constraint: MakeConstraint | None,
        variance_reduction: AdjustRewards | None,
        total_steps: int,
        updates: int,
        batch_size: int,
        gamma: float,
        huber: float | None,
        target_every: int,
        tau: float,
        relabel: bool,
        eval_every: int,
        checkpoint_every: int,
    ):
        super().__init__(
            env,
            seed,
            observes_price=True,
            network=network,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            auxiliary=auxiliary,
            total_steps=total_steps,
            num_steps=env.episode_length or 1,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
        )
        self.priced_env = env.as_priced()
        if not isinstance(self.network, ActionValues):
            raise ValueError(
                "algo.network: offline learners need a network of action values, as algo/network=action_values"
            )
        if self.priced_env and not self.auxiliary:
            raise ValueError(
                "algo.auxiliary: without a model of what actions cost, their cost in logged states is unknown"
            )
        self.steps_per_iteration = updates * batch_size
        self.iterations = max(1, total_steps // self.steps_per_iteration)
        self.variance_reduction = variance_reduction
        self.updates = updates
        self.batch_size = batch_size
        self.gamma = gamma
        self.huber = huber
        self.target_every = target_every
        self.tau = tau
        self.relabel = relabel
        self.seed = seed
        self.updates_done = 0
        self.replay: DecisionReplay | None = None  # of the dataset
        self.info: dict[str, Tensor] = {}  # what the auxiliary model learns from, [N] each
        self.target_network = deepcopy(self.network).requires_grad_(False)
        self.constraint: BehaviourConstraint | None = None
        if behaviour_constraint:
            self.constraint = behaviour_constraint(env.obs_dim, env.nvec).to(env.device)
            parameters = list(self.constraint.parameters())
            if parameters:
                self.optimizer.add_param_group({"params": parameters, "lr": self.lr})
        cost = self._observed_cost if self.priced_env else None
        self.policy = GreedyPolicy(env.nvec, self._action_values, cost, observes_price=True)

    def set_dataset(self, data: LoggedDataset) -> None:
        """Learn from a dataset of this environment.

        Raises ValueError where the dataset lacks the states that decisions led to, or an outcome that a model needs.
        """
        env = self.env
        if data.next_obs is None and (not data.terminated.all() or data.has_several_steps()):
            raise ValueError(
                "log: expected next_state_* and next_valid_*, the states that decisions led to, where an episode has "
                "several steps"
            )
        if self.auxiliary:
            self.info = {name: data.outcome(name, "algo.auxiliary") for name in self.auxiliary.info_names}
        # a stream of its own: folds must depend neither on the minibatches nor on what drew the log's actions
        seed = int(np.random.SeedSequence((self.seed, ADJUSTMENT_STREAM)).generate_state(1)[0])
        generator = torch.Generator(env.device).manual_seed(seed)
        reward = data.reward
        if not self.priced_env:
            reward = reward - data.price * data.cost
        adjust = self.variance_reduction or unadjusted
        adjusted = adjust(env, data, reward, self.gamma, generator)
        self.replay = DecisionReplay(data, adjusted, env, relabel=self.relabel)
        if self.iteration == 0:
            decisions = torch.arange(len(data), device=env.device)
            for rows in decisions.split(CHUNK):
                self._update_normalization(data.obs[rows])

    def _update_normalization(self, obs: Tensor) -> None:
        """Add observations [B, D] to the running moments of every network."""
        self.network.update_normalization(obs)
        self.target_network.update_normalization(obs)
        if self.constraint:
            self.constraint.update_normalization(obs)

    def setup(self, logger, should_stop: Callable[[], bool]) -> None:
        """Raise ValueError where there is no dataset."""
        if self.replay is None:
            raise ValueError("log: expected the path of a log to learn from, as in log=log.parquet")

    # ── what actions are worth ──────────────────────────────────────────────────────────────────────────────────────
    def allowed(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return the valid actions that may be chosen, bool [B, Πn]."""
        if self.constraint is None:
            return action_mask
        return self.constraint.allowed(obs, action_mask)

    def _action_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        values = self.network(obs)
        allowed = self.allowed(obs, action_mask)
        return values.masked_fill(~allowed, MASKED_VALUE)

    def action_cost(self, obs: Tensor, price: Tensor) -> Tensor:
        """Return the cost of all actions at prices [B], [B, Πn]."""
        if not self.priced_env:
            return torch.zeros_like(price)[:, None]
        assert self.auxiliary is not None  # the constructor sees to it
        outcomes = self.auxiliary.predict(obs)
        spend = self.priced_env.expected_cost(outcomes)
        cost = price[:, None, None] * spend
        return cost.flatten(1)

    def _observed_cost(self, obs: Tensor) -> Tensor:
        price = self.priced_env.decode_price(obs)
        return self.action_cost(obs, price)

    # ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────
    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Learn from `updates` minibatches; return the mean of each metric."""
        self.anneal(progress)
        assert self.replay is not None  # `setup` sees to it
        totals: dict[str, Tensor] = {}
        for _ in range(self.updates):
            metrics = self.train_minibatch(self.replay.draw(self.batch_size, self.generator))
            totals = {name: totals.get(name, 0) + x for name, x in metrics.items()}
        means = {name: total / self.updates for name, total in totals.items()}
        return means | {"charts/learning_rate": self.lr}

    def train_minibatch(self, rows: Tensor) -> dict[str, Tensor]:
        """Take one gradient step on the decisions `rows` of the dataset; return metrics."""
        batch = self.compute_targets(rows)
        loss, metrics = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates_done += 1
        if self.updates_done % self.target_every == 0:
            self.update_target_network()
        if self.auxiliary:
            action = unflatten(batch.action, self.env.nvec)
            info = {name: x[rows] for name, x in self.info.items()}
            metrics |= self.auxiliary.train_minibatch(batch.obs, action, info)
        return metrics | {"losses/value": batch.target.mean()}

    @torch.no_grad()
    def compute_targets(self, rows: Tensor) -> DecisionBatch:
        """Return decisions of the dataset with the targets of their values."""
        assert self.replay is not None  # `setup` sees to it
        drawn = self.replay.transitions(rows, self.generator)
        target = double_target(
            reward=drawn.reward,
            discount=drawn.discount,
            online=self.network(drawn.next_obs),
            target=self.target_network(drawn.next_obs),
            cost=self.action_cost(drawn.next_obs, drawn.next_price),
            allowed=self.allowed(drawn.next_obs, drawn.next_action_mask),
        )
        return DecisionBatch(
            obs=drawn.obs,
            action_mask=drawn.action_mask,
            action=drawn.action,
            target=target,
            weight=drawn.weight,
            logged_obs=drawn.logged_obs,
            logged_cost=self.action_cost(drawn.logged_obs, drawn.logged_price),
        )

    def loss(self, batch: DecisionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the error of the taken actions' values, plus the loss of the behaviour constraint, and metrics."""
        values = self.network(batch.obs)
        value = select_actions(values, batch.action)
        error = td_loss(value, batch.target, batch.weight, self.huber)
        if self.constraint is None:
            constraint = torch.zeros_like(error)
        else:
            constraint = self.constraint.loss(batch, self.network)
        metrics = {"losses/td_loss": error.detach(), "losses/keep": constraint.detach()}
        return error + constraint, metrics

    @torch.no_grad()
    def update_target_network(self) -> None:
        """Move the target network by a share `tau` towards the network."""
        state = self.network.state_dict()
        for name, old in self.target_network.state_dict().items():
            old.lerp_(state[name], self.tau)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly, but for the dataset."""
        constraint = None if self.constraint is None else self.constraint.state_dict()
        return super().state_dict() | {
            "target_network": self.target_network.state_dict(),
            "constraint": constraint,
            "updates_done": self.updates_done,
        }

    def load_policy(self, state: dict) -> None:
        """Restore the part that acting needs, on any device."""
        super().load_policy(state)
        if self.constraint:
            self.constraint.load_state_dict(state["constraint"])

    def start_from(self, state: dict) -> None:
        """Begin with another training's values, in the target network too, and with its model of the behaviour."""
        self.load_policy(state)
        self.target_network.load_state_dict(state["target_network"])

    def load_state_dict(self, state: dict) -> None:
        """Restore everything but the dataset."""
        super().load_state_dict(state)
        self.target_network.load_state_dict(state["target_network"])
        self.updates_done = state["updates_done"]
