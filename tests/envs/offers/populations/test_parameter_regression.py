"""θ given features: draws of θ have the regression's mean and its sample's residuals, whole customers at a time."""

from __future__ import annotations

import torch

from configs import load
from envs.offers.populations.base import theta_to_matrix
from envs.offers.populations.parameter_regression import ParameterRegression, prior_draws


def test_draws_are_the_estimate_plus_the_residuals_of_one_customer():
    env = load("offers_full_information", torch.device("cpu"), 0, num_agents=10, population={"r2": 0.6})
    sample = env.population.draw(400, torch.Generator().manual_seed(0), "train")
    others = env.population.draw(3, torch.Generator().manual_seed(1), "test")
    found = prior_draws(sample, others.features, 5000, torch.Generator().manual_seed(2), ridge=1e-4)
    truth, regression = theta_to_matrix(sample.customers), ParameterRegression(sample, ridge=1e-4)
    assert found.shape == (5000, 3, truth.shape[1])
    assert (found >= truth.amin(0)).all() and (found <= truth.amax(0)).all()
    whole = regression.matrix(others.features)[:, None] + (truth - regression.matrix(sample.features))  # [3, 400, P]
    whole = whole.clamp(truth.amin(0), truth.amax(0))
    for i in range(3):
        apart = torch.cdist(found[:, i], whole[i])
        assert apart.amin(1).max() < 1e-6  # each draw has all its residuals from one customer of the sample
        assert apart.argmin(1).unique().numel() > 300
        standard_error = whole[i].std(0) / 5000**0.5
        assert ((found[:, i].mean(0) - whole[i].mean(0)).abs() < 5 * standard_error + 1e-9).all()
