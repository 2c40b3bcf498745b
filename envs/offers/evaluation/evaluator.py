"""Policies of the offers world compared: at one budget, by common random numbers, against a provable upper bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.report import OffersReport, twin_members_report
from envs.offers.evaluation.season_evaluator import REGRESSION_CUSTOMERS, SeasonEvaluator
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season
from envs.offers.evaluation.spend_calibration import calibrate_spend
from envs.offers.planning.batching import no_contact_values_if_they_fit
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.calibrated_spend import with_calibrated_spend
from envs.offers.policies.rollover import planning_policy
from envs.offers.populations.base import Population, PopulationEnsemble, Sample
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.world.belief_observation import start_marginals
from envs.offers.world.customers import Customers
from rlcore.algorithm import NetworkAlgorithm


class OffersEvaluator(SeasonEvaluator[Bound, Population]):
    """Compare policies in the world of an OffersEnv; a score is a share of what is provably attainable."""

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: Population | None = None
    ) -> EvaluationMarket[Customers]:
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

    def members(self) -> Sequence[Population]:
        """Return the population under each member of its twin, if it has one."""
        population = self.env.population
        return population.members() if isinstance(population, PopulationEnsemble) else []

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def simulate_season(
        self, policy: SeasonPolicy, market: EvaluationMarket, u: Tensor, bound: Bound | None
    ) -> SeasonRecord:
        """Simulate the season of uniforms u [T, 6, N]."""
        return simulate_season(policy, market, u, bound)

    def myopic_policy(self, market: EvaluationMarket, fee: float) -> SeasonPolicy:
        """Return the week's exact knapsack, with a fee a contact."""
        return KnapsackPolicy(market.customers, self.world, "true θ", values=None, fee=fee)

    def _regression_sample(self) -> Sample:
        return self.env.population.draw(self.regression_customers, self._generator(REGRESSION_CUSTOMERS), "train")

    def certainty_equivalent_planner(self, market: EvaluationMarket, start: Tensor | None = None) -> SeasonPolicy:
        """Plan with the parameters θ̂ that the customers' features predict, as if θ̂ were the true parameters.

        With `start` [14] the states are filtered, as in `planning_policy`.
        """
        sample = self._regression_sample()
        customers = self.world.inhabit(ParameterRegression(sample, ridge=self.ridge)(market.features))
        values = no_contact_values_if_they_fit(customers, self.world)
        predicted = replace(market, customers=customers, no_contact_values=values)
        return planning_policy(predicted, self.solve_bound(predicted), "features", start)

    def with_calibrated_spend(
        self, planner: SeasonPolicy, tuning_market: EvaluationMarket, start: Tensor | None = None
    ) -> SeasonPolicy:
        """Correct a θ̂ planner's forecast of spend by what the same plan costs among training customers.

        θ̂ predicts parameters without bias, but not the spend of those whom a plan chooses by them.
        """
        factor = calibrate_spend(self, self.certainty_equivalent_planner(tuning_market, start), tuning_market)
        return with_calibrated_spend(planner, factor)

    def rival(self, market: EvaluationMarket) -> SeasonPolicy:
        """Return planning on θ̂, which knows the customers' features too, and filters states that the view hides."""
        return self.certainty_equivalent_planner(market, self._hidden_start())

    def _hidden_start(self) -> Tensor | None:
        """Return the marginals of the state at the start of a season, [14], where the view hides states."""
        return start_marginals(self._regression_sample().state) if self.env.codec.hides_state else None

    def planners(
        self, market: EvaluationMarket, bound: Bound, tuning_market: EvaluationMarket
    ) -> dict[str, Callable[[], SeasonPolicy]]:
        """Return how to make each policy that plans, by the name of its row; some of them solve a bound of their own.

        Where the view hides the state, the planners that filter the state are rows of their own.
        """
        on_estimates = cache(partial(self.certainty_equivalent_planner, market))

        def calibrated(start: Tensor | None = None) -> SeasonPolicy:
            return self.with_calibrated_spend(on_estimates(start), tuning_market, start)

        planners: dict[str, Callable[[], SeasonPolicy]] = {
            "planning on θ̂": partial(on_estimates, None),
            "planning on θ̂, calibrated": calibrated,
            "planning": partial(planning_policy, market, bound, "true θ"),
        }
        start = self._hidden_start()
        if start is not None:
            planners["planning on θ̂, states unseen"] = partial(on_estimates, start)
            planners["planning on θ̂, calibrated, states unseen"] = partial(calibrated, start)
            planners["planning, states unseen"] = partial(planning_policy, market, bound, "true θ", start)
        return planners

    def baselines(
        self, market: EvaluationMarket, bound: Bound, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return all policies that need no training, by the name of their row."""
        planners = self.planners(market, bound, tuning_market)
        return self.untrained_policies(market, tuning_market) | {name: make() for name, make in planners.items()}

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
            excluded_shares=market.contact_policy.shares(),
        )

    def _evaluate_frontier(self, algorithm: NetworkAlgorithm, name: str) -> list[dict]:
        """Compare the algorithm with the myopic knapsack at other budgets, each under its own bound."""
        return [
            {"share": share, **self.compare_with_myopic(algorithm, name, self.env.budget.with_share(share), None)}
            for share in self.frontier
        ]
