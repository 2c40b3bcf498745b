"""Write and read observations: a policy's view of a customer, the week and the price of money."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, SUBSCRIBED, CustomerState, World, one_hot
from envs.offers.world.history import PassedWeek
from envs.offers.world.season_counts import StateSeasonCounts

if TYPE_CHECKING:
    from envs.offers.populations.base import Population

DYNAMICS = {"habit": HABITS, "fatigue": FATIGUES, "expectation": EXPECTATIONS}  # what contacts change, and its levels
STATUS_NAMES = ("subscribed", "unsubscribed", "churned")
STATUSES = len(STATUS_NAMES)
PRICE_COLUMNS = 2  # logarithm of the price, drift


def one_hot_dynamics(state: CustomerState) -> list[Tensor]:
    """One-hot columns of habit, fatigue and expectation, bool [N, HABITS], [N, FATIGUES], [N, EXPECTATIONS]."""
    return [one_hot(x, levels) for x, levels in zip(state, DYNAMICS.values())]


def one_hot_state(state: CustomerState) -> list[Tensor]:
    """One-hot columns of habit, fatigue, expectation and status, bool."""
    return [*one_hot_dynamics(state), one_hot(state.status, STATUSES)]


class ViewSetting(NamedTuple):
    """What an environment tells a view of itself."""

    num_features: int  #: columns of the features, with those of the contact caps
    world: World
    population: Population | None  #: None for a policy at work, whose view loads what was fitted
    price_range: list[float]
    drift_range: list[float]


class ObservationCodec:
    """Writes and reads the observations [N, obs_dim] of customers.

    The columns are F features; the dynamics, here the states that contacts change (habit, fatigue, expectation),
    one-hot; status and week, one-hot; and the price of money: its logarithm and the logarithm's weekly drift, both
    scaled. The price comes last, so that outcomes depend on the context, all columns before it.

    What an observation needs of earlier weeks is a customer's memory, `memory_dim` numbers (here none), which
    `start_memory` and `remember` carry from week to week, in training, in evaluation and in a running shop alike.
    """

    shows: tuple[str, ...] = ("states",)  #: what of the season's course an observation tells, in words
    uses_equations = False  #: whether an observation is made with the world's equations
    hides_state = False  #: whether habit, fatigue, expectation and churn can't be read out of an observation
    num_dynamics = sum(DYNAMICS.values())  #: columns between features and status
    num_statuses = STATUSES  #: columns of the status
    num_writable = math.prod(DYNAMICS.values())  #: states that `with_dynamics` can write, the rest of a state given
    memory_dim = 0  #: numbers M that a customer's row must remember

    def __init__(self, setting: ViewSetting):
        self.num_features, self.weeks = setting.num_features, setting.world.weeks
        self.log_price_range = [math.log(price) for price in setting.price_range]
        self.drift_range = setting.drift_range
        self.dynamics = slice(self.num_features, self.num_features + self.num_dynamics)
        self.status = slice(self.dynamics.stop, self.dynamics.stop + self.num_statuses)
        self.context_dim = self.status.stop + self.weeks
        self.obs_dim = self.context_dim + PRICE_COLUMNS

    @property
    def learned_from(self) -> tuple[str, ...]:
        """What an observation's estimates were fitted to, in words."""
        return ()

    def column_names(self, feature_names: list[str]) -> list[str]:
        """Name the columns of an observation, for messages, given those of the features."""
        return [
            *feature_names,
            *self.dynamics_names,
            *STATUS_NAMES[: self.num_statuses],
            *(f"week {k}" for k in range(self.weeks)),
            "price",
            "price drift",
        ]

    def state_dict(self) -> dict:
        """Return what was fitted to the population, to be saved with a policy; empty where nothing was fitted."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Use what was fitted when a policy was trained."""

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def start_memory(self, features: Tensor) -> Tensor:
        """Return the memory [N, M] of customers at the start of a season, in the type of their features [N, F]."""
        return features.new_zeros(len(features), self.memory_dim)

    def remember(self, memory: Tensor, features: Tensor, passed: PassedWeek) -> Tensor:
        """Return the memory [N, M] after a week; a view that hides the state does not read the states around it."""
        return memory

    def next_season(self, memory: Tensor) -> Tensor:
        """Return the memory [N, M] with which customers go from the end of a season into the next one."""
        return memory

    def season_anew(self, memory: Tensor) -> Tensor:
        """Return the same for a policy that met no second season in training: what its first week may look like."""
        return memory

    def subscribed(self, state: CustomerState, memory: Tensor) -> Tensor:
        """Customers who, as far as the view tells, can be contacted, bool [N]."""
        return state.status == SUBSCRIBED

    # ── whole observations ──────────────────────────────────────────────────────────────────────────────────────────
    def encode(
        self,
        features: Tensor,
        state: CustomerState,
        memory: Tensor,
        week: int | Tensor,
        price: Tensor,
        drift: Tensor,
    ) -> Tensor:
        """Write observations [N, obs_dim] of customers with features [N, F] at their own prices [N] and drifts [N]."""
        return torch.cat(self._context_columns(features, state, memory, week) + self._price_columns(price, drift), -1)

    def encode_context(self, features: Tensor, state: CustomerState, memory: Tensor, week: int | Tensor) -> Tensor:
        """Write contexts [N, context_dim]; the week (from 0) is a number or a tensor [1]."""
        return torch.cat(self._context_columns(features, state, memory, week), -1)

    def _context_columns(
        self, features: Tensor, state: CustomerState, memory: Tensor, week: int | Tensor
    ) -> list[Tensor]:
        week_now = (torch.arange(self.weeks, device=features.device) == week).expand(features.shape[0], -1)
        columns = [*self.encode_dynamics(state, memory), self.encode_status(state, memory), week_now]
        return [features, *(x.to(features) for x in columns)]

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Return observations [B, D] as if the customers were subscribed and without fatigue and expectation."""
        obs = obs.clone()
        fatigue = self.dynamics.start + HABITS
        expectation = fatigue + FATIGUES
        obs[:, fatigue : self.status.stop] = 0.0
        obs[:, [fatigue, expectation, self.status.start + SUBSCRIBED]] = 1.0
        return obs

    def with_dynamics(self, obs: Tensor, state: CustomerState) -> Tensor:
        """Return observations [B, D] as if customers were in other states, which are [B] each."""
        obs = obs.clone()
        obs[:, self.dynamics.start : self.dynamics.start + ObservationCodec.num_dynamics] = torch.cat(
            [x.to(obs) for x in one_hot_dynamics(state)], -1
        )
        return obs

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def encode_dynamics(self, state: CustomerState, memory: Tensor) -> list[Tensor]:
        """Write the columns of the dynamics, `num_dynamics` in all."""
        return one_hot_dynamics(state)

    def encode_status(self, state: CustomerState, memory: Tensor) -> Tensor:
        """Write the columns of the status, `num_statuses` in all."""
        return one_hot(state.status, STATUSES)

    def decode_dynamics(self, obs: Tensor) -> Tensor:
        """Read the columns of the dynamics [B, num_dynamics] out of observations [B, D]."""
        return obs[:, self.dynamics]

    @property
    def dynamics_names(self) -> list[str]:
        """Names of the columns of the dynamics."""
        return [f"{name} {level}" for name, levels in DYNAMICS.items() for level in range(levels)]

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read the state, int64 [B] each, out of observations [B, D]."""
        one_hot_columns = self.decode_dynamics(obs)[:, : sum(DYNAMICS.values())]
        habit, fatigue, expectation = one_hot_columns.split(list(DYNAMICS.values()), -1)
        return CustomerState(
            habit=habit.argmax(-1),
            fatigue=fatigue.argmax(-1),
            expectation=expectation.argmax(-1),
            status=self.decode_status(obs),
        )

    def decode_status(self, obs: Tensor) -> Tensor:
        """Read the status, int64 [B], out of observations [B, D]."""
        return obs[:, self.status].argmax(-1)

    # ── price ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def encode_price(self, price: Tensor, drift: Tensor) -> Tensor:
        """Write prices [...] and drifts [...] as columns [..., 2], of variance 1 where uniform in their ranges."""
        return torch.cat(self._price_columns(price, drift), -1)

    def _price_columns(self, price: Tensor, drift: Tensor) -> list[Tensor]:
        def standard(x: Tensor, low: float, high: float) -> Tensor:
            return ((x - (low + high) / 2) * (12**0.5 / (high - low)))[..., None]

        return [standard(price.log(), *self.log_price_range), standard(drift, *self.drift_range)]

    def decode_price(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""
        low, high = self.log_price_range
        return ((low + high) / 2 + obs[:, -PRICE_COLUMNS] * (high - low) / 12**0.5).exp()


class StateCountsCodec(ObservationCodec):
    """An ObservationCodec with the state and, beside it, what the season has shown of the customer.

    A learner whose features tell little of θ learns it from the season's sums, which are scaled by `count_scale`
    (envs/offers/world/season_counts.py).
    """

    shows = ("states", "counts")

    def __init__(self, setting: ViewSetting, *, count_scale: float):
        self.counts = StateSeasonCounts(setting.world.catalogue, scale=count_scale)
        self.num_dynamics = ObservationCodec.num_dynamics + len(self.counts)
        self.memory_dim = len(self.counts)
        super().__init__(setting)

    def start_memory(self, features: Tensor) -> Tensor:
        """Return the sums [N, M] of customers at the start of a season."""
        return self.counts.start(features)

    def remember(self, memory: Tensor, features: Tensor, passed: PassedWeek) -> Tensor:
        """Return the sums [N, M] after a week."""
        return self.counts.after_states(memory, passed.seen, passed.state, passed.next_state)

    def encode_dynamics(self, state: CustomerState, memory: Tensor) -> list[Tensor]:
        """Write the one-hot columns of the state, then those of the sums."""
        return [*one_hot_dynamics(state), self.counts.columns(memory)]

    @property
    def dynamics_names(self) -> list[str]:
        """Names of the columns of state and sums."""
        return [*super().dynamics_names, *self.counts.names]

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Return observations [B, D] as if the customers were subscribed and nothing had been sent or redeemed."""
        first = self.dynamics.start + ObservationCodec.num_dynamics
        counts = self.counts.without_contacts(obs[:, first : self.dynamics.stop])
        rested = super().without_contacts(obs)
        rested[:, first : self.dynamics.stop] = counts
        return rested
