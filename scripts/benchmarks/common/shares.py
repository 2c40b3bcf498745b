"""What share of a rival's profit a policy earns, with an interval."""

from __future__ import annotations

from envs.offers.evaluation import EvaluationMarket, SeasonRecord
from envs.offers.evaluation.profit_decomposition import score_terms
from envs.offers.planning.lagrangian_bound import Bound
from rlcore.ope.intervals import LEVEL, normal_half_width


def share_of_rival(
    ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: Bound
) -> list[float]:
    """Return the ratio of two policies' scores and its 95 % interval over customers, who are the same for both.

    The interval is that of a ratio of two totals by the delta method. All are NaN where the rival earns nothing.
    """
    mine, other = score_terms(ours, market, bound), score_terms(theirs, market, bound)
    of_mine, of_other = mine.mixed(bound), other.mixed(bound)
    total = of_other.sum().item() + other.used
    if total <= 0:
        return [float("nan")] * 3
    ratio = (of_mine.sum().item() + mine.used) / total
    residual = of_mine - ratio * of_other
    half_width = len(residual) * normal_half_width(residual, LEVEL).item() / total
    return [ratio, ratio - half_width, ratio + half_width]
