"""What an algorithm may ask of an environment.

`VectorEnv` is the whole contract of most algorithms: N agents that act in lockstep on one device. Three capabilities
are classes of their own: `FunctionalEnv` (the same environment as pure functions of its state), `PricedEnv` (spending
money lowers the reward by a price) and `LookaheadEnv` (what every action is expected to bring and lead to). N is the
number of agents, D the length of an observation, `nvec` the sizes of the K heads of a MultiDiscrete action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log
from rlcore.offline.logged_dataset import LoggedDataset, check_compatible

if TYPE_CHECKING:
    from rlcore.algorithm import Evaluator


class Step(NamedTuple):
    """What a step of N agents returns; the step that ends an agent's episode also resets it (same-step autoreset)."""

    obs: Tensor  #: observation to act on next, after any reset, float [N, D]
    action_mask: Tensor  #: actions that are valid for `obs`, bool [N, *nvec]; every agent has at least one
    reward: Tensor  #: reward of the action, float [N]
    terminated: Tensor  #: the episode has ended by itself, bool [N]
    truncated: Tensor  #: a time limit cut the episode short, bool [N]; false where `terminated` is true
    #: observation that the action led to, before any reset, float [N, D]; equals `obs` without a reset
    final_obs: Tensor
    info: dict[str, Tensor]  #: further outcomes of the action, [N] each, under the names of `VectorEnv.info_keys`
    #: actions that are valid for `final_obs` where the step is truncated, elsewhere those for `obs`, bool [N, *nvec];
    #: None where the environment never truncates
    final_action_mask: Tensor | None = None


