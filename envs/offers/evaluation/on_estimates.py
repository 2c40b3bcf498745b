"""Policies on estimates: what is known of customers is θ̂, the parameters that their features predict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from envs.offers.evaluation.calibration import calibrate_spend
from envs.offers.evaluation.report import FEE_TUNED
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.evaluation.streams import POSTERIOR_DRAWS, REGRESSION_CUSTOMERS
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.planning.state_values import StateValues
from envs.offers.policies.base import BatchedPolicy, SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, ResponseRanking
from envs.offers.policies.bayes_planner import BayesPlanner
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefRanking, BeliefView
from envs.offers.policies.information import COUNTS, FEATURES, REGRESSION_LABELS, STATES, Information
from envs.offers.policies.rollover import plan_at_prices, values_at_prices, with_carried_money
from envs.offers.policies.wrappers import MarginsSeenPolicy, with_calibrated_spend
from envs.offers.populations.base import Sample
from envs.offers.populations.parameter_regression import ParameterRegression, prior_draws
from envs.offers.world.belief_observation import start_marginals

if TYPE_CHECKING:
    from envs.offers.evaluation.evaluator import OffersEvaluator


class Estimates(NamedTuple):
    """A market with estimated parameters θ̂, and the same with the margins that purchases show."""

    market: EvaluationMarket  #: with θ̂
    with_margins: EvaluationMarket | None  #: with θ̂ but for margins, which are true; None where no view shows them

    def policy(self, make: Callable[[EvaluationMarket], BatchedPolicy]) -> SeasonPolicy:
        """Return the policy that `make` makes of a market, with each customer's margin from the first purchase on."""
        policy = make(self.market)
        return policy if self.with_margins is None else MarginsSeenPolicy(policy, make(self.with_margins))


