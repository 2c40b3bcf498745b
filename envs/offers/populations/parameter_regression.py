"""θ̂ = E[θ | x], customers' parameters estimated from their features, for certainty-equivalent planning."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.populations.base import Sample, theta_from_matrix, theta_to_matrix
from envs.offers.world.customers import Customers


class ParameterRegression:
    """Ridge regression of θ on features, clamped to the range of its sample; of log θ where the prior is lognormal."""

    def __init__(self, sample: Sample, *, ridge: float):
        theta = theta_to_matrix(sample.customers)
        self.low, self.high = theta.amin(0), theta.amax(0)
        x = self._design(sample.features)
        penalty = ridge * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        penalty[0, 0] = 0.0
        self.weight = torch.linalg.solve(x.T @ x + len(x) * penalty, x.T @ theta)

    @staticmethod
    def _design(features: Tensor) -> Tensor:
        return torch.cat((torch.ones_like(features[:, :1]), features), 1)

    def __call__(self, features: Tensor) -> Customers:
        """Estimate the parameters of customers with features [N, F]."""
        theta = self._design(features) @ self.weight
        return theta_from_matrix(theta.clamp(self.low, self.high))
