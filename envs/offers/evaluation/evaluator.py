"""Policies of the offers world compared: at one budget, by common random numbers, against a provable upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.evaluation.calibration import calibrate_spend
from envs.offers.evaluation.estimates import Estimates
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.report import FEE_TUNED, OffersReport, twin_members_report
from envs.offers.evaluation.season_evaluator import POSTERIOR_DRAWS, REGRESSION_CUSTOMERS, SeasonEvaluator
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.planning.state_values import StateValues
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, ResponseRanking
from envs.offers.policies.bayes_planner import BayesPlanner
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefRanking, BeliefView
from envs.offers.policies.information import COUNTS, FEATURES, ORACLE, REGRESSION_LABELS, STATES, Information
from envs.offers.policies.rollover import plan_at_prices, planning_policy, values_at_prices, with_carried_money
from envs.offers.policies.wrappers import with_calibrated_spend
from envs.offers.populations.base import Population, Sample
from envs.offers.populations.parameter_regression import ParameterRegression, prior_draws
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.world.belief_observation import start_marginals
from rlcore.network_algorithm import NetworkAlgorithm


class OffersEvaluator(SeasonEvaluator[Bound, Population]):
    """Compare policies in the world of an OffersEnv; a score is a share of what is provably attainable."""

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: Population | None = None
    ) -> EvaluationMarket:
        """Draw n customers of a split by a random stream; by default from the environment's population."""
        return self.draw_market(n, stream, split, budget, population or self.env.population)

    def solve_bound(self, market: EvaluationMarket) -> Bound:
        """Solve the Lagrangian dual of a market."""
        return dual(
            market.customers,
            market.world,
            market.no_contact_values,
            market.initial_state,
            market.budget,
            market.stock,
            market.rollover,
            **self.bound_options,
            contacts=market.contact_policy.contacts,
        )

    def members(self) -> Sequence[TwinPopulation]:
        """Return the population under each member of its twin, if it has one."""
        population = self.env.population
        return population.members() if isinstance(population, TwinPopulation) else []

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def simulate_season(
        self, policy: SeasonPolicy, market: EvaluationMarket, u: Tensor, bound: Bound | None
    ) -> SeasonRecord:
        """Simulate the season of uniforms u [T, 6, N]."""
        return simulate_season(policy, market, u, bound)

    def myopic_policy(self, market: EvaluationMarket, fee: float) -> SeasonPolicy:
        """Return the week's exact knapsack, with a fee a contact."""
        return KnapsackPolicy(market.customers, self.world, ORACLE, values=None, fee=fee)

    @cached_property
    def _regression_sample(self) -> Sample:
        return self.env.population.draw(self.regression_customers, self._generator(REGRESSION_CUSTOMERS), "train")

    def predicted_market(self, market: EvaluationMarket) -> EvaluationMarket:
        """Return a market as a shop sees it: with the parameters θ̂ that its customers' features predict."""
        regression = ParameterRegression(self._regression_sample, ridge=self.ridge)
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

    @property
    def estimator_information(self) -> Information:
        """What policies on θ̂ are given: states where a view shows them, else beliefs filtered under θ̂."""
        season = ("beliefs",) if self.env.codec.hides_state else (STATES,)
        return Information(FEATURES, season, equations=True, training=(REGRESSION_LABELS,))

    def certainty_equivalent_planner(self, market: EvaluationMarket) -> SeasonPolicy:
        """Plan with the parameters θ̂ that the customers' features predict, as if θ̂ were the true parameters.

        Where the view hides the state, the planner filters it, as in `planning_policy`.
        """
        estimates = self.estimates(market)
        return self.planner_on_estimates(estimates, self.solve_bound(estimates.market))

    def planner_on_estimates(self, estimates: Estimates, bound: Bound) -> SeasonPolicy:
        """Plan at the dual prices of a market with the parameters θ̂."""
        start = self.start_belief() if self.env.codec.hides_state else None

        def plan(market: EvaluationMarket) -> SeasonPolicy:
            values = bound.values if market is estimates.market else values_at_prices(market, bound)
            return plan_at_prices(market, bound, self.estimator_information, start, values)

        return with_carried_money(estimates.policy(plan), estimates.market, bound)

    def bayes_planner(self, market: EvaluationMarket, bound: Bound) -> SeasonPolicy:
        """Plan on draws of θ given features, at the prices of the plan on θ̂; the season's counts weight the draws."""
        sample, generator = self._regression_sample, self._generator(POSTERIOR_DRAWS)
        theta = prior_draws(sample, market.features, self.posterior_draws, generator, ridge=self.ridge)
        contacts = market.contact_policy.contacts
        information = replace(self.estimator_information, season=(STATES, COUNTS))
        planner = BayesPlanner(
            theta, self.world, information, prices=bound.prices, scarcity=bound.scarcity, contacts=contacts
        )
        return with_carried_money(planner, market, bound)

    def start_belief(self) -> Tensor:
        """Return the marginals [14] of the state at the start of a season."""
        return start_marginals(self._regression_sample.state)

    def with_calibrated_spend(self, planner: SeasonPolicy, tuning_market: EvaluationMarket) -> SeasonPolicy:
        """Correct a θ̂ planner's forecast of spend by what the same plan costs among training customers.

        θ̂ predicts parameters without bias, but not the spend of those whom a plan chooses by them.
        """
        factor = calibrate_spend(self, self.certainty_equivalent_planner(tuning_market), tuning_market)
        return with_calibrated_spend(planner, factor)

    def knapsack_on_estimates(
        self, predicted: EvaluationMarket, *, fee: float, values: list[StateValues] | None
    ) -> SeasonPolicy:
        """Return the week's exact knapsack on θ̂, with a fee a contact and the values V of later weeks, or none."""
        customers, information = predicted.customers, self.estimator_information
        if not self.env.codec.hides_state:
            return KnapsackPolicy(customers, self.world, information, values=values, fee=fee)
        view = BeliefView(customers, self.world, self.start_belief())
        return BeliefPlanner(customers, self.world, information, view, values=values, fee=fee)

    def ranking_on_estimates(self, predicted: EvaluationMarket, uplift: bool) -> SeasonPolicy:
        """Return one of the trade's two rankings, on θ̂."""
        customers, information = predicted.customers, self.estimator_information
        if not self.env.codec.hides_state:
            return ResponseRanking(customers, self.world, uplift=uplift, information=information)
        view = BeliefView(customers, self.world, self.start_belief())
        return BeliefRanking(customers, self.world, information, view, uplift=uplift)

    def policies_on_estimates(
        self, market: EvaluationMarket, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return the policies on θ̂, by the name of their row; the fee is tuned by what training customers bring."""
        estimates, tuning = self.estimates(market), self.estimates(tuning_market)
        bound = self.solve_bound(estimates.market)
        planner = self.planner_on_estimates(estimates, bound)

        def myopic(estimates: Estimates, fee: float) -> SeasonPolicy:
            return estimates.policy(lambda market: self.knapsack_on_estimates(market, fee=fee, values=None))

        fee = self.tune_fee(tuning_market, lambda fee: myopic(tuning, fee))
        policies = {
            "propensity on θ̂": self.ranking_on_estimates(estimates.market, uplift=False),
            "uplift rank on θ̂": estimates.policy(lambda market: self.ranking_on_estimates(market, uplift=True)),
            "myopic knapsack on θ̂": myopic(estimates, 0.0),
            FEE_TUNED: myopic(estimates, fee),
            "planning on θ̂": planner,
            "planning on θ̂, calibrated": self.with_calibrated_spend(planner, tuning_market),
        }
        if estimates.market.no_contact_values is not None:
            policies["one-step lookahead on θ̂"] = estimates.policy(
                lambda market: self.knapsack_on_estimates(market, fee=0.0, values=market.no_contact_values)
            )
        if self.posterior_draws and not self.env.codec.hides_state:
            policies["Bayes planning"] = self.bayes_planner(market, bound)
        return policies

    def rival(self, market: EvaluationMarket) -> SeasonPolicy:
        """Return planning on θ̂, which knows the customers' features too."""
        return self.certainty_equivalent_planner(market)

    def baselines(
        self, market: EvaluationMarket, bound: Bound, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return all policies that need no training, by the name of their row.

        One-step lookahead is the knapsack on A⁰: it values an action as if nobody were contacted afterwards, which is
        one step of policy improvement on `none` (rollout: Bertsekas 2020). It has no row where the values of no contact
        do not fit in memory. Where the view hides the state, planning that knows θ and filters the state is a row of
        its own.
        """
        policies = {
            **self.untrained_policies(market, tuning_market),
            **self.policies_on_estimates(market, tuning_market),
            "planning": planning_policy(market, bound, ORACLE),
        }
        if market.no_contact_values is not None:
            policies["one-step lookahead"] = KnapsackPolicy(
                market.customers, self.world, ORACLE, values=market.no_contact_values, fee=0.0
            )
        if self.env.codec.hides_state:
            blind = replace(ORACLE, season=("beliefs",))
            policies["planning, states unseen"] = planning_policy(market, bound, blind, self.start_belief())
        return policies

    # ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────
    def summarise(self, records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> dict:
        """Summarise the seasons of one policy as a row of the table."""
        return summarise_seasons(records, market, bound)

    def paired_difference(
        self, ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: Bound
    ) -> list[float]:
        """Return the difference of two policies' scores, customer by customer, and its interval."""
        return paired_difference(ours, theirs, market, bound)

    def evaluate(self, algorithm: NetworkAlgorithm | None, name: str) -> OffersReport:
        """Compare the algorithm, as the row `name`, with all baselines on new customers; again under the hard rule."""
        market, tuning_market = self.test_market(self.env.budget), self.tuning_market(self.env.budget)
        bound = self.solve_bound(market)
        policies = self.baselines(market, bound, tuning_market)
        report = self._compare(algorithm, name, policies, market, tuning_market, bound)
        if self.hard_budget_rule:
            market = replace(market, budget_rule=self.hard_budget_rule)
            tuning_market = replace(tuning_market, budget_rule=self.hard_budget_rule)
            under_hard_rule = self._compare(algorithm, name, policies, market, tuning_market, bound)
            report = replace(report, under_hard_rule=under_hard_rule)
        if algorithm is None:
            return report
        members = self.compare_under_members(algorithm, name)
        return replace(
            report,
            frontier=self._evaluate_frontier(algorithm, name),
            members=twin_members_report(name, members, self.customers) if members else None,
        )

    def _compare(
        self,
        algorithm: NetworkAlgorithm | None,
        name: str,
        baselines: dict[str, SeasonPolicy],
        market: EvaluationMarket,
        tuning_market: EvaluationMarket,
        bound: Bound,
    ) -> OffersReport:
        """Compare policies under the market's budget rule."""
        return OffersReport(
            rows=self.compare(algorithm, name, baselines, market, tuning_market, bound),
            bound=bound,
            customers=len(market),
            seasons=self.seasons,
            budget_rule=str(market.budget_rule),
            agent=None if algorithm is None else name,
            excluded_shares=market.contact_policy.shares(),
            least_lead=self.least_lead,
        )

    def _evaluate_frontier(self, algorithm: NetworkAlgorithm, name: str) -> list[dict]:
        """Compare the algorithm with the myopic knapsack at other budgets, each under its own bound."""
        return [
            {"share": share, **self.compare_with_myopic(algorithm, name, self.env.budget.with_share(share), None)}
            for share in self.frontier
        ]