class PoliciesOnEstimates:
    """The policies on θ̂ of an evaluator.

    θ̂ is fitted on `regression_customers` of the training split, with a `ridge`; `posterior_draws` of θ serve Bayes
    planning (0: left out). Where the view hides the state, all policies filter it under θ̂.
    """

    def __init__(self, evaluator: OffersEvaluator, *, regression_customers: int, ridge: float, posterior_draws: int):
        self.evaluator, self.env, self.world = evaluator, evaluator.env, evaluator.world
        self.regression_customers, self.ridge = regression_customers, ridge
        self.posterior_draws = posterior_draws

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────
    @cached_property
    def sample(self) -> Sample:
        """The training customers that θ̂ is fitted on."""
        generator = self.evaluator.generator(REGRESSION_CUSTOMERS)
        return self.env.population.draw(self.regression_customers, generator, "train")

    @property
    def information(self) -> Information:
        """What policies on θ̂ are given: states where a view shows them, else beliefs filtered under θ̂."""
        season = ("beliefs",) if self.env.codec.hides_state else (STATES,)
        return Information(FEATURES, season, equations=True, training=(REGRESSION_LABELS,))

    def start_belief(self) -> Tensor:
        """Return the marginals [14] of the state at the start of a season."""
        return start_marginals(self.sample.state)

    def predicted_market(self, market: EvaluationMarket) -> EvaluationMarket:
        """Return a market as a shop sees it: with the parameters θ̂ that its customers' features predict."""
        regression = ParameterRegression(self.sample, ridge=self.ridge)
        return market.with_customers(self.world.inhabit(regression(market.features)))

    def estimates(self, market: EvaluationMarket) -> Estimates:
        """Return what policies on θ̂ plan for in a market.

        Where the view shows what purchases bring, they read a customer's margin off the first one, as the trained
        policy can.
        """
        predicted = self.predicted_market(market)
        if COUNTS not in self.env.codec.shows:
            return Estimates(predicted, None)
        customers = replace(predicted.customers, margin=market.customers.margin)
        return Estimates(predicted, predicted.with_customers(customers))

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def certainty_equivalent_planner(self, market: EvaluationMarket) -> SeasonPolicy:
        """Plan with the parameters θ̂ that the customers' features predict, as if θ̂ were the true parameters."""
        estimates = self.estimates(market)
        return self.planner(estimates, self.evaluator.solve_bound(estimates.market))

    def planner(self, estimates: Estimates, bound: Bound) -> SeasonPolicy:
        """Plan at the dual prices of a market with the parameters θ̂."""
        start = self.start_belief() if self.env.codec.hides_state else None

        def plan(market: EvaluationMarket) -> BatchedPolicy:
            values = bound.values if market is estimates.market else values_at_prices(market, bound)
            return plan_at_prices(market, bound, self.information, start, values)

        return with_carried_money(estimates.policy(plan), estimates.market, bound)

    def bayes_planner(self, market: EvaluationMarket, bound: Bound) -> SeasonPolicy:
        """Plan on draws of θ given features, at the prices of the plan on θ̂; the season's counts weight the draws."""
        generator = self.evaluator.generator(POSTERIOR_DRAWS)
        theta = prior_draws(self.sample, market.features, self.posterior_draws, generator, ridge=self.ridge)
        contacts = market.contact_policy.contacts
        information = replace(self.information, season=(STATES, COUNTS))
        planner = BayesPlanner(
            theta, self.world, information, prices=bound.prices, scarcity=bound.scarcity, contacts=contacts
        )
        return with_carried_money(planner, market, bound)

    def with_calibrated_spend(self, planner: SeasonPolicy, tuning_market: EvaluationMarket) -> SeasonPolicy:
        """Correct a θ̂ planner's forecast of spend by what the same plan costs among training customers.

        θ̂ predicts parameters without bias, but not the spend of those whom a plan chooses by them.
        """
        factor = calibrate_spend(self.evaluator, self.certainty_equivalent_planner(tuning_market), tuning_market)
        return with_calibrated_spend(planner, factor)

    # ── rules of the week ───────────────────────────────────────────────────────────────────────────────────────────
    def knapsack(self, predicted: EvaluationMarket, *, fee: float, values: list[StateValues] | None) -> BatchedPolicy:
        """Return the week's exact knapsack on θ̂, with a fee a contact and the values V of later weeks, or none."""
        customers = predicted.customers
        if not self.env.codec.hides_state:
            return KnapsackPolicy(customers, self.world, self.information, values=values, fee=fee)
        view = BeliefView(customers, self.world, self.start_belief())
        return BeliefPlanner(customers, self.world, self.information, view, values=values, fee=fee)

    def ranking(self, predicted: EvaluationMarket, uplift: bool) -> BatchedPolicy:
        """Return one of the trade's two rankings, on θ̂."""
        customers = predicted.customers
        if not self.env.codec.hides_state:
            return ResponseRanking(customers, self.world, uplift=uplift, information=self.information)
        view = BeliefView(customers, self.world, self.start_belief())
        return BeliefRanking(customers, self.world, self.information, view, uplift=uplift)

    # ── the rows of a table ─────────────────────────────────────────────────────────────────────────────────────────
    def policies(self, market: EvaluationMarket, tuning_market: EvaluationMarket) -> dict[str, SeasonPolicy]:
        """Return the policies on θ̂, by the name of their row; the fee is tuned by what training customers bring."""
        estimates, tuning = self.estimates(market), self.estimates(tuning_market)
        bound = self.evaluator.solve_bound(estimates.market)
        planner = self.planner(estimates, bound)

        def myopic(estimates: Estimates, fee: float) -> SeasonPolicy:
            return estimates.policy(lambda market: self.knapsack(market, fee=fee, values=None))

        fee = self.evaluator.tune_fee(tuning_market, lambda fee: myopic(tuning, fee))
        policies = {
            "propensity on θ̂": self.ranking(estimates.market, uplift=False),
            "uplift rank on θ̂": estimates.policy(lambda market: self.ranking(market, uplift=True)),
            "myopic knapsack on θ̂": myopic(estimates, 0.0),
            FEE_TUNED: myopic(estimates, fee),
            "planning on θ̂": planner,
            "planning on θ̂, calibrated": self.with_calibrated_spend(planner, tuning_market),
        }
        if estimates.market.no_contact_values is not None:
            policies["one-step lookahead on θ̂"] = estimates.policy(
                lambda market: self.knapsack(market, fee=0.0, values=market.no_contact_values)
            )
        if self.posterior_draws and not self.env.codec.hides_state:
            policies["Bayes planning"] = self.bayes_planner(market, bound)
        return policies
