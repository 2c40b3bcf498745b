"""Compare policies on new customers: simulated seasons, scores against the bound, and lost profit by cause."""

from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.profit_decomposition import decompose_lost_profit, paired_difference, summarise_seasons
from envs.offers.evaluation.report import OffersReport
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season

__all__ = [
    "EvaluationMarket",
    "OffersEvaluator",
    "OffersReport",
    "SeasonRecord",
    "decompose_lost_profit",
    "paired_difference",
    "simulate_season",
    "summarise_seasons",
]
