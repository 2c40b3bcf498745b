"""Two policies in one market: the score of each and, of two trained ones, their difference, paired by customer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envs.offers.constraints.budget import Budget
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.populations.base import Population
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs.before_after import BeforeAfter

if TYPE_CHECKING:
    from envs.offers.evaluation.evaluator import OffersEvaluator


def compare_in_market(evaluator: OffersEvaluator, before: NetworkAlgorithm, after: NetworkAlgorithm) -> BeforeAfter:
    """Return the scores of two algorithms' policies on test customers, under the same random numbers."""
    budget = evaluator.env.budget
    market, tuning_market = evaluator.test_market(budget), evaluator.tuning_market(budget)
    bound = evaluator.solve_bound(market)
    seasons = []
    for algorithm in (before, after):
        policy, _ = evaluator.deploy(algorithm, market, tuning_market)
        seasons.append(evaluator.simulate(policy, market, bound, evaluator.seasons, TEST_SEASONS))
    rows = [summarise_seasons(records, market, bound) for records in seasons]
    old, new = ([row["score"], *row["score_ci"]] for row in rows)
    return BeforeAfter(before=old, after=new, gained=paired_difference(seasons[1], seasons[0], market, bound))


def compare_with_myopic(
    evaluator: OffersEvaluator, algorithm: NetworkAlgorithm, name: str, budget: Budget, population: Population | None
) -> dict:
    """Compare an algorithm with the myopic knapsack under a budget, on test customers of `population`."""
    market = evaluator.test_market(budget, population)
    policy, _ = evaluator.deploy(algorithm, market, evaluator.tuning_market(budget, population))
    bound = evaluator.solve_bound(market)
    found: dict[str, Any] = {"weekly_budget": market.budget[0].item(), "bound": bound.gap}
    for row, compared in (("myopic knapsack", evaluator.myopic_policy(market, 0.0)), (name, policy)):
        records = evaluator.simulate(compared, market, bound, evaluator.seasons, TEST_SEASONS)
        summary = summarise_seasons(records, market, bound)
        found[row] = {key: summary[key] for key in ("score", "score_ci", "incremental_profit", "spend_ratio")}
    return found
