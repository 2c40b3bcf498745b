"""Two trained policies in one market: the score of each and their difference, paired by customer."""

from __future__ import annotations

from typing import Any

from envs.offers.evaluation.season_evaluator import TEST_SEASONS, SeasonEvaluator
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs.before_after import BeforeAfter


def compare_in_market(
    evaluator: SeasonEvaluator[Any, Any], before: NetworkAlgorithm, after: NetworkAlgorithm
) -> BeforeAfter:
    """Return the scores of two algorithms' policies on test customers, under the same random numbers."""
    budget = evaluator.env.budget
    market, tuning_market = evaluator.test_market(budget), evaluator.tuning_market(budget)
    bound = evaluator.solve_bound(market)
    seasons = []
    for algorithm in (before, after):
        policy, _ = evaluator.deploy(algorithm, market, tuning_market)
        seasons.append(evaluator.simulate(policy, market, bound, evaluator.seasons, TEST_SEASONS))
    rows = [evaluator.summarise(records, market, bound) for records in seasons]
    old, new = ([row["score"], *row["score_ci"]] for row in rows)
    gained = evaluator.paired_difference(seasons[1], seasons[0], market, bound)
    return BeforeAfter(before=old, after=new, gained=gained)
