"""What a policy sees of a customer, the week and the price of money."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.offers.world.history import History, column_names
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, CustomerState


def hot(x: Tensor, n: int) -> Tensor:
    """One-hot, bool [N, n]; torch's own asks the host on a CPU."""
    return x[:, None] == torch.arange(n, device=x.device)


class ObservationCodec:
    """Features, state and week (one-hot), then the price: its logarithm now and its drift a week, both scaled.

    The price comes last, so that all before it is what outcomes depend on.
    """

    hides_state = False  # whether habit, fatigue and expectation can't be read out of it
    hidden = HABITS + FATIGUES + EXPECTATIONS  # columns between features and status

    def __init__(self, num_features: int, weeks: int, price_range: list, drift_range: list):
        self.features, self.weeks = num_features, weeks
        self.log_low, self.log_high = map(math.log, price_range)
        self.drift_low, self.drift_high = drift_range
        self.context_dim = num_features + self.hidden + 3 + weeks
        self.dim = self.context_dim + 2

    def encode_context(self, features: Tensor, state: CustomerState, history: History | None, week: int | Tensor) -> Tensor:
        """Lay out what outcomes depend on, [N, context_dim]; the week is a number or a tensor [1]."""
        return torch.cat(self._encode_context(features, state, history, week), -1)

    def _encode_context(self, features: Tensor, state: CustomerState, history: History | None, week: int | Tensor) -> list[Tensor]:
        now = (torch.arange(self.weeks, device=features.device) == week).expand(len(features), -1)
        return [features, *(x.to(features) for x in (*self.encode_dynamics(state, history), hot(state.status, 3), now))]

    def encode_dynamics(self, state: CustomerState, history: History) -> list[Tensor]:
        """What is known of what moves customers, `hidden` columns."""
        return [hot(x, n) for x, n in zip(state, (HABITS, FATIGUES, EXPECTATIONS))]

    @property
    def names(self) -> list[str]:
        """Names of what `inside` lays out."""
        return [f"{name} {k}" for name, n in (("habit", HABITS), ("fatigue", FATIGUES), ("expectation", EXPECTATIONS))
                for k in range(n)]

    def decode_dynamics(self, obs: Tensor) -> Tensor:
        """Read what `inside` laid out, out of observations [B, D]."""
        return obs[:, self.features:self.features + self.hidden]

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read the state out of observations [B, D]."""
        inside = (hot.argmax(-1) for hot in self.decode_dynamics(obs).split((HABITS, FATIGUES, EXPECTATIONS), -1))
        return CustomerState(*inside, self.decode_status(obs))

    def decode_status(self, obs: Tensor) -> Tensor:
        """Read the status [B] out of observations [B, D]."""
        first = self.context_dim - self.weeks - 3
        return obs[:, first:first + 3].argmax(-1)

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Set fatigue and expectation to 0 and the status to subscribed in observations [B, D]."""
        obs, first, end = obs.clone(), self.features + HABITS, self.context_dim - self.weeks
        obs[:, first:end] = 0.0
        obs[:, [first, first + FATIGUES, first + FATIGUES + EXPECTATIONS]] = 1.0
        return obs

    def encode_price(self, price: Tensor, drift: Tensor) -> Tensor:
        """Scale prices and drifts to about [−1.7, 1.7], [..., 2]."""
        return torch.cat(self._encode_price(price, drift), -1)

    def _encode_price(self, price: Tensor, drift: Tensor) -> list[Tensor]:
        def standard(x, low, high):
            return ((x - (low + high) / 2) * (12**0.5 / (high - low)))[..., None]
        return [standard(price.log(), self.log_low, self.log_high), standard(drift, self.drift_low, self.drift_high)]

    def decode_price(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""
        return ((self.log_low + self.log_high) / 2 + obs[:, -2] * (self.log_high - self.log_low) / 12**0.5).exp()

    def encode(self, features: Tensor, state: CustomerState, history: History | None, week: int | Tensor, price: Tensor,
                 drift: Tensor) -> Tensor:
        """Lay out observations [N, dim] of customers at their own price [N] and drift [N]."""
        return torch.cat(self._encode_context(features, state, history, week) + self._encode_price(price, drift), -1)


class HistoryCodec(ObservationCodec):
    """The same without habit, fatigue and expectation: what is seen of them is what customers did, and what was done.

    halvings: weeks in which what lies back counts half (envs/offers/world/history.py).
    """

    hides_state = True

    def __init__(self, *args, halvings: list):
        if not halvings or min(halvings) <= 0:
            raise ValueError(f"env.observation.halvings: expected weeks above 0, got {halvings}")
        self.halvings, self.hidden = halvings, len(column_names(halvings))
        super().__init__(*args)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return column_names(self.halvings)

    def encode_dynamics(self, state: CustomerState, history: History) -> list[Tensor]:
        """The columns of the history."""
        return [history.columns(self.halvings)]

    def decode_state(self, obs: Tensor) -> CustomerState:
        """Read what is known of the state out of observations [B, D]: the status, and zeros."""
        status = self.decode_status(obs)
        return CustomerState(*(torch.zeros_like(status) for _ in range(3)), status)

    def without_contacts(self, obs: Tensor) -> Tensor:
        """Take contacts, redemptions and spend out of observations [B, D], and set the status to subscribed."""
        obs, first, end = obs.clone(), self.features, self.context_dim - self.weeks
        gone = [first + k for k, name in enumerate(self.names) if not name.startswith(("weeks", "purchases", "last p"))]
        obs[:, gone], obs[:, end - 3:end] = 0.0, 0.0
        obs[:, end - 3] = 1.0
        return obs
