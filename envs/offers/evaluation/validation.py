"""The validation of a policy for whole seasons, in training: one season of a small market."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.evaluation.streams import VALIDATION_MARKET, VALIDATION_SEASON
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import SeasonPolicy
from rlcore.network_algorithm import NetworkAlgorithm

if TYPE_CHECKING:
    from envs.offers.evaluation.evaluator import OffersEvaluator


class Validation:
    """Scores policies in one season of `customers` of the training split, which nobody is trained on.

    The market, its bound and the rival's season are made when they are first needed. With `paired`, a score comes with
    how far the policy is ahead of a rival, planning on θ̂, customer by customer: scores of one season vary with its
    customers far more than with the policy, and differences can rank policies.
    """

    def __init__(self, evaluator: OffersEvaluator, customers: int, *, paired: bool):
        self.evaluator, self.customers, self.paired = evaluator, customers, paired

    @cached_property
    def market(self) -> EvaluationMarket:
        """Return the customers who validate."""
        evaluator = self.evaluator
        return evaluator.make_market(self.customers, VALIDATION_MARKET, "train", evaluator.env.budget)

    @cached_property
    def bound(self) -> Bound:
        """Return what their scores are measured against."""
        return self.evaluator.solve_bound(self.market)

    @cached_property
    def rivals_season(self) -> list[SeasonRecord]:
        """Return the season of planning on θ̂, which knows the customers' features too."""
        return self.simulate(self.evaluator.on_estimates.certainty_equivalent_planner(self.market))

    def simulate(self, policy: SeasonPolicy) -> list[SeasonRecord]:
        """Simulate the season under a policy."""
        return self.evaluator.simulate(policy, self.market, self.bound, 1, VALIDATION_SEASON)

    def score(self, algorithm: NetworkAlgorithm) -> dict[str, float]:
        """Return a few metrics of the algorithm's policy."""
        policy, _ = self.evaluator.deploy(algorithm, self.market, self.market)
        records = self.simulate(policy)
        return self.metrics_of(records)

    def metrics_of(self, records: list[SeasonRecord]) -> dict[str, float]:
        """Return the metrics of a season under a policy."""
        summary = summarise_seasons(records, self.market, self.bound)
        metrics = {f"validation/{name}": summary[name] for name in ("score", "spend_ratio", "contact_rate")}
        if self.paired:
            ahead, low, high = paired_difference(records, self.rivals_season, self.market, self.bound)
            metrics["validation/ahead_of_rival"] = ahead
            metrics["validation/ahead_of_rival_half_width"] = (high - low) / 2
        return metrics
