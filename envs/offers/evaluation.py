"""How policies trained on the offers world are judged: at one budget, by common random numbers, against the bound."""
from __future__ import annotations

import math

import torch

from envs.offers.account import paired, summary
from envs.offers.bound import Bound, dual
from envs.offers.budget import Budget
from envs.offers.estimate import Estimator
from envs.offers.market import Market, Record, play
from envs.offers.policies import Knapsack, Nothing, Policy, Priced, Random, Response, Valued
from envs.offers.program import organic
from envs.offers.report import Report


class Evaluation:
    """Compare policies on customers that none was trained on.

    env has the world and the population. `others` customers (drawn from the training split) are for all that is fitted
    here: fee, price drift, θ̂. `frontier` lists further budget shares at which the learned policy is valued.
    """

    def __init__(self, env, *, seed: int, customers: int, seasons: int, validation: int, others: int, tuning_seasons: int,
                 fees: list, estimator: int, ridge: float, grid: dict, rehearsals: int, frontier: list, bound: dict):
        self.env, self.customers, self.seasons, self.validation, self.others = env, customers, seasons, validation, others
        self.tuning_seasons, self.fees, self.estimator, self.ridge = tuning_seasons, fees, estimator, ridge
        self.rehearsals, self.frontier, self.bound_options, self.seed = rehearsals, frontier, bound, seed
        self.world = env.world.to(env.device, torch.float64)
        self.prices = torch.logspace(math.log10(grid["high"]), math.log10(grid["low"]), grid["points"], device=env.device)
        self._curve: tuple | None = None

    # ── markets ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.env.device).manual_seed(self.seed * 1000 + stream)

    def _market(self, n: int, stream: int, split: str, budget: Budget) -> Market:
        return Market.open(self.env.population.draw(n, self._generator(stream), split), self.world, budget)

    def bound(self, market: Market) -> Bound:
        """Solve the Lagrangian dual of a market."""
        return dual(market.customers, market.world, market.organic, market.start, market.budget, **self.bound_options)

    def _play(self, policy: Policy, market: Market, bound: Bound | None, seasons: int, stream: int) -> list[Record]:
        generator = self._generator(stream)
        return [play(policy, market, market.uniforms(generator), bound) for _ in range(seasons)]

    # ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────
    def learned(self, agent, market: Market, drift: float) -> Priced | Valued:
        """Deploy an agent in a market."""
        setting = (agent.spend.redeem if agent.spend else None, self.env.observe, market.customers, self.world, market.features)
        if agent.valued:
            return Valued(agent.values, *setting)
        return Priced(agent.logits, *setting, prices=self.prices, drift=drift)

    def rehearse(self, agent, market: Market) -> float:
        """Find the drift of the price that an agent itself will cause, by playing seasons before."""
        low, high = self.env.drift_range
        if agent.valued:  # sees no price
            return 0.0
        drift, week = (low + high) / 2, torch.arange(self.world.weeks, device=self.env.device, dtype=torch.float64)
        week = week - week.mean()
        for _ in range(self.rehearsals):
            record, = self._play(self.learned(agent, market, drift), market, None, 1, 3)
            path = record.price.double().clamp_min(self.prices[-1]).log()
            drift = ((week * path).sum() / week.square().sum()).clamp(low, high).item()
        return drift

    def fee(self, market: Market) -> float:
        """Find the fee a contact that makes the myopic knapsack earn most."""
        def gain(fee):
            policy = Knapsack(market.customers, self.world, "", values=None, fee=fee)
            return sum(r.gained.sum().item() for r in self._play(policy, market, None, self.tuning_seasons, 4))
        return max(self.fees, key=gain)

    def guess(self, market: Market) -> Knapsack:
        """Plan for the customers that the features suggest, as if they were these."""
        fitted = Estimator(self.env.population.draw(self.estimator, self._generator(5), "train"), ridge=self.ridge)
        c = self.world.inhabit(fitted(market.features))
        guessed = Market(c, self.world, market.features, market.start, organic(c, self.world), market.budget)
        return Knapsack(c, self.world, "features", values=self.bound(guessed).values, fee=0.0)

    def baselines(self, market: Market, bound: Bound, other: Market) -> dict[str, Policy]:
        """All policies that need no training."""
        c, w = market.customers, self.world
        fee = self.fee(other)
        return {
            "none": Nothing(), "random": Random(c, w, seed=self.seed), "propensity": Response(c, w, uplift=False),
            "uplift rank": Response(c, w, uplift=True), "myopic knapsack": Knapsack(c, w, "true θ", values=None, fee=0.0),
            "myopic + fee": Knapsack(c, w, "true θ", values=None, fee=fee), "planning on θ̂": self.guess(market),
            "planning": Knapsack(c, w, "true θ", values=bound.values, fee=0.0)}

    # ── what is asked of an evaluation ──────────────────────────────────────────────────────────────────────────────
    def score(self, agent) -> dict[str, float]:
        """Value an agent on a small validation market in the course of training."""
        if self._curve is None:
            market = self._market(self.validation, 1, "train", self.env.budget)
            self._curve = market, self.bound(market)
        market, bound = self._curve
        drift = self.rehearse(agent, market)
        result = summary(self._play(self.learned(agent, market, drift), market, bound, 1, 2), market, bound)
        return {f"offers/{name}": result[name] for name in ("score", "spend_ratio", "contact_rate")}

    def run(self, agent, name: str) -> Report:
        """Compare all policies, and the agent where there is one, on new customers."""
        market = self._market(self.customers, 11, "test", self.env.budget)
        other = self._market(self.others, 12, "train", self.env.budget)
        bound = self.bound(market)
        policies = self.baselines(market, bound, other)
        drift = None
        if agent is not None:
            drift = self.rehearse(agent, other)
            policies[name] = self.learned(agent, market, drift)
            if agent.valued:
                policies[f"{name}, no budget"] = policies[name].uncleared()
        records = {row: self._play(policy, market, bound, self.seasons, 13) for row, policy in policies.items()}
        rows = {row: {"information": policies[row].information, **summary(records[row], market, bound)} for row in policies}
        if agent is not None:
            rows[name]["ahead_of"] = {row: paired(records[name], records[row], market, bound) for row in rows if row != name}
            rows[name]["drift"] = drift
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["score"]))
        return Report(rows, bound, len(market), self.seasons, self._frontier(agent, name) if agent is not None else [])

    def _frontier(self, agent, name: str) -> list[dict]:
        """Value the agent and the planner at other budgets, each with its own bound."""
        points = []
        for share in self.frontier:
            budget = Budget(share=share, weekly=None)
            market = self._market(self.customers, 11, "test", budget)
            drift = self.rehearse(agent, self._market(self.others, 12, "train", budget))
            bound = self.bound(market)
            myopic = Knapsack(market.customers, self.world, "true θ", values=None, fee=0.0)
            results = {row: summary(self._play(policy, market, bound, self.seasons, 13), market, bound)
                       for row, policy in (("myopic knapsack", myopic), (name, self.learned(agent, market, drift)))}
            points.append({"share": share, "weekly_budget": market.budget[0].item(), "bound": bound.gap,
                           **{row: {key: result[key] for key in ("score", "score_ci", "incremental_profit", "spend_ratio")}
                              for row, result in results.items()}})
        return points
