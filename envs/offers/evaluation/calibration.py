"""Calibrate policies on training customers before a comparison: the prices they observe, and the spend they forecast.

A learned policy observes the drift, or the whole path, of the price that the policy itself causes. A plan on estimates
forecasts what its messages cost; what they cost among training customers corrects the forecast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.offers.constraints.budget_rules import ExpectedSpend
from envs.offers.constraints.purchase_queue import expected_totals
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.rollover import price_path
from envs.offers.policies.wrappers import RecordingPolicy, ReservationPricePolicy, with_calibrated_spend
from rlcore.network_algorithm import NetworkAlgorithm

if TYPE_CHECKING:
    from envs.offers.evaluation.evaluator import OffersEvaluator


def calibrate_price_drift(evaluator: OffersEvaluator, algorithm: NetworkAlgorithm, market: EvaluationMarket) -> float:
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


def fit_drift(evaluator: OffersEvaluator, path: Tensor) -> float:
    """Return the slope of log prices [T] by least squares, clipped to the drifts that training has seen."""
    low, high = evaluator.env.drift_range
    week = torch.arange(len(path), device=path.device, dtype=torch.float64)
    week = week - week.mean()
    log_price = path.double().clamp_min(evaluator.prices[-1]).log()
    return ((week * log_price).sum() / week.square().sum()).clamp(low, high).item()


def calibrate_price_path(
    evaluator: OffersEvaluator, algorithm: NetworkAlgorithm, market: EvaluationMarket
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


def calibrate_spend(evaluator: OffersEvaluator, policy: SeasonPolicy, market: EvaluationMarket) -> Tensor:
    """Find the factor of each week, [T], by which a policy underestimates what its messages cost in a market.

    The factors are a fixed point, approached over the evaluator's calibration seasons, because more or less money left
    changes who is contacted. A week in which the policy forecasts no spend keeps its factor.
    """
    factor = torch.ones_like(market.budget)
    for _ in range(evaluator.calibration_seasons):
        recording = RecordingPolicy(with_calibrated_spend(policy, factor))
        record = evaluator.simulate_calibration_season(recording, market)
        weeks = zip(recording.weeks, record.action)
        forecast = torch.stack([expected_totals(steps, action, market.world.catalogue)[0] for steps, action in weeks])
        spent = record.expected_spend.sum(1)
        factor = factor * torch.where((forecast > 0) & (spent > 0), spent / forecast.clamp_min(1e-12), 1.0)
    return factor
