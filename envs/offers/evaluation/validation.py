"""The validation of a policy for whole seasons, in training: one season of a small market."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from rlcore.network_algorithm import NetworkAlgorithm

if TYPE_CHECKING:
    from envs.offers.evaluation.season_evaluator import SeasonEvaluator

VALIDATION_MARKET, VALIDATION_SEASON = 1, 2  # random streams, beside those of season_evaluator.py


class Validation:
    """Scores policies in one season of `customers` of the training split, which nobody is trained on.

    The market, its bound and the rival's season are made when they are first needed. With `paired`, a score comes with
    how far the policy is ahead of the evaluator's rival, customer by customer: scores of one season vary with its
    customers far more than with the policy, and differences can rank policies.
    """

    def __init__(self, evaluator: SeasonEvaluator, customers: int, *, paired: bool):
        self.evaluator, self.customers, self.paired = evaluator, customers, paired

    @cached_property
    def market(self) -> EvaluationMarket:
        """Return the customers who validate."""
        evaluator = self.evaluator
        return evaluator.make_market(self.customers, VALIDATION_MARKET, "train", evaluator.env.budget)

    @cached_property
    def bound(self) -> Any:
        """Return what their scores are measured against."""
        return self.evaluator.solve_bound(self.market)

    @cached_property
    def rivals_season(self) -> list[SeasonRecord] | None:
        """Return the season of the policy that validation is paired with, None where there is none."""
        rival = self.evaluator.rival(self.market) if self.paired else None
        return None if rival is None else self.simulate(rival)

    def simulate(self, policy: Any) -> list[SeasonRecord]:
        """Simulate the season under a policy."""
        return self.evaluator.simulate(policy, self.market, self.bound, 1, VALIDATION_SEASON)

    def score(self, algorithm: NetworkAlgorithm) -> dict[str, float]:
        """Return a few metrics of the algorithm's policy."""
        policy, _ = self.evaluator.deploy(algorithm, self.market, self.market)
        records = self.simulate(policy)
        summary = self.evaluator.summarise(records, self.market, self.bound)
        metrics = {f"validation/{name}": summary[name] for name in ("score", "spend_ratio", "contact_rate")}
        return metrics | self.compare_with_rival(records)

    def compare_with_rival(self, records: list[SeasonRecord]) -> dict[str, float]:
        """Return how far a season is ahead of the rival's, and half the interval, where there is a rival."""
        if self.rivals_season is None:
            return {}
        ahead, low, high = self.evaluator.paired_difference(records, self.rivals_season, self.market, self.bound)
        return {"validation/ahead_of_rival": ahead, "validation/ahead_of_rival_half_width": (high - low) / 2}