class VectorEnv(ABC):
    """N agents that act in lockstep.

    An environment owns its random stream: a seed and a number of threads fix its results.
    """

    num_agents: int  #: N
    obs_dim: int  #: D
    nvec: tuple[int, ...]  #: sizes of the K heads of an action
    device: torch.device  #: device of all tensors of the environment
    evaluation: Callable[[VectorEnv], Evaluator]  #: called with the environment, returns its Evaluator

    episode_length: int | None = None  #: steps of every episode, where all have one length; else None
    can_truncate: bool = False  #: whether `Step.truncated` can be true
    info_keys: tuple[str, ...] = ()  #: names of the tensors in `Step.info`
    static_dim: int = 0  #: number of leading columns of an observation that stay the same for a whole episode
    obs_names: Sequence[str] = ()  #: names of the D columns of an observation, for messages; empty: they have none

    graph_regions: tuple[str, ...] = ()  #: methods that do a step's work on tensors; a backend may compile them
    #: A backend that records steps as a CUDA graph keeps the tensors of the attributes in `graph_state` at one address.
    #: A step that waits for the device or draws random numbers can't be recorded.
    graph_state: tuple[str, ...] = ()  #: attributes that `reset` sets and `step` reads; empty: steps can't be recorded

    @property
    def context_dim(self) -> int:
        """Number of leading columns of an observation that the outcome of an action depends on.

        The other columns, such as a price, only change what the outcome is worth.
        """
        return self.obs_dim

    @property
    def has_fixed_lengths(self) -> bool:
        """Whether actions leave the length of an episode as it is: all episodes have one length, or none ends.

        Where an action can end or prolong an episode, a constant that is added to all rewards changes which policy is
        best.
        """
        return self.episode_length is not None

    @abstractmethod
    def reset(self) -> tuple[Tensor, Tensor]:
        """Begin a rollout: return the first observation [N, D] and its action mask [N, *nvec].

        Only an environment with an `episode_length` starts new episodes here. In any other, running episodes go on, and
        their current observation is returned.
        """

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Take actions [N, K], int64."""

    def see_static_columns(self, obs: Tensor) -> None:  # noqa: B027 - many environments have no static columns
        """Widen the range of static columns by observations [N, D] of training; `static_limits` gives the range."""

    def static_limits(self) -> tuple[Tensor, Tensor] | None:
        """Return the lowest and the highest values of static columns, [static_dim] each, that a policy may be given.

        A policy's actions mean nothing far from what it was trained on. None: there are no limits.
        """
        return None

    def read_log(
        self, path: str, split: str, transform: Callable[[LoggedDataset], LoggedDataset] | None = None
    ) -> LoggedDataset:
        """Read logged decisions as this environment's policies observe them; `transform` is applied to each chunk.

        `split` ("train" or "test") chooses the units of one side, where the environment knows the sides of units; a log
        of another environment's observations has no sides. Raises ValueError where the log does not fit.
        """
        if transform is None:
            dataset = read_log(path, COLUMNS)
            check_compatible(dataset, self, path)
            return dataset

        def checked(chunk: LoggedDataset) -> LoggedDataset:
            check_compatible(chunk, self, path)
            return transform(chunk)

        return read_log(path, COLUMNS, checked)

    def has_sides(self, path: str) -> bool:
        """Tell whether `read_log` knows a log's units of training from those of testing."""
        return False

    def action_name(self, index: int) -> str:
        """Name the action of a flat index, for tables."""
        parts = []
        for choices in reversed(self.nvec):
            index, part = divmod(index, choices)
            parts.append(str(part))
        return ",".join(reversed(parts))

    def as_functional(self) -> FunctionalEnv | None:
        """Return the same environment as pure functions, or None where it has no such form."""
        return None

    def as_priced(self) -> PricedEnv | None:
        """Return this environment as one where spend has a price, or None where spend has no price."""
        return None

    def as_lookahead(self, privileged: bool) -> LookaheadEnv | None:
        """Return what actions are expected to bring and lead to, or None where this environment does not know it.

        `privileged` lets critics observe what no policy observes, such as the parameters of a simulation.
        """
        return None

    def expected_reward(self) -> Tensor | None:
        """Return the expected immediate reward of every action [N, *nvec], or None where it is unknown.

        Regret is measured against this reward.
        """
        return None

    def use_realised_outcomes(self) -> None:  # noqa: B027 - many environments have no other outcomes
        """From now on pay rewards of sampled outcomes instead of expected rewards.

        A log of real decisions has sampled outcomes.
        """

    def load_fitted(self, state: dict[str, Any]) -> None:  # noqa: B027 - many environments fit nothing
        """Restore the fitted preprocessing of observations from a `state_dict`.

        This method is called before an algorithm is built, because it can change `obs_dim`.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""


class StepInputs(Protocol):
    """Everything exogenous in T steps, such as random numbers: a NamedTuple of tensors [T, N, ...].

    The tensors of one step are [N, ...].
    """

    ends: Tensor  #: steps that end an episode, bool [T, N], whatever the actions are


class FunctionalEnv(Protocol):
    """An environment whose `observe` and `transition` are pure functions of their arguments.

    A backend can therefore compile or record a whole rollout as one graph. Episodes end where `StepInputs.ends` says
    so, and no step is truncated. `VectorEnv.step` gives the same results.
    """

    @property
    def state(self) -> Tensor:
        """The Markov state of each agent, [N, ...]."""

    def sample_inputs(self, steps: int) -> Any:
        """Draw the StepInputs of the next `steps` steps. Call `set_state` before the environment is used again."""

    def observe(self, state: Tensor, inputs: Any, /) -> tuple[Tensor, Tensor]:
        """Return the observation [N, D] and the action mask [N, *nvec] of a state and one step's inputs. Pure."""

    def transition(self, state: Tensor, inputs: Any, action: Tensor, /) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the next state, the rewards [N] and info of actions [N, K]. Pure."""

    def set_state(self, state: Tensor, /) -> None:
        """Continue in `state`, the state after the sampled steps."""


class LookaheadEnv(Protocol):
    """The one-step model of an environment's running episode: expected rewards, and expected values of next states.

    An agent is in one of S states, or has left them for good (state index S) and earns no more. States are the true
    ones, whether observations show them or not. What a critic observes is the same in all S states, so that one pass
    gives the values of all of them. Where more than the state depends on the action, such as how often the agent may
    still act, the next step has K futures, which differ in what a critic observes. Methods are about the episode that
    was begun by the last `reset`; T is its length.
    """

    num_states: int  #: S
    filters_states: bool  #: whether observations hide the state, and its distribution, given these, is known
    draws_states: bool  #: whether observations can be written as if agents were in other states
    num_futures: int  #: K; 1 where an action decides nothing but the next state
    critic_dim: int  #: C, the length of a critic's observation

    def visited_states(self) -> Tensor:
        """Return the states in which the agents acted in the episode's steps so far, int64 [T, N] from 0 to S."""

    def critic_obs(self, obs: Tensor) -> Tensor:
        """Return what a critic observes, [T, N, C], beside the observations [T, N, D] of all steps."""

    def draw_states(self, visited: Tensor, generator: torch.Generator) -> Tensor:
        """Draw states that `as_if_in` can show, beside the visited ones, int64 [T, N] each. Only if `draws_states`.

        A part of the state that observations can't show stays as visited.
        """

    def as_if_in(self, state: Tensor, obs: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations [T, N, D] and masks [T, N, *nvec] as if agents were in the states [T, N].

        The states are of `draw_states`. Given are observations and masks of the steps so far. Only if `draws_states`.
        """

    def future_critic_obs(self, critic_obs: Tensor) -> Tensor:
        """Return what a critic would observe one step after steps 0 … T − 2 in each future, [K, T − 1, N, C]."""

    def backup(self, state: Tensor, next_values: Tensor) -> Tensor:
        """Return E[r + V(s′) | s, a] of every flat action in the states [T, N], [T, N, Πn], whatever is masked.

        `next_values` [K, T − 1, N, S] has the values of the following step's states in each future; after the last
        step there is no value. The result is affine in the values: its coefficients are the probabilities of the next
        states.
        """

    def expected_backup(self, next_values: Tensor) -> Tensor:
        """Return `backup`, expected over the states of agents, given the observations so far, [T, N, Πn].

        The values of an agent that has left are 0. Call it after the episode's last step, and only if `filters_states`.
        """


class Repriced(NamedTuple):
    """Other prices for B logged decisions, and for the step after each of them."""

    price: Tensor  #: [B]
    encoded_price: Tensor  #: the columns of an observation that show the price, [B, D − context_dim]
    next_price: Tensor  #: at the next step, [B]
    next_encoded_price: Tensor  #: [B, D − context_dim]


class PricedEnv(VectorEnv):
    """An environment whose rewards are profit − price · spend: the price of money makes agents share a budget.

    An agent's price and its trend are the last columns of an observation, after the context. In `Step.info`,
    `profit` is a step's profit before the price is paid, and `spend` is the money spent.
    """

    def as_priced(self) -> PricedEnv:
        """Return this environment."""
        return self

    @property
    @abstractmethod
    def price(self) -> Tensor:
        """Price of a unit of money for each agent at the current step, in units of reward, [N]."""

    @abstractmethod
    def expected_cost(self, probability: Tensor | None) -> Tensor:
        """Return the expected spend of every action, money, [N, *nvec].

        `probability` [N, *nvec] is an auxiliary model's estimate of the probability of the outcome that costs money;
        None stands for the environment's own probability.
        """

    @abstractmethod
    def decode_price(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""

    @abstractmethod
    def sample_prices(self, step: Tensor, generator: torch.Generator) -> Repriced:
        """Draw new prices for decisions at steps [B] of their episodes, from this environment's distribution."""
