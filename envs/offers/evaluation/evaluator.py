"""How policies trained on the offers world are judged: at one budget, by common random numbers, against the bound."""
from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.evaluation.profit_decomposition import paired, summary
from rlcore.algorithm import Algorithm, ValuePolicy
from envs.offers.planning.batching import no_contact_values_if_they_fit
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.constraints.budget import Budget
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.evaluation.simulation import Market, Record, play
from envs.offers.policies.learned import Knapsack, Nothing, Policy, Priced, PricedValues, Random, Response, Valued
from envs.offers.evaluation.report import Report, under_members
from envs.offers.policies.rollover import Saving, Watched, carried, planner, price_path
from envs.offers.constraints.budget_rules import BudgetRule, ExpectedSpend


class OffersEvaluator:
    """Compare policies on customers that none was trained on.

    env has the world and the population. `others` customers (drawn from the training split) are for all that is fitted
    here: fee, price drift, θ̂. `frontier` lists further budget shares at which the learned policy is valued.
    """

    headline = "offers/score"

    def __init__(self, env, *, seed: int, customers: int, seasons: int, validation: int, others: int, tuning_seasons: int,
                 fees: list, estimator: int, ridge: float, grid: dict, rehearsals: int, frontier: list, bound: dict,
                 hard: BudgetRule | None):
        self.env, self.customers, self.seasons, self.validation, self.others = env, customers, seasons, validation, others
        self.tuning_seasons, self.fees, self.estimator, self.ridge = tuning_seasons, fees, estimator, ridge
        self.rehearsals, self.frontier, self.bound_options, self.seed = rehearsals, frontier, bound, seed
        self.hard = None if hard == env.budget.rule else hard  # the rule of the second table
        if self.hard:
            self.hard.check(env.world.catalogue)
        self.world = env.world.to(env.device, torch.float64)
        self.prices = torch.logspace(math.log10(grid["high"]), math.log10(grid["low"]), grid["points"], device=env.device)
        self._curve: tuple | None = None

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.env.device).manual_seed(self.seed * 1000 + stream)

    def _market(self, n: int, stream: int, split: str, budget: Budget, population=None) -> Market:
        population = population or self.env.population
        return Market.open(population.draw(n, self._generator(stream), split), self.world, budget, self.env.contact_rules)

    def bound(self, market: Market) -> Bound:
        """Solve the Lagrangian dual of a market."""
        return dual(market.customers, market.world, market.no_contact_values, market.start, market.budget, market.stock,
                    market.rollover, **self.bound_options,
                    contacts=market.contact_policy.contacts)

    def _play(self, policy: Policy, market: Market, bound: Bound | None, seasons: int, stream: int) -> list[Record]:
        generator = self._generator(stream)
        records = [play(policy, market, market.uniforms(generator), bound) for _ in range(seasons)]
        if isinstance(policy, Saving):
            records = [replace(r, price=policy.marginal(r.price)) for r in records]
        return records

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def learned(self, agent, market: Market, drift: float) -> Priced | Valued:
        """Deploy an agent in a market."""
        redeem = agent.auxiliary.predict if agent.auxiliary else None
        setting = (agent.policy, redeem, self.env.codec, market.customers, self.world, market.features)
        if not agent.policy.observes_price:
            return Valued(*setting)
        kind = PricedValues if isinstance(agent.policy, ValuePolicy) else Priced
        return kind(*setting, prices=self.prices, drift=drift)

    def deploy(self, agent, market: Market, other: Market) -> tuple[Policy, dict]:
        """Deploy an agent with what rehearsals on other customers told: the price's drift, the worth of carried money."""
        if not market.rollover:
            drift = self.rehearse(agent, other)
            return self.learned(agent, market, drift), {"drift": drift}
        drift, path = self.rehearse_saving(agent, other)
        return Saving(self.learned(agent, market, drift), carried(path)), {"drift": drift, "planned_prices": path.tolist()}

    def rehearse(self, agent, market: Market) -> float:
        """Find the drift of the price that an agent itself will cause, by playing seasons before."""
        low, high = self.env.drift_range
        if not agent.policy.observes_price:
            return 0.0
        drift = (low + high) / 2
        for _ in range(self.rehearsals):
            record, = self._play(self.learned(agent, market, drift), market, None, 1, 3)
            drift = self._drift(record.price)
        return drift

    def _drift(self, path: Tensor) -> float:
        """Return the drift a week of the logarithm of prices [T], within what an agent was trained on."""
        low, high = self.env.drift_range
        week = torch.arange(self.world.weeks, device=self.env.device, dtype=torch.float64)
        week = week - week.mean()
        path = path.double().clamp_min(self.prices[-1]).log()
        return ((week * path).sum() / week.square().sum()).clamp(low, high).item()

    def rehearse_saving(self, agent, market: Market) -> tuple[float, Tensor]:
        """Find the prices [T], never rising, at which an agent itself uses a budget that rolls over, and their drift.

        Seasons played before tell what it would buy in each week at every price. The first has the same money every
        week; the next buy all that is worth the prices found so far.
        """
        even = replace(market, budget=market.budget.mean().expand_as(market.budget), rollover=False)
        free = replace(market, budget=torch.full_like(market.budget, torch.inf), rule=ExpectedSpend())
        drift, path = self.rehearse(agent, even), None
        for _ in range(1 + self.rehearsals):
            policy = Watched(self.learned(agent, market, drift))
            self._play(policy if path is None else Saving(policy, path), even if path is None else free, None, 1, 3)
            path = price_path(policy.weeks, market.budget)
            drift = self._drift(path) if agent.policy.observes_price else 0.0
        return drift, path

    def myopic(self, market: Market, fee: float) -> Policy:
        """The week's exact knapsack, with a fee a contact."""
        return Knapsack(market.customers, self.world, "true θ", values=None, fee=fee)

    def fee(self, market: Market) -> float:
        """Find the fee a contact that makes the myopic knapsack earn most."""
        def gain(fee):
            return sum(r.gained.sum().item() for r in self._play(self.myopic(market, fee), market, None, self.tuning_seasons, 4))
        return max(self.fees, key=gain)

    def guess(self, market: Market) -> Policy:
        """Plan for the customers that the features suggest, as if they were these."""
        fitted = ParameterRegression(self.env.population.draw(self.estimator, self._generator(5), "train"), ridge=self.ridge)
        c = self.world.inhabit(fitted(market.features))
        return self.planner(replace(market, customers=c, no_contact_values=no_contact_values_if_they_fit(c, self.world)), None, "features")

    def planner(self, market: Market, bound: Bound | None, information: str) -> Policy:
        """Plan at the dual prices of a market."""
        return planner(market, bound or self.bound(market), information)

    def baselines(self, market: Market, bound: Bound, other: Market) -> dict[str, Policy]:
        """All policies that need no training."""
        c, w = market.customers, self.world
        return {
            "none": Nothing(), "random": Random(c, w, seed=self.seed), "propensity": Response(c, w, uplift=False),
            "uplift rank": Response(c, w, uplift=True), "myopic knapsack": self.myopic(market, 0.0),
            "myopic + fee": self.myopic(market, self.fee(other)), "planning on θ̂": self.guess(market),
            "planning": self.planner(market, bound, "true θ")}

    # ── what is asked of an evaluation ──────────────────────────────────────────────────────────────────────────────
    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Score a policy on a small validation market in the course of training."""
        if self._curve is None:
            market = self._market(self.validation, 1, "train", self.env.budget)
            self._curve = market, self.bound(market)
        market, bound = self._curve
        policy, _ = self.deploy(algorithm, market, market)
        result = summary(self._play(policy, market, bound, 1, 2), market, bound)
        return {f"offers/{name}": result[name] for name in ("score", "spend_ratio", "contact_rate")}

    def evaluate(self, agent: Algorithm | None, name: str) -> Report:
        """Compare all policies, and the agent where there is one, on new customers; then again under the hard rule."""
        market = self._market(self.customers, 11, "test", self.env.budget)
        other = self._market(self.others, 12, "train", self.env.budget)
        bound = self.bound(market)
        policies = self.baselines(market, bound, other)
        report = self._table(agent, name, policies, market, other, bound)
        if self.hard:
            market, other = (replace(x, rule=self.hard) for x in (market, other))
            report = replace(report, hard=self._table(agent, name, policies, market, other, bound))
        if agent is None:
            return report
        members = self._members(agent, name)
        return replace(report, frontier=self._frontier(agent, name),
                       members=under_members(name, members, self.customers) if members else None)

    def _table(self, agent, name: str, policies: dict[str, Policy], market: Market, other: Market, bound: Bound) -> Report:
        """Compare under the market's rule of money."""
        policies, told = dict(policies), {}
        if agent is not None:
            policies[name], told = self.deploy(agent, market, other)
            if not agent.policy.observes_price and market.rule is not self.hard:
                policies[f"{name}, no budget"] = self.learned(agent, market, 0.0).uncleared()
        records = {row: self._play(policy, market, bound, self.seasons, 13) for row, policy in policies.items()}
        rows = {row: {"information": policies[row].information, **summary(records[row], market, bound)} for row in policies}
        if agent is not None:
            rows[name]["ahead_of"] = {row: paired(records[name], records[row], market, bound) for row in rows if row != name}
            rows[name] |= told
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["score"]))
        return Report(rows, bound, len(market), self.seasons, [], str(market.rule), None, market.contact_policy.shares(), None)

    def _frontier(self, agent, name: str) -> list[dict]:
        """Value the agent and the planner at other budgets, each with its own bound."""
        return [{"share": share, **self._elsewhere(agent, name, self.env.budget.with_share(share), None)} for share in self.frontier]

    def _members(self, agent, name: str) -> list[dict]:
        """Value both under each member of the population's twin, where it has one, each with its own bound."""
        twin = self.env.population
        return [self._elsewhere(agent, name, self.env.budget, twin.under(k)) for k in range(len(getattr(twin, "members", ())))]

    def _elsewhere(self, agent, name: str, budget: Budget, population) -> dict:
        market = self._market(self.customers, 11, "test", budget, population)
        policy, _ = self.deploy(agent, market, self._market(self.others, 12, "train", budget, population))
        bound = self.bound(market)
        results = {row: summary(self._play(policy, market, bound, self.seasons, 13), market, bound)
                   for row, policy in (("myopic knapsack", self.myopic(market, 0.0)), (name, policy))}
        return {"weekly_budget": market.budget[0].item(), "bound": bound.gap,
                **{row: {key: result[key] for key in ("score", "score_ci", "incremental_profit", "spend_ratio")}
                   for row, result in results.items()}}
