"""The contracts of policies, algorithms and their evaluators, and the base of algorithms that train one network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlcore.backends import distributed
from rlcore.distributions import MaskedMultiDiscrete
from rlcore.rollout import EpisodicReturn
from rlcore.runs import divergence
from rlcore.schedules import AdaptiveKL, restore_optimizer

if TYPE_CHECKING:
    from rlcore.offline.logged_dataset import LoggedDataset
    from rlcore.runs.logger import Logger
    from rlcore.runs.report import Report


class Policy(Protocol):
    """A policy over MultiDiscrete actions.

    Its arguments are observations obs [B, D] and action masks, bool [B, *nvec] or [B, Πn].
    """

    #: whether the policy depends on the price in the observation; else obs may be the context alone
    observes_price: bool

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        """Return the distribution that actions are drawn from."""

    def act(self, obs: Tensor, action_mask: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return actions [B, K] and their log-probabilities [B].

        Uniforms u [B] draw the actions; without them (None) the actions are the mode.
        """


@runtime_checkable
class ValuePolicy(Policy, Protocol):
    """A policy that is greedy with respect to modelled action values, less the actions' cost at the observed price."""

    def action_values(self, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Return action values before the price of the actions' own spend, [B, Πn], −inf where masked."""


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


class Evaluator(Protocol):
    """Judges what an algorithm has learned, on data that nothing was trained on."""

    headline: str  #: name of the metric of `validate` that the progress line and the training curve show

    def validate(self, algorithm: Any) -> dict[str, float]:
        """Return a few metrics during training."""

    def evaluate(self, algorithm: Any | None, name: str) -> Report:
        """Compare the algorithm, as the row `name`, with baselines; None compares the baselines alone."""


class Algorithm(ABC):
    """Anything that is trained by iterations.

    `TrainingLoop` runs an algorithm; `rlcore.backends.accelerate` compiles or records it. Under torchrun the first
    process logs and evaluates; all processes take part in everything else.
    """

    env_type: type | None = None  #: what `env` must be an instance of; None stands for a VectorEnv
    env: Any  #: what the algorithm was built for
    policy: Any  #: a Policy, or a language model
    iteration: int  #: iterations done
    iterations: int  #: iterations of the whole training
    steps_per_iteration: int  #: environment steps, samples or decisions of an iteration, in all processes together
    eval_every: int  #: iterations between two evaluations
    checkpoint_every: int  #: iterations between two checkpoints

    learned_from: tuple[str, ...] = ("a simulator",)  #: what training is given beside observations, in words of a table

    #: A backend may compile or record graph regions, because they never wait for the device.
    graph_regions: tuple[str, ...] = ()  #: names of methods whose tensors have fixed shapes
    sharded: tuple[str, ...] = ()  #: keys of `state_dict` that differ between processes; empty: one process only

    validates_at_start: bool = False  #: whether the first validation comes before the first iteration

    @property
    def steps_done(self) -> int:
        """Steps, samples or decisions of all iterations so far."""
        return self.iteration * self.steps_per_iteration

    @property
    def has_converged(self) -> bool:
        """Whether training ends before its last iteration."""
        return False

    def setup(self, logger: Logger, should_stop: Callable[[], bool]) -> None:
        """Get what the first iteration needs beside the environment, such as a pretrained model."""
        return

    @abstractmethod
    def iterate(self, progress: float) -> Mapping[str, Tensor | float]:
        """Run one iteration after a share `progress` of the training; return its metrics, as device tensors."""

    def is_validation_due(self) -> bool:
        """Tell whether a validation follows the iteration that has ended."""
        return self.iteration % self.eval_every == 0 or self.iteration == self.iterations

    def observe_validation(self, metrics: dict[str, float]) -> None:
        """Take note of a validation, to keep the best weights or to stop early."""
        return

    def explain_divergence(self) -> str:
        """Return what may have made a loss not finite, as part of the message that ends the run; empty: unknown."""
        return ""

    def finish(self) -> None:
        """Complete the training, for instance by restoring the best weights."""
        return

    def accelerate_inner(self, algorithm: Algorithm) -> Algorithm:
        """Apply this algorithm's performance mode to an algorithm trained within it; a backend replaces this method."""
        return algorithm

    def make_evaluator(self) -> Evaluator:
        """Return the evaluator of this algorithm."""
        evaluator: Evaluator = self.env.evaluation(self.env)
        return evaluator

    @property
    def input_names(self) -> list[str]:
        """Names of the columns that its policy sees; empty where columns have no names."""
        return []

    def start_from(self, state: dict[str, Any]) -> None:
        """Begin with what another training of this kind has learned, the result of its `state_dict`.

        Iterations, optimisers, schedules and random streams are those of a new training. Comes before the first
        iteration.
        """
        self.load_policy(state)

    def continue_from(self, state: dict[str, Any]) -> None:
        """Begin as `start_from` does, with the data too that the other training has kept."""
        self.start_from(state)

    def export(self, directory: Path) -> None:
        """Write the trained models into a directory in formats of other libraries, if there are such formats."""
        return

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, to train on. Comes before the first iteration."""

    @abstractmethod
    def load_policy(self, state: dict[str, Any]) -> None:
        """Restore the part of `state_dict`'s result that acting needs, on any device."""


class OfflineAlgorithm(Algorithm):
    """An algorithm that can learn from logged decisions."""

    @abstractmethod
    def set_dataset(self, data: LoggedDataset) -> None:
        """Learn from this dataset. Raises ValueError where the dataset lacks what the algorithm needs."""


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
        self.episodic_return = EpisodicReturn(env.num_agents, env.device)
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
            "episodic_return": self.episodic_return.running,
        }

    def load_policy(self, state: dict[str, Any]) -> None:
        """Restore the part that acting needs, on any device."""
        self.network.load_state_dict(state["network"])
        if self.auxiliary:
            self.auxiliary.load_weights(state["auxiliary"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything. Random streams continue only on the kind of device that they come from."""
        self.load_policy(state)
        restore_optimizer(self.optimizer, state["optimizer"], self.lr)
        if self.lr_schedule is None:
            self.lr.fill_(self.initial_lr)
        self.kl.copy_(state["kl"])
        if self.auxiliary:
            self.auxiliary.load_state_dict(state["auxiliary"])
        self.generator.set_state(state["generator"].cpu())
        self.env.load_state_dict(state["env"])
        self.episodic_return.running.copy_(state["episodic_return"])
        self.iteration = state["iteration"]
