"""The contracts of policies, algorithms and their evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from rlcore.distributions import MaskedMultiDiscrete

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
