"""The base of the algorithms that train one network by one optimiser, and the parts that a configuration gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlcore.algorithm import Algorithm
from rlcore.backends import distributed
from rlcore.runs import divergence
from rlcore.schedules import AdaptiveKL, restore_optimizer


class AuxiliaryModel(Protocol):
    """A model trained beside the policy on the info of steps: it predicts the outcome that costs money."""

    info_names: tuple[str, ...]  #: names of the infos that `train_minibatch` reads

    def predict(self, obs: Tensor) -> Tensor:
        """Return the probability of the outcome for every action, [B, *nvec], from observations or contexts."""

    def anneal(self, progress: float) -> None:
        """Set the learning rate after a share `progress` of the training."""

    def fit(
        self, obs: Tensor, action: Tensor, info: dict[str, Tensor], minibatches: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Train on every step once, in shuffled minibatches; return metrics.

        Shapes: obs [..., D], action [..., K], info [...].
        """

    def train_minibatch(self, obs: Tensor, action: Tensor, info: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one gradient step on B steps; return metrics."""

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, to train on."""

    def load_weights(self, state: dict[str, Any]) -> None:
        """Restore the part of `state_dict`'s result that predictions need."""


# the parts of an algorithm, as its configuration makes them
MakeNetwork = Callable[[int, tuple[int, ...]], Any]  # of the length of an observation and nvec, a network
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeAuxiliaryModel = Callable[[Any], AuxiliaryModel]  # of an environment
# sets the rate, in place, by (rate [], initial rate, share of the training, last KL [])
LearningRateSchedule = Callable[[Tensor, float, float, Tensor], None]


class NetworkAlgorithm(Algorithm):
    """Base of the algorithms that train one network by one optimiser in a VectorEnv (envs/base.py).

    `seed` starts the stream that actions and minibatches are drawn from; the environment has a stream of its own. Under
    torchrun `env` has this process's agents; random streams differ between processes, weights do not. Raises ValueError
    where a rollout does not have the length of an episode, or where a schedule adapts to a KL that nobody measures.
    """

    measures_kl = False  #: whether `kl` has the KL between the policies before and after the last iteration

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        observes_price: bool,
        network: MakeNetwork,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule | None,
        auxiliary: MakeAuxiliaryModel | None,
        total_steps: int,
        num_steps: int,
        eval_every: int,
        checkpoint_every: int,
    ):
        if env.episode_length and num_steps != env.episode_length:
            raise ValueError(f"algo.num_steps: expected {env.episode_length}, the steps of an episode, got {num_steps}")
        if isinstance(lr_schedule, AdaptiveKL) and not self.measures_kl:
            raise ValueError("algo.lr_schedule: expected linear or null, for this algorithm has no KL to adapt to")
        self.env = env
        self.num_steps = num_steps
        self.steps_per_iteration = env.num_agents * num_steps * distributed.num_processes()
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.iteration = 0
        self.iterations = max(1, total_steps // self.steps_per_iteration)
        torch.manual_seed(seed)  # initial weights
        # A seed other than the environment's: actions must not depend on the random numbers that drew the agents.
        self.generator = torch.Generator(env.device).manual_seed(2 * distributed.rank_seed(seed) + 1)
        self.network = network(env.obs_dim if observes_price else env.context_dim, env.nvec).to(env.device)
        self.auxiliary: AuxiliaryModel | None = auxiliary(env) if auxiliary else None
        self.optimizer = optimizer(self.network.parameters())
        self.initial_lr = self.optimizer.param_groups[0]["lr"]
        self.lr = torch.tensor(float(self.initial_lr), device=env.device)
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.lr_schedule = lr_schedule
        # of the last iteration, for schedules that adapt to it
        self.kl = torch.full((), torch.nan, device=env.device)

    def anneal(self, progress: float) -> None:
        """Set the learning rates of an iteration."""
        if self.lr_schedule:
            self.lr_schedule(self.lr, self.initial_lr, progress, self.kl)
        if self.auxiliary:
            self.auxiliary.anneal(progress)

    @property
    def input_names(self) -> list[str]:
        """Names of the columns of an observation."""
        return list(self.env.obs_names)

    def explain_divergence(self) -> str:
        """Name a column of the observations that is not finite."""
        obs, _ = self.env.reset()
        return divergence.describe_observations(obs, self.env.obs_names)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue exactly."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "kl": self.kl,
            "iteration": self.iteration,
            "auxiliary": self.auxiliary and self.auxiliary.state_dict(),
            "generator": self.generator.get_state(),
            "env": self.env.state_dict(),
        }

    def load_policy(self, state: dict[str, Any]) -> None:
        """Restore the part that acting needs, on any device."""
        self.network.load_state_dict(state["network"])
        if self.auxiliary:
            self.auxiliary.load_weights(state["auxiliary"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything. Random streams continue only on the kind of device that they come from."""
        self.load_policy(state)
        fixed_lr = None if self.lr_schedule else self.initial_lr
        restore_optimizer(self.optimizer, state["optimizer"], self.lr, fixed_lr)
        self.kl.copy_(state["kl"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.iteration = state["iteration"]
