"""Planning under the filtered belief, on the true θ and on a twin's θ̂."""

from __future__ import annotations

from torch import Tensor

from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.information import FEATURES, LOG, TRUTH, Information
from envs.offers.policies.rollover import planning_policy
from envs.offers.populations.base import theta_from_matrix
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.twin.structural_model import mean_theta
from envs.offers.world.customers import Customers

ON_TRUTH = Information(TRUTH, ("beliefs",), equations=True)
ON_TWIN = Information(FEATURES, ("beliefs",), equations=True, training=(LOG,))
TRUE, ESTIMATED = "true θ", "the twin's θ̂"


def estimates_of(twin: TwinEnsemble, features: Tensor) -> Customers:
    """Return a twin's θ̂ of customers with features [N, F], the mean over its members."""
    return theta_from_matrix(mean_theta(twin.fitted_members, features).double())


def plan_on_twin(
    evaluator: OffersEvaluator, market: EvaluationMarket, estimates: Customers, start: Tensor
) -> SeasonPolicy:
    """Plan on a twin's θ̂ of a market's customers as if it were true.

    `start` [14] are the marginals of the state at the start of a season.
    """
    estimated = market.with_customers(evaluator.world.inhabit(estimates), evaluator.world)
    return planning_policy(estimated, evaluator.solve_bound(estimated), ON_TWIN, start)


def planners(
    evaluator: OffersEvaluator, market: EvaluationMarket, bound: Bound, estimates: Customers
) -> dict[str, SeasonPolicy]:
    """Return planning on the true θ of a market's customers, and on a twin's estimates of it."""
    start = evaluator.on_estimates.start_belief()
    return {
        TRUE: planning_policy(market, bound, ON_TRUTH, start),
        ESTIMATED: plan_on_twin(evaluator, market, estimates, start),
    }
