"""A neural contextual bandit over any VectorEnv: it learns the immediate reward of an action and ignores later steps.

An iteration collects decisions and updates; with a dataset, the decisions are read from it instead. In a priced
environment the bandit learns profit and spend apart, and acts on profit less spend at the agent's price, so that its
values clear any budget by the exact knapsack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.action_values import ActionValues, GreedyPolicy
from rlcore.algorithm import OfflineAlgorithm
from rlcore.distributions import draw, unflatten
from rlcore.exploration.explorers import Explorer
from rlcore.network_algorithm import (
    LearningRateSchedule,
    MakeAuxiliaryModel,
    MakeNetwork,
    MakeOptimizer,
    NetworkAlgorithm,
)
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.replay_buffer import ReplayBuffer
from rlcore.rollout import stack_columns


class Decisions(NamedTuple):
    """The decisions of an iteration, B in all."""

    context: Tensor  #: [B, D]
    action: Tensor  #: flat action [B]
    reward: Tensor  #: what the network learns, before the price of spend where the environment is priced, [B]
    info: dict[str, Tensor]  #: further outcomes, [B]


class NeuralBandit(NetworkAlgorithm, OfflineAlgorithm):
    """A contextual bandit: it acts for `num_steps` steps, then its network learns from its memory.

    An explorer (rlcore/exploration/) chooses the actions. `network` is an ActionValues. In an iteration it learns
    from `updates` minibatches of `batch_size` remembered decisions. In a priced environment `target` says what it
    learns: the step's profit, or the environment's reward before the price, which shaping can extend to later steps.
    Raises ValueError where the parts do not fit.
    """

    graph_regions = ("loss",)

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        network: MakeNetwork,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule | None,
        exploration: Callable[[ActionValues], Explorer],
        auxiliary: MakeAuxiliaryModel | None,
        total_steps: int,
        num_steps: int,
        target: str,
        memory: int,
        updates: int,
        batch_size: int,
        eval_every: int,
        checkpoint_every: int,
    ):
        if target not in ("profit", "reward"):
            raise ValueError(f"algo.target: expected profit or reward, got '{target}'")
        super().__init__(
            env,
            seed,
            observes_price=False,
            network=network,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            auxiliary=auxiliary,
            total_steps=total_steps,
            num_steps=num_steps,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
        )
        decisions = env.num_agents * num_steps
        if not isinstance(self.network, ActionValues):
            raise ValueError(
                "algo.network: the bandit needs a network of action values, as algo/network=action_values or logistic"
            )
        if memory < decisions:
            raise ValueError(
                f"algo.memory: expected at least env.num_agents × algo.num_steps, {decisions}, the decisions of an "
                f"iteration, got {memory}"
            )
        self.exploration = exploration(self.network)
        self.target = target
        self.updates = updates
        self.batch_size = batch_size
        self.memory = ReplayBuffer(memory, env.context_dim, env.device)
        self.cumulative_regret = torch.zeros((), device=env.device)  # of an agent, since the start
        self.seed = seed
        self.dataset: LoggedDataset | None = None
        self.priced_env = env.as_priced()
        self.policy = GreedyPolicy(
            env.nvec, self._action_values, self._action_cost if self.priced_env else None, observes_price=False
        )

    def set_dataset(self, data: LoggedDataset) -> None:
        """Read decisions from a dataset, again and again in one random order, in place of acting.

        Raises ValueError with `target` reward: a dataset has no other reward than its own.
        """
        if self.target == "reward":
            raise ValueError("algo.target: expected profit with a log, whose own reward is learned, got reward")
        self.dataset = data
        self.learned_from = ("a log",)
        generator = torch.Generator().manual_seed(self.seed)
        self.order = torch.randperm(len(data), generator=generator).to(self.env.device)

    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect or read decisions, and learn from memory; return the metrics."""
        self.anneal(progress)
        if self.dataset is None:
            decisions, metrics = self.collect()
        else:
            decisions, metrics = self.read(self.dataset), {}
        return self.update(decisions) | metrics | {"charts/learning_rate": self.lr}

    @torch.no_grad()
    def collect(self) -> tuple[Decisions, dict[str, Tensor]]:
        """Act for `num_steps` steps with every agent; return the decisions, and mean outcomes and regret as metrics."""
        env = self.env
        priced = self.priced_env
        steps: list[dict] = []
        infos: list[dict] = []
        obs, action_mask = env.reset()
        uniforms = torch.rand(self.num_steps, env.num_agents, generator=self.generator, device=env.device)
        for u in uniforms:
            context, action_mask = obs[:, : env.context_dim], action_mask.flatten(1)
            cost = self.action_cost(context, priced.price) if priced else 0.0
            probs = self.exploration.probs(self.network, context, cost, action_mask, self.generator)
            action = draw(probs, u)
            self.exploration.update_design(self.network, context, action)
            info = {"explored": 1 - probs.amax(-1)}
            # The environment's expectation is of the step alone: it is no yardstick for a reward of later steps.
            expected_reward = env.expected_reward() if self.target == "profit" else None
            if expected_reward is not None:
                expected_reward = expected_reward.flatten(1).masked_fill(~action_mask, -torch.inf)
                info["regret"] = expected_reward.amax(-1) - expected_reward.gather(1, action[:, None])[:, 0]
            price = priced.price.clone() if priced else None  # a step moves on to the next price
            step = env.step(unflatten(action, env.nvec))
            steps.append({"context": context, "action": action, "reward": self._learned_reward(step, price)})
            infos.append(step.info | info)
            obs, action_mask = step.obs, step.action_mask
        outcomes = {name: x.flatten(0, 1) for name, x in stack_columns(infos).items()}
        decisions = Decisions(**{name: x.flatten(0, 1) for name, x in stack_columns(steps).items()}, info=outcomes)
        means = {
            f"rollout/{name}": torch.stack([info[name].float().mean() for info in infos]).mean() for name in infos[0]
        }
        if "rollout/regret" in means:
            self.cumulative_regret += self.num_steps * means["rollout/regret"]
            means["rollout/cumulative_regret"] = self.cumulative_regret.clone()
        return decisions, means

    def _learned_reward(self, step: Any, price: Tensor | None) -> Tensor:
        """Return what the network learns of a step at a price [N], before spend is charged, which is done apart."""
        if price is None:
            return step.reward
        return step.info["profit"] if self.target == "profit" else step.reward + price * step.info["spend"]

    @torch.no_grad()
    def read(self, data: LoggedDataset) -> Decisions:
        """Read the next logged decisions, as many as an iteration would make."""
        count = self.env.num_agents * self.num_steps
        position = self.iteration * count + torch.arange(count, device=self.env.device)
        rows = self.order[position % len(data)]
        context = data.obs[rows, : self.env.context_dim]
        action = data.action[rows]
        for contexts, actions in zip(context.chunk(self.num_steps), action.chunk(self.num_steps)):
            self.exploration.update_design(self.network, contexts, actions)
        info = {name: x[rows] for name, x in data.outcomes.items()}
        reward = data.reward[rows]
        if not self.priced_env:  # nobody else charges the cost
            reward = reward - data.price[rows] * data.cost[rows]
        return Decisions(context=context, action=action, reward=reward, info=info)

    def update(self, decisions: Decisions) -> dict[str, Tensor]:
        """Remember the decisions and learn from memory; return metrics."""
        self.memory.add(decisions.context, decisions.action, decisions.reward)
        self.network.update_normalization(decisions.context)
        total_loss = torch.zeros_like(self.lr)
        for _ in range(self.updates):
            rows = torch.randint(len(self.memory), (self.batch_size,), generator=self.generator, device=self.env.device)
            drawn = self.memory.rows(rows)
            loss = self.loss(drawn.context, drawn.action, drawn.reward)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total_loss += loss.detach()
        with torch.no_grad():
            if self.exploration.is_refit_due(self.iteration):
                self.refit_posterior()
        metrics = {"losses/value_loss": total_loss / self.updates}
        if self.auxiliary:
            action = unflatten(decisions.action, self.env.nvec)
            metrics |= self.auxiliary.fit(decisions.context, action, decisions.info, self.updates, self.generator)
        return metrics

    @torch.no_grad()
    def finish(self) -> None:
        """Refit the explorer's posterior to the final network, where the last iteration has not done so."""
        if self.memory.written and not self.exploration.is_refit_due(self.iteration - 1):
            self.refit_posterior()

    def refit_posterior(self) -> None:
        """Refit the explorer's posterior to the network and to all remembered decisions."""
        remembered = self.memory.rows()
        self.exploration.refit_posterior(self.network, remembered.context, remembered.action, remembered.reward)

    def loss(self, context: Tensor, action: Tensor, reward: Tensor) -> Tensor:
        """Return the network's loss on B decisions."""
        return self.network.loss(context, action, reward)

    def action_cost(self, context: Tensor, price: Tensor) -> Tensor:
        """Return the cost of actions at prices [B], [B, Πn]. The cost is known, so the network does not learn it."""
        probability = self.auxiliary.predict(context) if self.auxiliary else None
        return (price[:, None, None] * self.priced_env.expected_cost(probability)).flatten(1)

    def _action_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        return self.exploration.predict(self.network, obs[:, : self.env.context_dim])

    def _action_cost(self, obs: Tensor) -> Tensor:
        if not self.auxiliary:
            raise ValueError(
                "algo.auxiliary: without a model of what actions cost, their cost in logged states is unknown"
            )
        return self.action_cost(obs[:, : self.env.context_dim], self.priced_env.decode_price(obs))

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly, but for the dataset."""
        return super().state_dict() | {
            "exploration": self.exploration.state_dict(),
            "memory": self.memory.state_dict(),
            "target": self.target,
            "cumulative_regret": self.cumulative_regret,
        }

    def load_policy(self, state: dict) -> None:
        """Restore the part that acting needs, on any device."""
        super().load_policy(state)
        self.exploration.load_state_dict(state["exploration"])

    def continue_from(self, state: dict) -> None:
        """Begin with what another training has learned, and with the decisions that it remembers."""
        self.start_from(state)
        self._recall(state)

    def _recall(self, state: dict) -> None:
        """Restore the remembered decisions, whose rewards are of one target."""
        if state["target"] != self.target:
            raise ValueError(f"algo.target: the remembered decisions have {state['target']}, got {self.target}")
        self.memory.load_state_dict(state["memory"])

    def load_state_dict(self, state: dict) -> None:
        """Restore everything."""
        super().load_state_dict(state)
        self._recall(state)
        self.cumulative_regret.copy_(state["cumulative_regret"])
