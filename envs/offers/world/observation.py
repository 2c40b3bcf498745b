"""Write and read observations: a policy's view of a customer, the week and the price of money."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, SUBSCRIBED, CustomerState
from envs.offers.world.history import History, column_names

DYNAMICS = {"habit": HABITS, "fatigue": FATIGUES, "expectation": EXPECTATIONS}  # what contacts change, and its levels
STATUS_NAMES = ("subscribed", "unsubscribed", "churned")
STATUSES = len(STATUS_NAMES)
PRICE_COLUMNS = 2  # logarithm of the price, drift


def one_hot(x: Tensor, n: int) -> Tensor:
    """One-hot columns of int64 x [N], bool [N, n]. torch's own waits for the device to check its input."""
    return x[:, None] == torch.arange(n, device=x.device)


def one_hot_dynamics(state: CustomerState) -> list[Tensor]:
    """One-hot columns of habit, fatigue and expectation, bool [N, HABITS], [N, FATIGUES], [N, EXPECTATIONS]."""
    return [one_hot(x, levels) for x, levels in zip(state, DYNAMICS.values())]


def one_hot_state(state: CustomerState) -> list[Tensor]:
    """One-hot columns of habit, fatigue, expectation and status, bool."""
    return [*one_hot_dynamics(state), one_hot(state.status, STATUSES)]


class ObservationCodec:
    """Writes and reads the observations [N, obs_dim] of customers.

    The columns are F features; the dynamics, here the states that contacts change (habit, fatigue, expectation),
    one-hot; status and week, one-hot; and the price of money: its logarithm and the logarithm's weekly drift, both
    scaled. The price comes last, so that outcomes depend on the context, all columns before it.
    """

    hides_state = False  #: whether habit, fatigue and expectation can't be read out of an observation
    num_dynamics = sum(DYNAMICS.values())  #: columns between features and status

    def __init__(self, num_features: int, weeks: int, price_range: list[float], drift_range: list[float]):
        self.num_features, self.weeks = num_features, weeks
        self.log_price_range = [math.log(price) for price in price_range]
        self.drift_range = drift_range
        self.dynamics = slice(num_features, num_features + self.num_dynamics)
        self.status = slice(self.dynamics.stop, self.dynamics.stop + STATUSES)
        self.context_dim = self.status.stop + weeks
        self.obs_dim = self.context_dim + PRICE_COLUMNS

    def column_names(self, feature_names: list[str], num_caps: int) -> list[str]:
        """Name the columns of an observation, for messages; the features end with the shares of caps left."""
        return [
            *feature_names,
            *(f"left of cap {k}" for k in range(num_caps)),
            *self.dynamics_names,
            *STATUS_NAMES,
            *(f"week {k}" for k in range(self.weeks)),
            "price",
            "price drift",
        ]

    # ── whole observations ──────────────────────────────────────────────────────────────────────────────────────────
    def encode(
        self,
        features: Tensor,
        state: CustomerState,
        history: History | None,
        week: int | Tensor,
        price: Tensor,
        drift: Tensor,
    ) -> Tensor:
        """Write observations [N, obs_dim] of customers with features [N, F] at their own prices [N] and drifts [N]."""
        return torch.cat(self._context_columns(features, state, history, week) + self._price_columns(price, drift), -1)

    def encode_context(
        self, features: Tensor, state: CustomerState, history: History | None, week: int | Tensor
    ) -> Tensor:
        """Write contexts [N, context_dim]; the week (from 0) is a number or a tensor [1]."""
        return torch.cat(self._context_columns(features, state, history, week), -1)

    def _context_columns(
        self, features: Tensor, state: CustomerState, history: History | None, week: int | Tensor
    ) -> list[Tensor]:
        week_now = (torch.arange(self.weeks, device=features.device) == week).expand(len(features), -1)
        columns = [*self.encode_dynamics(state, history), one_hot(state.status, STATUSES), week_now]
        return [features, *(x.to(features) for x in columns)]

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Return observations [B, D] as if the customers were subscribed and without fatigue and expectation."""
        obs = obs.clone()
        fatigue = self.dynamics.start + HABITS
        expectation = fatigue + FATIGUES
        obs[:, fatigue : self.status.stop] = 0.0
        obs[:, [fatigue, expectation, self.status.start + SUBSCRIBED]] = 1.0
        return obs

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def encode_dynamics(self, state: CustomerState, history: History | None) -> list[Tensor]:
        """Write the columns of the dynamics, `num_dynamics` in all."""
        return one_hot_dynamics(state)

    def decode_dynamics(self, obs: Tensor) -> Tensor:
        """Read the columns of the dynamics [B, num_dynamics] out of observations [B, D]."""
        return obs[:, self.dynamics]

    @property
    def dynamics_names(self) -> list[str]:
        """Names of the columns of the dynamics."""
        return [f"{name} {level}" for name, levels in DYNAMICS.items() for level in range(levels)]

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read the state, int64 [B] each, out of observations [B, D]."""
        habit, fatigue, expectation = self.decode_dynamics(obs).split(list(DYNAMICS.values()), -1)
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


class HistoryCodec(ObservationCodec):
    """An ObservationCodec with the observable history in place of the states that contacts change.

    `half_lives`, in weeks, are those of the history's weights (envs/offers/world/history.py). Raises ValueError where
    one is not above 0.
    """

    hides_state = True

    def __init__(self, *args, half_lives: list[float]):
        if not half_lives or min(half_lives) <= 0:
            raise ValueError(f"env.observation.half_lives: expected weeks above 0, got {half_lives}")
        self.half_lives, self.num_dynamics = half_lives, len(column_names(half_lives))
        super().__init__(*args)

    def encode_dynamics(self, state: CustomerState, history: History | None) -> list[Tensor]:
        """Write the columns of the history."""
        assert history is not None  # a codec that hides the state is always given the history
        return [history.columns(self.half_lives)]

    @property
    def dynamics_names(self) -> list[str]:
        """Names of the columns of the history."""
        return column_names(self.half_lives)

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read the observable part of the state, int64 [B] each, out of observations [B, D]: the status, else zeros."""
        status = self.decode_status(obs)
        return CustomerState(
            habit=torch.zeros_like(status),
            fatigue=torch.zeros_like(status),
            expectation=torch.zeros_like(status),
            status=status,
        )

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Return observations [B, D] as if the customers were subscribed and nothing had been sent or redeemed."""
        obs = obs.clone()
        of_contacts = [
            self.dynamics.start + k
            for k, name in enumerate(self.dynamics_names)
            if not name.startswith(("weeks", "purchases", "last p"))
        ]
        obs[:, of_contacts] = 0.0
        obs[:, self.status] = 0.0
        obs[:, self.status.start + SUBSCRIBED] = 1.0
        return obs
