"""Calibrate a forecast of spend: what a policy's messages cost among training customers, over what it forecasts."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from envs.offers.constraints.purchase_queue import expected_totals
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.calibrated_spend import with_calibrated_spend
from envs.offers.policies.rollover import RecordingPolicy


class SeasonSimulator(Protocol):
    """The evaluator's attributes that calibration needs."""

    calibration_seasons: int  #: seasons simulated before the comparison

    def simulate_calibration_season(self, policy: Any, market: EvaluationMarket) -> SeasonRecord:
        """Simulate a season under random numbers of calibration; return its record."""


def calibrate_spend(evaluator: SeasonSimulator, policy: SeasonPolicy, market: EvaluationMarket) -> Tensor:
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
