"""What an algorithm may ask of an environment.

`VectorEnv` is the whole contract of most algorithms: N agents that act in lockstep on one device. Two capabilities are
classes of their own: `FunctionalEnv` (the same environment as pure functions of its state) and `PricedEnv` (spending costs an
agent a price).
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rlcore.algorithm import Evaluator


class Step(NamedTuple):
    """What a step of N agents returns."""

    obs: Tensor  #: observation to act on next, after any reset, float [N, D]
    action_mask: Tensor  #: which actions are valid then, bool [N, *nvec]; at least one of each agent's is
    reward: Tensor  #: reward of the action, float [N]
    terminated: Tensor  #: the episode has ended, bool [N]; where an episode is both terminated and truncated, it is terminated
    truncated: Tensor  #: a time limit cut the episode short, bool [N]
    final_obs: Tensor  #: observation that the action led to, before any reset, float [N, D]
    info: dict[str, Tensor]  #: further outcomes of the action, [N] each, under the names of `VectorEnv.info_keys`


class VectorEnv(ABC):
    """N agents that act in lockstep; an agent whose episode has ended is reset within the step.

    An environment owns its random stream: for a seed and a number of threads its results are reproducible.
    """

    num_agents: int  #: N
    obs_dim: int  #: D, the length of an observation
    nvec: tuple[int, ...]  #: sizes of the K heads of a MultiDiscrete action
    device: torch.device  #: where all tensors of the environment are
    evaluation: Callable[[VectorEnv], Evaluator]  #: makes what judges the policies of this environment

    episode_length: int | None = None  #: T where every episode has T steps and `reset` starts new episodes; else None
    can_truncate: bool = False  #: whether `Step.truncated` can be true
    info_keys: tuple[str, ...] = ()  #: names of the tensors in `Step.info`
    static_dim: int = 0  #: the first columns of an observation, which stay the same for a whole episode

    graph_regions: tuple[str, ...] = ()  #: methods, functions of tensors, that do a step's work: a backend may compile these
    graph_state: tuple[str, ...] = ()  #: attributes that `reset` makes and `step` reads: a backend that records steps keeps
    #: their tensors in place; empty where a step can't be recorded, because it asks the host or draws random numbers

    @property
    def context_dim(self) -> int:
        """The first columns of an observation, which outcomes depend on; the others, such as a price, only steer a policy."""
        return self.obs_dim

    @abstractmethod
    def reset(self) -> tuple[Tensor, Tensor]:
        """Return the observation [N, D] and the action mask [N, *nvec] at the start of a rollout.

        An environment with an `episode_length` starts new episodes. Any other goes on where it is.
        """

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Take actions [N, K], int64."""

    def as_functional(self) -> FunctionalEnv | None:
        """Return the same environment as pure functions, or None where it has no such form."""
        return None

    def as_priced(self) -> PricedEnv | None:
        """Return the same environment as one where spend has a price, or None where it has none."""
        return None

    def expected_reward(self) -> Tensor | None:
        """Return the expected immediate reward of every action [N, *nvec], or None where it is unknown.

        Regret is measured against it.
        """
        return None

    def use_realised_outcomes(self) -> None:
        """From now on sample outcomes and pay rewards for what was sampled, as in a log of real decisions."""

    def load_fitted(self, state: dict) -> None:
        """Restore from a `state_dict` what the environment fitted to its data and observations depend on.

        It is called before an algorithm is built, because it can change `obs_dim`.
        """

    @abstractmethod
    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""


class StepInputs(Protocol):
    """All of T steps that does not depend on actions, such as random numbers: a tuple of tensors [T, N, ...]."""

    ends: Tensor  #: steps that end an episode, bool [T, N], whatever the actions are


class FunctionalEnv(Protocol):
    """An environment as pure functions of its state, in the convention of gymnax and Brax, so that a rollout can be one graph.

    Episodes end where `StepInputs.ends` says so, and no step is truncated. `step` of the VectorEnv gives the same results.
    """

    state: Tensor  #: what the agents' past leaves behind, [N]

    def sample_inputs(self, steps: int) -> Any:
        """Draw the StepInputs of the next `steps` steps; the environment then waits for `set_state`."""

    def observe(self, state: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the observation [N, D] and the action mask [N, *nvec] in a state, with the inputs of one step. Pure."""

    def transition(self, state: Tensor, inputs: Any, action: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the next state, the rewards [N] and info of actions [N, K]. Pure."""

    def set_state(self, state: Tensor) -> None:
        """Continue in the state that the sampled steps have led to."""


class Repriced(NamedTuple):
    """Other prices for B logged decisions and for the decisions that follow them."""

    price: Tensor  #: [B]
    encoded_price: Tensor  #: the columns of an observation that show the price, [B, P]
    next_price: Tensor
    next_encoded_price: Tensor


class PricedEnv(VectorEnv):
    """An environment in which every unit of spend costs an agent the price of money at that step.

    The price and its trend stand in the last columns of an observation, after the context. `info` has the profit of a step
    before the price is paid as `profit`, and the money spent as `spend`.
    """

    def as_priced(self) -> PricedEnv:
        return self

    @property
    @abstractmethod
    def price(self) -> Tensor:
        """What a unit of spend costs each agent at the current step, [N]."""

    @abstractmethod
    def expected_cost(self, probability: Tensor | None) -> Tensor:
        """Return the expected spend of every action, [N, *nvec].

        `probability` [N, *nvec] is that of the outcome which costs money; None stands for the environment's own.
        """

    @abstractmethod
    def decode_price(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""

    @abstractmethod
    def sample_prices(self, week: Tensor, generator: torch.Generator) -> Repriced:
        """Draw other prices for decisions in weeks [B], distributed as in a season of this environment."""
