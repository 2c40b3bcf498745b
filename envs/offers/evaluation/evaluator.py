"""Compare policies of the offers world at one budget, by common random numbers, against a provable upper bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_rules import BudgetRule
from envs.offers.evaluation.price_calibration import calibrate_price_drift, calibrate_price_path
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.report import OffersReport, twin_members_report
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season
from envs.offers.planning.batching import no_contact_values_if_they_fit
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, NoContact, RandomContacts, ResponseRanking
from envs.offers.policies.learned import DeployedPolicy, deploy_policy
from envs.offers.policies.rollover import ReservationPricePolicy, carry_over_value, planning_policy
from envs.offers.populations.base import Population, PopulationEnsemble
from envs.offers.populations.parameter_regression import ParameterRegression
from rlcore.algorithm import Algorithm

# Random streams: each use has a stream of its own, which is the same for every policy.
VALIDATION_MARKET, VALIDATION_SEASON, CALIBRATION_SEASON, FEE_SEASONS, REGRESSION_CUSTOMERS = 1, 2, 3, 4, 5
TEST_MARKET, TUNING_MARKET, TEST_SEASONS = 11, 12, 13


class OffersEvaluator:
    """Compare policies in the world of an OffersEnv, on customers that no policy was trained on.

    The table has `customers` and `seasons`; the score during training has `validation` customers. `tuning_customers`,
    drawn from the training split, serve to fit the contact fee (one of `fees`, over `tuning_seasons`) and the price
    drift (over `calibration_seasons`). θ̂ is fitted on `regression_customers`, with a `ridge`. `price_grid` has the
    prices at which a learned policy is evaluated. `frontier` lists further budget shares to compare at.
    `hard_budget_rule` is the budget rule of a second table, or None. `bound` has the options of the dual.
    """

    headline = "offers/score"

    def __init__(
        self,
        env,
        *,
        seed: int,
        customers: int,
        seasons: int,
        validation: int,
        tuning_customers: int,
        tuning_seasons: int,
        fees: list[float],
        regression_customers: int,
        ridge: float,
        price_grid: dict,
        calibration_seasons: int,
        frontier: list[float],
        bound: dict,
        hard_budget_rule: BudgetRule | None,
    ):
        self.env, self.seed = env, seed
        self.customers, self.seasons, self.validation = customers, seasons, validation
        self.tuning_customers, self.tuning_seasons, self.fees = tuning_customers, tuning_seasons, fees
        self.regression_customers, self.ridge = regression_customers, ridge
        self.calibration_seasons, self.frontier, self.bound_options = calibration_seasons, frontier, bound
        self.hard_budget_rule = None if hard_budget_rule == env.budget.rule else hard_budget_rule
        if self.hard_budget_rule:
            self.hard_budget_rule.check(env.world.catalogue)
        self.world = env.world.to(env.device, torch.float64)
        low, high = math.log10(price_grid["low"]), math.log10(price_grid["high"])
        self.prices = torch.logspace(high, low, price_grid["points"], device=env.device)
        self._validation: tuple[EvaluationMarket, Bound | None] | None = None

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.env.device).manual_seed(self.seed * 1000 + stream)

    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: Population | None = None
    ) -> EvaluationMarket:
        """Draw n customers of a split by a random stream; by default from the environment's population."""
        population = population or self.env.population
        sample = population.draw(n, self._generator(stream), split)
        return EvaluationMarket.from_sample(sample, self.world, budget, self.env.contact_rules)

    def test_market(self, budget: Budget, population: Population | None = None) -> EvaluationMarket:
        """Return the market of the table, of customers that no policy was trained on."""
        return self.make_market(self.customers, TEST_MARKET, "test", budget, population)

    def tuning_market(self, budget: Budget, population: Population | None = None) -> EvaluationMarket:
        """Return the market on which the evaluation fits fees, drifts and price paths."""
        return self.make_market(self.tuning_customers, TUNING_MARKET, "train", budget, population)

    def solve_bound(self, market: EvaluationMarket) -> Bound | None:
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

    def simulate(
        self, policy: SeasonPolicy, market: EvaluationMarket, bound: Bound | None, seasons: int, stream: int
    ) -> list[SeasonRecord]:
        """Simulate seasons by the random numbers of a stream."""
        generator = self._generator(stream)
        records = []
        for _ in range(seasons):
            records.append(self.simulate_season(policy, market, market.sample_uniforms(generator), bound))
        if isinstance(policy, ReservationPricePolicy):
            records = [replace(r, clearing_price=policy.marginal_price(r.clearing_price)) for r in records]
        return records

    def simulate_season(
        self, policy: SeasonPolicy, market: EvaluationMarket, u: Tensor, bound: Bound | None
    ) -> SeasonRecord:
        """Simulate the season of uniforms u [T, 6, N]."""
        return simulate_season(policy, market, u, bound)

    def simulate_calibration_season(self, policy: SeasonPolicy, market: EvaluationMarket) -> SeasonRecord:
        """Simulate the season on which price drifts and price paths are calibrated."""
        (record,) = self.simulate(policy, market, None, 1, CALIBRATION_SEASON)
        return record

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def deploy_at_drift(self, algorithm: Algorithm, market: EvaluationMarket, drift: float) -> DeployedPolicy:
        """Deploy an algorithm's policy in a market; the policy observes the given drift of the price."""
        return deploy_policy(
            algorithm, self.env.codec, market.customers, self.world, market.features, prices=self.prices, drift=drift
        )

    def deploy(
        self, algorithm: Algorithm, market: EvaluationMarket, tuning_market: EvaluationMarket
    ) -> tuple[SeasonPolicy, dict]:
        """Deploy an algorithm's policy, calibrated on a tuning market; return the policy and the calibrated prices.

        Calibration finds the price's drift and, where money rolls over, the prices of all weeks.
        """
        if not market.rollover:
            drift = calibrate_price_drift(self, algorithm, tuning_market)
            return self.deploy_at_drift(algorithm, market, drift), {"drift": drift}
        drift, path = calibrate_price_path(self, algorithm, tuning_market)
        policy = ReservationPricePolicy(self.deploy_at_drift(algorithm, market, drift), carry_over_value(path))
        return policy, {"drift": drift, "planned_prices": path.tolist()}

    def myopic_policy(self, market: EvaluationMarket, fee: float) -> SeasonPolicy:
        """Return the week's exact knapsack, with a fee a contact."""
        return KnapsackPolicy(market.customers, self.world, "true θ", values=None, fee=fee)

    def tune_fee(self, market: EvaluationMarket) -> float:
        """Find the fee a contact with which the myopic knapsack earns most."""

        def incremental_profit(fee: float) -> float:
            records = self.simulate(self.myopic_policy(market, fee), market, None, self.tuning_seasons, FEE_SEASONS)
            return sum(r.incremental_profit.sum().item() for r in records)

        return max(self.fees, key=incremental_profit)

    def certainty_equivalent_planner(self, market: EvaluationMarket) -> SeasonPolicy:
        """Plan with the parameters θ̂ that the customers' features predict, as if θ̂ were the true parameters."""
        sample = self.env.population.draw(self.regression_customers, self._generator(REGRESSION_CUSTOMERS), "train")
        customers = self.world.inhabit(ParameterRegression(sample, ridge=self.ridge)(market.features))
        values = no_contact_values_if_they_fit(customers, self.world)
        predicted = replace(market, customers=customers, no_contact_values=values)
        return planning_policy(predicted, self.solve_bound(predicted), "features")

    def baselines(
        self, market: EvaluationMarket, bound: Bound | None, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return all policies that need no training, by the name of their row; without a bound, no planners."""
        customers, world = market.customers, self.world
        policies = {
            "none": NoContact(),
            "random": RandomContacts(customers, world, seed=self.seed),
            "propensity": ResponseRanking(customers, world, uplift=False),
            "uplift rank": ResponseRanking(customers, world, uplift=True),
            "myopic knapsack": self.myopic_policy(market, 0.0),
            "myopic + fee": self.myopic_policy(market, self.tune_fee(tuning_market)),
        }
        if bound is not None:
            policies["planning on θ̂"] = self.certainty_equivalent_planner(market)
            policies["planning"] = planning_policy(market, bound, "true θ")
        return policies

    # ── numbers of a policy ─────────────────────────────────────────────────────────────────────────────────────────
    def summarise(self, records: list[SeasonRecord], market: EvaluationMarket, bound: Bound | None) -> dict:
        """Summarise the seasons of one policy as a row of the table."""
        return summarise_seasons(records, market, bound)

    def paired_difference(
        self, ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: Bound | None
    ) -> list[float]:
        """Return the difference of two policies' scores, customer by customer, and its interval."""
        return paired_difference(ours, theirs, market, bound)

    # ── rlcore's Evaluator ──────────────────────────────────────────────────────────────────────────────────────────
    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Score the algorithm's policy on a small validation market during training."""
        if self._validation is None:
            market = self.make_market(self.validation, VALIDATION_MARKET, "train", self.env.budget)
            self._validation = market, self.solve_bound(market)
        market, bound = self._validation
        policy, _ = self.deploy(algorithm, market, market)
        summary = self.summarise(self.simulate(policy, market, bound, 1, VALIDATION_SEASON), market, bound)
        return {f"offers/{name}": summary[name] for name in ("score", "spend_ratio", "contact_rate")}

    def evaluate(self, algorithm: Algorithm | None, name: str) -> OffersReport:
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
        algorithm: Algorithm | None,
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

    def compare(
        self,
        algorithm: Algorithm | None,
        name: str,
        baselines: dict[str, SeasonPolicy],
        market: EvaluationMarket,
        tuning_market: EvaluationMarket,
        bound: Bound | None,
    ) -> dict[str, dict]:
        """Return a row of numbers a policy, from the lowest score to the highest."""
        policies, calibrated = dict(baselines), {}
        if algorithm is not None:
            policies[name], calibrated = self.deploy(algorithm, market, tuning_market)
            if not algorithm.policy.observes_price and market.budget_rule is not self.hard_budget_rule:
                policies[f"{name}, no budget"] = self.deploy_at_drift(algorithm, market, 0.0).without_budget()
        records = {
            row: self.simulate(policy, market, bound, self.seasons, TEST_SEASONS) for row, policy in policies.items()
        }
        rows = {
            row: {"information": policy.information, **self.summarise(records[row], market, bound)}
            for row, policy in policies.items()
        }
        if algorithm is not None:
            rows[name]["ahead_of"] = {
                row: self.paired_difference(records[name], records[row], market, bound) for row in rows if row != name
            }
            rows[name] |= calibrated
        return dict(sorted(rows.items(), key=lambda item: item[1]["score"]))

    def _evaluate_frontier(self, algorithm: Algorithm, name: str) -> list[dict]:
        """Compare the algorithm with the myopic knapsack at other budgets, each under its own bound."""
        return [
            {"share": share, **self._compare_with_myopic(algorithm, name, self.env.budget.with_share(share), None)}
            for share in self.frontier
        ]

    def compare_under_members(self, algorithm: Algorithm, name: str) -> list[dict]:
        """Compare both under each member of the population's twin, if it has one; every member has its own bound."""
        return [self._compare_with_myopic(algorithm, name, self.env.budget, member) for member in self.members()]

    def members(self) -> Sequence[Population]:
        """Return the population under each member of its twin, if it has one."""
        population = self.env.population
        return population.members() if isinstance(population, PopulationEnsemble) else []

    def _compare_with_myopic(
        self, algorithm: Algorithm, name: str, budget: Budget, population: Population | None
    ) -> dict:
        market = self.test_market(budget, population)
        policy, _ = self.deploy(algorithm, market, self.tuning_market(budget, population))
        bound = self.solve_bound(market)
        found = {"weekly_budget": market.budget[0].item(), **({"bound": bound.gap} if bound else {})}
        for row, compared in (("myopic knapsack", self.myopic_policy(market, 0.0)), (name, policy)):
            summary = self.summarise(self.simulate(compared, market, bound, self.seasons, TEST_SEASONS), market, bound)
            found[row] = {key: summary[key] for key in ("score", "score_ci", "incremental_profit", "spend_ratio")}
        return found
