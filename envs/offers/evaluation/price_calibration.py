"""Calibrate the price that a deployed policy observes: the drift, or the whole path, that the policy itself causes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from envs.offers.constraints.budget_rules import ExpectedSpend
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.policies.rollover import RecordingPolicy, ReservationPricePolicy, price_path
from rlcore.network_algorithm import NetworkAlgorithm


class SeasonSimulator(Protocol):
    """The evaluator's methods that calibration needs."""

    env: Any  #: the offers environment that the algorithm was trained in
    prices: Tensor  #: the grid of falling prices at which deployed policies are evaluated
    calibration_seasons: int  #: seasons simulated before the comparison

    def deploy_at_drift(self, algorithm: NetworkAlgorithm, market: EvaluationMarket, drift: float) -> Any:
        """Return the algorithm's policy for a market; the policy observes the given drift of the price."""

    def simulate_calibration_season(self, policy: Any, market: EvaluationMarket) -> Any:
        """Simulate a season under random numbers of calibration; return its record."""


def calibrate_price_drift(evaluator: SeasonSimulator, algorithm: NetworkAlgorithm, market: EvaluationMarket) -> float:
    """Find the weekly drift of the log price that an algorithm's policy causes when it observes that drift.

    The drift is a fixed point, approached over the evaluator's calibration seasons; it is 0 for a policy that does not
    observe the price.
    """
    if not algorithm.policy.observes_price:
        return 0.0
    low, high = evaluator.env.drift_range
    drift = (low + high) / 2
    for _ in range(evaluator.calibration_seasons):
        policy = evaluator.deploy_at_drift(algorithm, market, drift)
        record = evaluator.simulate_calibration_season(policy, market)
        drift = fit_drift(evaluator, record.clearing_price)
    return drift


def fit_drift(evaluator: SeasonSimulator, path: Tensor) -> float:
    """Return the slope of log prices [T] by least squares, clipped to the drifts that training has seen."""
    low, high = evaluator.env.drift_range
    week = torch.arange(len(path), device=path.device, dtype=torch.float64)
    week = week - week.mean()
    log_price = path.double().clamp_min(evaluator.prices[-1]).log()
    return ((week * log_price).sum() / week.square().sum()).clamp(low, high).item()


def calibrate_price_path(
    evaluator: SeasonSimulator, algorithm: NetworkAlgorithm, market: EvaluationMarket
) -> tuple[float, Tensor]:
    """Find the prices [T], never rising, at which a policy uses a budget that rolls over, and their drift.

    Seasons simulated before the comparison show what the policy would buy in each week at every price. The first season
    has the same money every week; in the next seasons the policy buys everything that is worth the prices found so far.
    """
    even_market = replace(market, budget=market.budget.mean().expand_as(market.budget), rollover=False)
    unlimited_market = replace(market, budget=torch.full_like(market.budget, torch.inf), budget_rule=ExpectedSpend())

    def drift_of(path: Tensor) -> float:
        return fit_drift(evaluator, path) if algorithm.policy.observes_price else 0.0

    policy = RecordingPolicy(
        evaluator.deploy_at_drift(algorithm, market, calibrate_price_drift(evaluator, algorithm, even_market))
    )
    evaluator.simulate_calibration_season(policy, even_market)
    path = price_path(policy.weeks, market.budget)
    for _ in range(evaluator.calibration_seasons):
        policy = RecordingPolicy(evaluator.deploy_at_drift(algorithm, market, drift_of(path)))
        evaluator.simulate_calibration_season(ReservationPricePolicy(policy, path), unlimited_market)
        path = price_path(policy.weeks, market.budget)
    return drift_of(path), path
