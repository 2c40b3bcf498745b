"""θ given customers' features x: its estimate θ̂ = E[θ | x], for certainty-equivalent planning, and draws of θ."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.populations.base import Sample, theta_from_matrix, theta_to_matrix
from envs.offers.world.customers import Customers

REGRESSION_LABELS = "true parameters of training customers"  # what a regression of θ on features is fitted to


class ParameterRegression:
    """Ridge regression of θ on features, clamped to the range of its sample; of log θ where the prior is lognormal.

    Without a sample, what was fitted comes by `load_state_dict`.
    """

    learned_from = REGRESSION_LABELS

    def __init__(self, sample: Sample | None, *, ridge: float):
        if sample is None:
            self.weight = self.low = self.high = torch.empty(0, dtype=torch.float64)
            return
        theta = theta_to_matrix(sample.customers)
        self.low, self.high = theta.amin(0), theta.amax(0)
        x = self._design(sample.features)
        penalty = ridge * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
        penalty[0, 0] = 0.0
        self.weight = torch.linalg.solve(x.T @ x + len(x) * penalty, x.T @ theta)

    @staticmethod
    def _design(features: Tensor) -> Tensor:
        return torch.cat((torch.ones_like(features[:, :1]), features), 1)

    def state_dict(self) -> dict:
        """Return what was fitted."""
        return {"weight": self.weight, "low": self.low, "high": self.high}

    def load_state_dict(self, state: dict) -> None:
        """Restore what was fitted."""
        self.weight, self.low, self.high = (state[key].to(self.weight) for key in ("weight", "low", "high"))

    def __call__(self, features: Tensor) -> Customers:
        """Estimate the parameters of customers with features [N, F]."""
        return theta_from_matrix(self.matrix(features))

    def matrix(self, features: Tensor) -> Tensor:
        """Estimate the parameters of customers with features [N, F] as a matrix, [N, K]."""
        theta = self._design(features.to(self.weight)) @ self.weight
        return theta.clamp(self.low, self.high)


def prior_draws(sample: Sample, features: Tensor, draws: int, generator: torch.Generator, *, ridge: float) -> Tensor:
    """Draw θ given features [N, F], [K, N, P] (`theta_to_matrix`): regression on a sample, plus its residuals.

    The residuals of one customer of the sample stay together, so that their correlations are kept.
    """
    regression = ParameterRegression(sample, ridge=ridge)
    predicted = regression.matrix(features)
    residual = theta_to_matrix(sample.customers) - regression.matrix(sample.features)
    row = torch.randint(len(residual), (draws, len(features)), generator=generator, device=features.device)
    return (predicted + residual[row]).clamp(regression.low, regression.high)
