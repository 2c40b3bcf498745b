"""What a policy sees of a customer, the week and the price of money."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.offers.world import EXPECTATIONS, FATIGUES, HABITS, State


class Observation:
    """Features, state and week (one-hot), then the price: its logarithm now and its drift a week, both scaled.

    The price comes last, so that all before it is what outcomes depend on.
    """

    def __init__(self, num_features: int, weeks: int, price_range: list, drift_range: list):
        self.features, self.weeks = num_features, weeks
        self.log_low, self.log_high = map(math.log, price_range)
        self.drift_low, self.drift_high = drift_range
        self.context_dim = num_features + HABITS + FATIGUES + EXPECTATIONS + 3 + weeks
        self.dim = self.context_dim + 2
        self.contacts = num_features + HABITS, self.context_dim - weeks  # columns of fatigue, expectation and status

    def context(self, features: Tensor, state: State, week: int) -> Tensor:
        """Lay out what outcomes depend on, [N, context_dim]."""
        # Not by torch's one_hot, which asks the host on a CPU.
        hot = [x[:, None] == torch.arange(n, device=x.device) for x, n in zip(state, (HABITS, FATIGUES, EXPECTATIONS, 3))]
        now = torch.zeros(len(features), self.weeks, device=features.device, dtype=features.dtype)
        now[:, week].fill_(1.0)
        return torch.cat((features, *(x.to(features.dtype) for x in hot), now), -1)

    def state(self, obs: Tensor) -> State:
        """Read the state out of observations [B, D]."""
        sizes = (HABITS, FATIGUES, EXPECTATIONS, 3)
        return State(*(hot.argmax(-1) for hot in obs[:, self.features:self.context_dim - self.weeks].split(sizes, -1)))

    def status(self, obs: Tensor) -> Tensor:
        """Read the status [B] out of observations [B, D]."""
        first = self.context_dim - self.weeks - 3
        return obs[:, first:first + 3].argmax(-1)

    def rested(self, obs: Tensor) -> Tensor:
        """Set fatigue and expectation to 0 and the status to subscribed in observations [B, D]."""
        obs, (first, end) = obs.clone(), self.contacts
        obs[:, first:end] = 0.0
        obs[:, [first, first + FATIGUES, first + FATIGUES + EXPECTATIONS]] = 1.0
        return obs

    def price(self, price: Tensor, drift: Tensor) -> Tensor:
        """Scale prices and drifts to about [−1.7, 1.7], [..., 2]."""
        def standard(x, low, high):
            return (x - (low + high) / 2) * (12**0.5 / (high - low))
        return torch.stack((standard(price.log(), self.log_low, self.log_high),
                            standard(drift, self.drift_low, self.drift_high)), -1)

    def price_seen(self, obs: Tensor) -> Tensor:
        """Read the price [B] out of observations [B, D]."""
        return ((self.log_low + self.log_high) / 2 + obs[:, -2] * (self.log_high - self.log_low) / 12**0.5).exp()

    def __call__(self, features: Tensor, state: State, week: int, price: Tensor, drift: Tensor) -> Tensor:
        """Lay out observations [N, dim] of customers at their own price [N] and drift [N]."""
        return torch.cat((self.context(features, state, week), self.price(price, drift)), -1)
