"""Policies of the offers world compared: at one budget, by common random numbers, against a provable upper bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_rules import BudgetRule
from envs.offers.evaluation.calibration import calibrate_price_drift, calibrate_price_path
from envs.offers.evaluation.on_estimates import PoliciesOnEstimates
from envs.offers.evaluation.profit_decomposition import paired_difference, summarise_seasons
from envs.offers.evaluation.report import OffersReport, twin_members_report
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season
from envs.offers.evaluation.streams import CALIBRATION_SEASON, FEE_SEASONS, TEST_MARKET, TEST_SEASONS, TUNING_MARKET
from envs.offers.evaluation.two_policies import compare_with_myopic
from envs.offers.evaluation.validation import Validation
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy, NoContact, RandomContacts, ResponseRanking
from envs.offers.policies.information import ORACLE, by_group
from envs.offers.policies.learned import DeployedPolicy, ValueKnapsackPolicy, deploy_policy
from envs.offers.policies.rollover import carry_over_value, planning_policy
from envs.offers.policies.wrappers import ReservationPricePolicy
from envs.offers.populations.base import Population
from envs.offers.price_paths import price_grid_of
from envs.offers.twin.structural_model import TwinPopulation
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs.progress import tracked


class OffersEvaluator:
    """Compare policies on customers of an OffersEnv that no policy was trained on, by common random numbers.

    A score is a share of what is provably attainable, the bound, whose options are `bound`. The table has `customers`
    and `seasons`; the score during training has `validation` customers. With `paired_validation` it says how far the
    policy is ahead of planning on θ̂, customer by customer. `tuning_customers`, drawn from the training split, serve to
    fit the contact fee (one of `fees`, over `tuning_seasons`) and the price drift (over `calibration_seasons`).
    `price_grid` has the prices at which a learned policy is evaluated. `regression_customers`, `ridge` and
    `posterior_draws` are those of PoliciesOnEstimates. `frontier` lists further budget shares to compare at;
    `hard_budget_rule` is the budget rule of a second table, or None.
    """

    headline = "validation/score"

    def __init__(
        self,
        env,
        *,
        seed: int,
        customers: int,
        seasons: int,
        validation: int,
        paired_validation: bool,
        least_lead: float,
        tuning_customers: int,
        tuning_seasons: int,
        fees: list[float],
        regression_customers: int,
        ridge: float,
        posterior_draws: int,
        price_grid: dict,
        calibration_seasons: int,
        frontier: list[float],
        bound: dict,
        hard_budget_rule: BudgetRule | None,
    ):
        self.env, self.seed, self.least_lead = env, seed, least_lead
        self.customers, self.seasons = customers, seasons
        self.validation = Validation(self, validation, paired=paired_validation)
        self.tuning_customers, self.tuning_seasons, self.fees = tuning_customers, tuning_seasons, fees
        self.calibration_seasons, self.frontier, self.bound_options = calibration_seasons, frontier, bound
        self.hard_budget_rule = None if hard_budget_rule == env.budget.rule else hard_budget_rule
        if self.hard_budget_rule:
            self.hard_budget_rule.check(env.world.catalogue)
        self.world = env.world.to(env.device, torch.float64)
        self.on_estimates = PoliciesOnEstimates(
            self, regression_customers=regression_customers, ridge=ridge, posterior_draws=posterior_draws
        )
        self.prices = price_grid_of(price_grid, env.device)

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def generator(self, stream: int) -> torch.Generator:
        """Return the random numbers of a stream, from their start."""
        return torch.Generator(self.env.device).manual_seed(self.seed * 1000 + stream)

    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: Population | None = None
    ) -> EvaluationMarket:
        """Draw n customers of a split by a random stream; by default from the environment's population."""
        sample = (population or self.env.population).draw(n, self.generator(stream), split)
        return EvaluationMarket.from_sample(sample, self.world, budget, self.env.contact_rules)

    def test_market(self, budget: Budget, population: Population | None = None) -> EvaluationMarket:
        """Return the market of the table, of customers that no policy was trained on."""
        return self.make_market(self.customers, TEST_MARKET, "test", budget, population)

    def tuning_market(self, budget: Budget, population: Population | None = None) -> EvaluationMarket:
        """Return the market on which the evaluation fits fees, drifts and price paths."""
        return self.make_market(self.tuning_customers, TUNING_MARKET, "train", budget, population)

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

    # ── seasons ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def simulate(
        self, policy: SeasonPolicy, market: EvaluationMarket, bound: Bound | None, seasons: int, stream: int
    ) -> list[SeasonRecord]:
        """Simulate seasons by the random numbers of a stream."""
        generator = self.generator(stream)
        records = [simulate_season(policy, market, market.sample_uniforms(generator), bound) for _ in range(seasons)]
        if isinstance(policy, ReservationPricePolicy):
            records = [replace(r, clearing_price=policy.marginal_price(r.clearing_price)) for r in records]
        return records

    def simulate_calibration_season(self, policy: SeasonPolicy, market: EvaluationMarket) -> SeasonRecord:
        """Simulate the season on which price drifts and price paths are calibrated."""
        (record,) = self.simulate(policy, market, None, 1, CALIBRATION_SEASON)
        return record

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def deploy_at_drift(self, algorithm: NetworkAlgorithm, market: EvaluationMarket, drift: float) -> DeployedPolicy:
        """Deploy an algorithm's policy in a market; the policy observes the given drift of the price."""
        return deploy_policy(
            algorithm, self.env.codec, market.customers, self.world, market.features, prices=self.prices, drift=drift
        )

    def deploy(
        self, algorithm: NetworkAlgorithm, market: EvaluationMarket, tuning_market: EvaluationMarket
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

    def variants(
        self, algorithm: NetworkAlgorithm, name: str, market: EvaluationMarket, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return a policy that does not observe the price with a tuned fee and without a budget, by name of the row.

        Where money rolls over there is no row with a fee: prices of later weeks then hold contacts back too.
        """

        def in_market(market: EvaluationMarket) -> ValueKnapsackPolicy:
            deployed = self.deploy_at_drift(algorithm, market, 0.0)
            assert isinstance(deployed, ValueKnapsackPolicy)  # as all that do not observe the price
            return deployed

        policy = in_market(market)
        without_budget: dict[str, SeasonPolicy] = {f"{name}, no budget": policy.without_budget()}
        if market.rollover:
            return without_budget
        fee = self.tune_fee(tuning_market, in_market(tuning_market).with_fee)
        return {f"{name} + fee": policy.with_fee(fee), **without_budget}

    def tune_fee(self, market: EvaluationMarket, make_policy: Callable[[float], SeasonPolicy]) -> float:
        """Find the fee a contact with which a policy of the market's customers, made for a fee, earns most."""

        def incremental_profit(fee: float) -> float:
            records = self.simulate(make_policy(fee), market, None, self.tuning_seasons, FEE_SEASONS)
            return sum(r.incremental_profit.sum().item() for r in records)

        return max(self.fees, key=incremental_profit)

    def myopic_policy(self, market: EvaluationMarket, fee: float) -> SeasonPolicy:
        """Return the week's exact knapsack, with a fee a contact."""
        return KnapsackPolicy(market.customers, self.world, ORACLE, values=None, fee=fee)

    def baselines(
        self, market: EvaluationMarket, bound: Bound, tuning_market: EvaluationMarket
    ) -> dict[str, SeasonPolicy]:
        """Return all policies that need no training, by the name of their row.

        One-step lookahead is the knapsack on A⁰: it values an action as if nobody were contacted afterwards, which is
        one step of policy improvement on `none` (rollout: Bertsekas 2020). It has no row where the values of no contact
        do not fit in memory. Where the view hides the state, planning that knows θ and filters the state is a row of
        its own.
        """
        customers, world = market.customers, self.world
        fee = self.tune_fee(tuning_market, partial(self.myopic_policy, tuning_market))
        policies: dict[str, SeasonPolicy] = {
            "none": NoContact(),
            "random": RandomContacts(customers, world, seed=self.seed),
            "propensity": ResponseRanking(customers, world, uplift=False),
            "uplift rank": ResponseRanking(customers, world, uplift=True),
            "myopic knapsack": self.myopic_policy(market, 0.0),
            "myopic + fee": self.myopic_policy(market, fee),
            **self.on_estimates.policies(market, tuning_market),
            "planning": planning_policy(market, bound, ORACLE),
        }
        if market.no_contact_values is not None:
            policies["one-step lookahead"] = KnapsackPolicy(
                customers, world, ORACLE, values=market.no_contact_values, fee=0.0
            )
        if self.env.codec.hides_state:
            blind, start = replace(ORACLE, season=("beliefs",)), self.on_estimates.start_belief()
            policies["planning, states unseen"] = planning_policy(market, bound, blind, start)
        return policies

    # ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────
    def validate(self, algorithm: NetworkAlgorithm) -> dict[str, float]:
        """Score the algorithm's policy on a small validation market during training."""
        return self.validation.score(algorithm)

    def evaluate(self, algorithm: NetworkAlgorithm | None, name: str) -> OffersReport:
        """Compare the algorithm, as the row `name`, with all baselines on new customers; again under the hard rule.

        An algorithm is compared with the myopic knapsack at further budgets, too, and under each member of the
        population's twin, if it has one.
        """
        budget = self.env.budget
        market, tuning_market = self.test_market(budget), self.tuning_market(budget)
        bound = self.solve_bound(market)
        policies = self.baselines(market, bound, tuning_market)
        report = self.compare(algorithm, name, policies, market, tuning_market, bound)
        if self.hard_budget_rule:
            market = replace(market, budget_rule=self.hard_budget_rule)
            tuning_market = replace(tuning_market, budget_rule=self.hard_budget_rule)
            under_hard_rule = self.compare(algorithm, name, policies, market, tuning_market, bound)
            report = replace(report, under_hard_rule=under_hard_rule)
        if algorithm is None:
            return report
        population = self.env.population
        twins = population.members() if isinstance(population, TwinPopulation) else []
        members = [compare_with_myopic(self, algorithm, name, budget, member) for member in twins]
        frontier = [
            {"share": share, **compare_with_myopic(self, algorithm, name, budget.with_share(share), None)}
            for share in self.frontier
        ]
        on_members = twin_members_report(name, members, self.customers) if members else None
        return replace(report, frontier=frontier, members=on_members)

    def compare(
        self,
        algorithm: NetworkAlgorithm | None,
        name: str,
        baselines: dict[str, SeasonPolicy],
        market: EvaluationMarket,
        tuning_market: EvaluationMarket,
        bound: Bound,
    ) -> OffersReport:
        """Compare policies under the market's budget rule: a row a policy, by information and from the best down.

        `best_rival` of the algorithm is the best of the baselines of equal information, or None.
        """
        policies = dict(baselines)
        calibrated: dict[str, Any] = {}
        if algorithm is not None:
            policies[name], calibrated = self.deploy(algorithm, market, tuning_market)
            if not algorithm.policy.observes_price and market.budget_rule is not self.hard_budget_rule:
                policies |= self.variants(algorithm, name, market, tuning_market)
        records = {
            row: self.simulate(policy, market, bound, self.seasons, TEST_SEASONS)
            for row, policy in tracked(policies.items(), f"policies, {market.budget_rule}")
        }
        rows = {
            row: {**policy.information.to_metrics(), **summarise_seasons(records[row], market, bound)}
            for row, policy in policies.items()
        }
        if algorithm is not None:
            rows[name]["ahead_of"] = {
                row: paired_difference(records[name], records[row], market, bound) for row in rows if row != name
            }
            rows[name] |= calibrated
            ours = policies[name].information
            rivals = [row for row, policy in baselines.items() if policy.information.is_no_richer_than(ours)]
            rows[name]["best_rival"] = max(rivals, key=lambda row: rows[row]["score"], default=None)
        return OffersReport(
            rows=by_group(rows),
            bound=bound,
            customers=len(market),
            seasons=self.seasons,
            budget_rule=str(market.budget_rule),
            agent=None if algorithm is None else name,
            excluded_shares=market.contact_policy.shares(),
            least_lead=self.least_lead,
        )
