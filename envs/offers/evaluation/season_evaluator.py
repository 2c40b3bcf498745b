"""What every comparison of policies for whole seasons does: markets, simulation, deployment, a row a policy."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_rules import BudgetRule
from envs.offers.evaluation.calibration import calibrate_price_drift, calibrate_price_path
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.evaluation.validation import Validation
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import NoContact, RandomContacts, ResponseRanking
from envs.offers.policies.information import by_group
from envs.offers.policies.learned import DeployedPolicy, ValueKnapsackPolicy, deploy_policy
from envs.offers.policies.rollover import carry_over_value
from envs.offers.policies.wrappers import ReservationPricePolicy
from envs.offers.populations.base import Population
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs.progress import tracked

BoundT = TypeVar("BoundT", bound=Bound | None)  # None where there is no bound
PopulationT = TypeVar("PopulationT")  # how the customers of a market may respond

# Random streams, beside those of validation.py: what is drawn for one use is drawn for no other, and is the same for
# every policy.
CALIBRATION_SEASON, FEE_SEASONS = 3, 4
REGRESSION_CUSTOMERS, POSTERIOR_DRAWS = 5, 6
TEST_MARKET, TUNING_MARKET, TEST_SEASONS = 11, 12, 13


class SeasonEvaluator(ABC, Generic[BoundT, PopulationT]):
    """Compare policies on customers of an OffersEnv that no policy was trained on, by common random numbers.

    The table has `customers` and `seasons`; the score during training has `validation` customers. With
    `paired_validation` it says how far the policy is ahead of a rival's, customer by customer. `tuning_customers`,
    drawn from the training split, serve to fit the contact fee (one of `fees`, over `tuning_seasons`) and the price
    drift (over `calibration_seasons`). `price_grid` has the prices at which a learned policy is evaluated. The rest
    serves a comparison with a bound, whose options are `bound`: θ̂ is fitted on `regression_customers`, with a `ridge`;
    `posterior_draws` of θ serve Bayes planning (0: left out);
    `frontier` lists further budget shares to compare at; `hard_budget_rule` is the budget rule of a second table, or
    None.
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
        self.env, self.seed = env, seed
        self.least_lead = least_lead
        self.customers, self.seasons = customers, seasons
        self.validation = Validation(self, validation, paired=paired_validation)
        self.tuning_customers, self.tuning_seasons, self.fees = tuning_customers, tuning_seasons, fees
        self.regression_customers, self.ridge = regression_customers, ridge
        self.posterior_draws = posterior_draws
        self.calibration_seasons, self.frontier, self.bound_options = calibration_seasons, frontier, bound
        self.hard_budget_rule = None if hard_budget_rule == env.budget.rule else hard_budget_rule
        if self.hard_budget_rule:
            self.hard_budget_rule.check(env.world.catalogue)
        self.world = env.world.to(env.device, torch.float64)
        if price_grid["low"] >= price_grid["high"]:
            raise ValueError(
                f"env.evaluation.price_grid.low: expected less than env.evaluation.price_grid.high, "
                f"{price_grid['high']}, got {price_grid['low']}"
            )
        low, high = math.log10(price_grid["low"]), math.log10(price_grid["high"])
        self.prices = torch.logspace(high, low, price_grid["points"], device=env.device)

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.env.device).manual_seed(self.seed * 1000 + stream)

    def draw_market(self, n: int, stream: int, split: str, budget: Budget, population: Population) -> EvaluationMarket:
        """Draw n customers of a split of a population by a random stream."""
        sample = population.draw(n, self._generator(stream), split)
        return EvaluationMarket.from_sample(sample, self.world, budget, self.env.contact_rules)

    @abstractmethod
    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: PopulationT | None = None
    ) -> EvaluationMarket:
        """Draw n customers of a split by a random stream, who respond as the environment's do or as `population`."""

    def test_market(self, budget: Budget, population: PopulationT | None = None) -> EvaluationMarket:
        """Return the market of the table, of customers that no policy was trained on."""
        return self.make_market(self.customers, TEST_MARKET, "test", budget, population)

    def tuning_market(self, budget: Budget, population: PopulationT | None = None) -> EvaluationMarket:
        """Return the market on which the evaluation fits fees, drifts and price paths."""
        return self.make_market(self.tuning_customers, TUNING_MARKET, "train", budget, population)

    @abstractmethod
    def solve_bound(self, market: EvaluationMarket) -> BoundT:
        """Return what the scores in a market are measured against."""

    @abstractmethod
    def members(self) -> Sequence[PopulationT]:
        """Return the population under each member of its twin, if it has one."""

    # ── seasons ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def simulate_season(
        self, policy: SeasonPolicy, market: EvaluationMarket, u: Tensor, bound: Bound | None
    ) -> SeasonRecord:
        """Simulate the season of uniforms u [T, 6, N]."""

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

    @abstractmethod
    def myopic_policy(self, market: EvaluationMarket, fee: float) -> SeasonPolicy:
        """Return the week's exact knapsack, with a fee a contact."""

    def tune_fee(self, market: EvaluationMarket, make_policy: Callable[[float], SeasonPolicy]) -> float:
        """Find the fee a contact with which a policy of the market's customers, made for a fee, earns most."""

        def incremental_profit(fee: float) -> float:
            records = self.simulate(make_policy(fee), market, None, self.tuning_seasons, FEE_SEASONS)
            return sum(r.incremental_profit.sum().item() for r in records)

        return max(self.fees, key=incremental_profit)

    def untrained_policies(self, market: EvaluationMarket, tuning_market: EvaluationMarket) -> dict[str, SeasonPolicy]:
        """Return the policies that need neither training nor a plan, by the name of their row."""
        customers, world = market.customers, self.world
        fee = self.tune_fee(tuning_market, partial(self.myopic_policy, tuning_market))
        return {
            "none": NoContact(),
            "random": RandomContacts(customers, world, seed=self.seed),
            "propensity": ResponseRanking(customers, world, uplift=False),
            "uplift rank": ResponseRanking(customers, world, uplift=True),
            "myopic knapsack": self.myopic_policy(market, 0.0),
            "myopic + fee": self.myopic_policy(market, fee),
        }

    # ── rows of the table ───────────────────────────────────────────────────────────────────────────────────────────
    @abstractmethod
    def summarise(self, records: list[SeasonRecord], market: EvaluationMarket, bound: BoundT) -> dict:
        """Summarise the seasons of one policy as a row of the table."""

    @abstractmethod
    def paired_difference(
        self, ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: BoundT
    ) -> list[float]:
        """Return the difference of two policies' scores, customer by customer, and its interval."""

    def compare(
        self,
        algorithm: NetworkAlgorithm | None,
        name: str,
        baselines: dict[str, SeasonPolicy],
        market: EvaluationMarket,
        tuning_market: EvaluationMarket,
        bound: BoundT,
    ) -> dict[str, dict]:
        """Return a row of numbers a policy, grouped by information, in each group from the highest score down.

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
            row: {**policy.information.to_metrics(), **self.summarise(records[row], market, bound)}
            for row, policy in policies.items()
        }
        if algorithm is not None:
            rows[name]["ahead_of"] = {
                row: self.paired_difference(records[name], records[row], market, bound) for row in rows if row != name
            }
            rows[name] |= calibrated
            ours = policies[name].information
            rivals = [row for row, policy in baselines.items() if policy.information.is_no_richer_than(ours)]
            rows[name]["best_rival"] = max(rivals, key=lambda row: rows[row]["score"], default=None)
        return by_group(rows)

    def compare_under_members(self, algorithm: NetworkAlgorithm, name: str) -> list[dict]:
        """Compare both under each member of the population's twin, if it has one; every member has its own bound."""
        return [self.compare_with_myopic(algorithm, name, self.env.budget, member) for member in self.members()]

    def compare_with_myopic(
        self, algorithm: NetworkAlgorithm, name: str, budget: Budget, population: PopulationT | None
    ) -> dict:
        """Compare the algorithm with the myopic knapsack under a budget, in a market of `population`."""
        market = self.test_market(budget, population)
        policy, _ = self.deploy(algorithm, market, self.tuning_market(budget, population))
        bound = self.solve_bound(market)
        found: dict[str, Any] = {"weekly_budget": market.budget[0].item()}
        if bound is not None:
            found["bound"] = bound.gap
        for row, compared in (("myopic knapsack", self.myopic_policy(market, 0.0)), (name, policy)):
            summary = self.summarise(self.simulate(compared, market, bound, self.seasons, TEST_SEASONS), market, bound)
            found[row] = {key: summary[key] for key in ("score", "score_ci", "incremental_profit", "spend_ratio")}
        return found

    def validate(self, algorithm: NetworkAlgorithm) -> dict[str, float]:
        """Score the algorithm's policy on a small validation market during training."""
        return self.validation.score(algorithm)

    def rival(self, market: EvaluationMarket) -> SeasonPolicy | None:
        """Return the policy that validation is paired with, of equal information, or None where there is none."""
        return None
