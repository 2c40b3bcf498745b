"""The contract of an environment of many agents that step together on one device."""
from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """What a step returns for B agents.

    obs [B, D] and mask [B, *nvec] are those to act on next, after any reset; final_obs [B, D] is what the step led to,
    before it. terminated and truncated are bool [B]; where both would hold, terminated does. info holds tensors [B].
    """

    obs: Tensor
    mask: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor
    info: dict[str, Tensor]


class BatchedEnv(ABC):
    """B agents that act at once. Owns its random stream; branch-free, so that a step can be captured.

    num_agents: B.  obs_dim: D.  nvec: sizes of the action's heads.  context_dim: the leading columns of an observation
    that an action's outcome depends on (the rest, such as a price, only steers).  static: the leading ones that hold for a
    whole episode.  truncates: whether a step can be truncated at all.  redeems: whether info tells `redeemed`, which a spend
    head learns from.  season: the steps that a rollout must have, where `begin` starts anew.  priced: whether spend costs an
    agent `price` [B] a unit; then `spend` tells what pairs will cost, `reprice` draws other prices for decisions of a log,
    `price_seen` reads the price out of observations, `lost` and `rested` say more of a log's customers, and info has the
    step's `profit` [B] (what it earned before that price) beside its reward.  pure: whether `moments`, `observe` and `move`
    say the same as `step` in pure functions, so that a whole rollout can be one graph; the state they pass on is a tensor,
    episodes end at the moments' `ends` whatever is done, and no step is truncated.  capturable: whether steps ask the host
    nothing and `begin` leaves what they read where it was, so that a rollout can be recorded as a CUDA graph.  hot: names of
    the methods, functions of tensors, that do a step's work, which a learner compiles.
    """

    num_agents: int
    obs_dim: int
    context_dim: int
    nvec: tuple[int, ...]
    device: torch.device
    truncates: bool
    redeems: bool = True
    static: int = 0
    season: int | None = None
    priced: bool = False
    pure: bool = False
    capturable: bool = False
    hot: tuple[str, ...] = ()

    @abstractmethod
    def begin(self) -> tuple[Tensor, Tensor]:
        """Observe at the start of a rollout: obs [B, D], mask [B, *nvec].

        An environment that resets itself carries on where it was; one of seasons draws the next, and what it gave out for the
        last one may change with it.
        """

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Act [B, K], int64."""

    def expected_reward(self) -> Tensor | None:
        """Expected reward of this step alone by action, [B, *nvec], where the environment knows it: regret's yardstick."""
        return None

    def realise(self) -> None:
        """From here on let chance decide what comes of an action, and rewards say nothing else: what a log holds."""

    def load_fitted(self, state: dict) -> None:
        """Take over from a state what it fitted to its data and a policy's observations depend on, on whatever device.

        Comes before a learner is built, for it can change obs_dim.
        """

    @abstractmethod
    def state_dict(self) -> dict:
        """Everything that a resumed run needs to go on alike."""

    @abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
