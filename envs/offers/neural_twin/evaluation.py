"""Policies judged on a neural twin: no dynamic program and no bound, so against each other and against nothing."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.planning.knapsack import allowed_increments, upper_hull
from envs.offers.evaluation.evaluator import OffersEvaluator
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.neural_twin.counterfactual import Counterfactual
from envs.offers.neural_twin.customers import NeuralCustomers
from envs.offers.policies.base import BatchedPolicy, SeasonPolicy
from envs.offers.policies.baselines import NoContact, RandomContacts, ResponseRanking
from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.world.customers import CustomerState
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.algorithm import Algorithm
from rlcore.report import Report


class Myopic(BatchedPolicy):
    """The exact knapsack of the week on the twin's own predictions; `fee` is charged a contact."""

    information = "the twin"

    def __init__(self, customers: NeuralCustomers, *, fee: float):
        self.customers, self.fee = customers, fee

    def batch_increments(self, rows, week, state, options):
        """Return every customer's efficient steps."""
        value, spend = self.customers[rows].profit_and_spend(week, options.history)
        value[:, self.customers.world.catalogue.action_codec.contacts] -= self.fee
        return upper_hull(value.masked_fill(~options.action_mask, -torch.inf), spend)


def play(policy: SeasonPolicy, market: EvaluationMarket, u: Tensor) -> SeasonRecord:
    """Play the season that uniforms u [T, 6, N] make.

    `incremental_profit` is the profit expected of customers less what they would bring if nobody were contacted; the last week's has the tails'. What is
    spent on a customer counts by the probability that the customer is still there.
    """
    season, weeks, codec = Counterfactual(market.customers, market.initial_state.status, False), [], market.world.catalogue.action_codec
    account = BudgetAccount(market.budget, market.stock, market.rollover, market.world.catalogue)
    for t in range(market.world.weeks):
        history, p_active = season.track
        zeros = torch.zeros_like(history.status)
        options = market.contact_policy.options(history)
        steps = allowed_increments(policy.increments(t, CustomerState(zeros, zeros, zeros, history.status), options), options.action_mask)

        def redeems(action):
            return market.customers.simulate_week(history, t, *codec.decode(action), u[t], draws_churn=False).redeemed
        account.open(t)
        action, price = market.budget_rule.allocate(account, steps._replace(spend=steps.spend * p_active[:, None]), redeems)
        simulated, profit, no_contact_profit = season.simulate_week(t, *codec.decode(action), u[t])
        weeks.append({
            "action": action,
            "planned_action": zeros,
            "habit": zeros,
            "lost_profit": torch.zeros_like(profit),
            "incremental_profit": profit - no_contact_profit,
            "expected_spend": p_active * simulated.spend,
            "redeem_probability": simulated.redeem,
            "realised_spend": p_active * simulated.paid,
            "clearing_price": price})
    tail, no_contact_tail = season.tail_values()
    record = SeasonRecord(**{name: torch.stack([week[name] for week in weeks]) for name in weeks[0]})
    record.incremental_profit[-1] += tail - no_contact_tail
    return record


def summary(records: list[SeasonRecord], market: EvaluationMarket) -> dict:
    """Incremental profit of a season with its interval over customers, money and contacts of one policy."""
    each = torch.stack([r.incremental_profit.sum(0) for r in records]).mean(0)
    total, half = each.sum().item(), len(each) * normal_half_width(each, LEVEL).item()
    spend, paid = (torch.stack([getattr(r, name).sum(1) for r in records]) for name in ("expected_spend", "realised_spend"))
    return {"incremental_profit": total, "profit_ci": [total - half, total + half],
            "spend_ratio": (spend.sum(1).mean() / market.budget.sum().clamp_min(1e-12)).item(),
            "weeks_breached": (paid > market.budget).double().mean().item(),
            "contact_rate": torch.stack([(r.action > 0).double().mean() for r in records]).mean().item(),
            "prices": torch.stack([r.clearing_price for r in records]).mean(0).tolist()}


class NeuralTwinEvaluator(OffersEvaluator):
    """The comparison on customers that respond as a neural twin says. The budget is what its share comes to among customers as
    the population has them without the twin: a number of money, the same as in the true world."""

    def make_market(self, n, stream, split, budget, population=None):
        market = super().make_market(n, stream, split, budget)
        twin = population or self.env.twin
        world = self.env.world.to(self.env.device, torch.float64)
        return replace(market, customers=twin.customers(market.features, world), no_contact_values=None)

    def solve_bound(self, market):
        """There is none."""
        return None

    def simulate(self, policy, market, bound, seasons, stream):
        generator = self._generator(stream)
        return [play(policy, market, market.sample_uniforms(generator)) for _ in range(seasons)]

    def myopic_policy(self, market, fee):
        """The week's knapsack, with a fee a contact."""
        return Myopic(market.customers, fee=fee)

    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Value an algorithm's policy on a small validation market: its profit over nothing, a customer."""
        if self._validation is None:
            self._validation = self.make_market(self.validation, 1, "train", self.env.budget), None
        market, _ = self._validation
        policy, _ = self.deploy(algorithm, market, market)
        result = summary(self.simulate(policy, market, None, 1, 2), market)
        return {"offers/score": result["incremental_profit"] / len(market),
                **{f"offers/{name}": result[name] for name in ("spend_ratio", "contact_rate")}}

    def evaluate(self, algorithm: Algorithm | None, name: str) -> Report:
        """Compare all policies, and the algorithm where there is one, on new customers; and both under each member."""
        market = self.make_market(self.customers, 11, "test", self.env.budget)
        other = self.make_market(self.tuning_customers, 12, "train", self.env.budget)
        c, w = market.customers, self.world
        policies, told = {"none": NoContact(), "random": RandomContacts(c, w, seed=self.seed), "propensity": ResponseRanking(c, w, uplift=False),
                          "uplift rank": ResponseRanking(c, w, uplift=True), "myopic knapsack": self.myopic_policy(market, 0.0),
                          "myopic + fee": self.myopic_policy(market, self.tune_fee(other))}, {}
        if algorithm is not None:
            policies[name], told = self.deploy(algorithm, market, other)
        records = {row: self.simulate(policy, market, None, self.seasons, 13) for row, policy in policies.items()}
        knows = {row: policy.information.replace("true θ", "the twin") for row, policy in policies.items()}
        rows = {row: {"information": knows[row], **summary(records[row], market)} for row in policies}
        members = self._evaluate_under_members(algorithm, name) if algorithm is not None else []
        if algorithm is not None:
            rows[name] |= told | {"ahead_of": {row: ahead(records[name], records[row]) for row in rows if row != name},
                                  "members": members}
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["incremental_profit"]))
        caption = ("profit: expected over never contacting, a season and what it leaves, ± its 95 % interval; spend: expected, of "
                   "the budget; breach: weeks whose realised spend passed the budget; no bound: a neural twin has none")
        caption += "".join(f"\nunder member {k + 1} alone: {name} {row[name]['incremental_profit']:,.0f}, myopic knapsack "
                           f"{row['myopic knapsack']['incremental_profit']:,.0f}" for k, row in enumerate(members))
        columns = {"knows": lambda row: row["information"], "profit": lambda row: f"{row['incremental_profit']:,.0f}",
                   "±": lambda row: f"{row['profit_ci'][1] - row['incremental_profit']:,.0f}",
                   "spend": lambda row: f"{row['spend_ratio']:.3f}", "breach": lambda row: f"{row['weeks_breached']:.0%}",
                   "contacts": lambda row: f"{row['contact_rate']:.1%}"}
        return Report(f"{len(market):,} new customers of a neural twin of {len(self.env.twin.networks)} members, {self.seasons} "
                      f"seasons of {w.weeks} weeks, budget {market.budget.mean():,.2f} a week\nmoney {market.budget_rule}", caption, rows,
                      columns, None, {"members": members}, {}, "incremental_profit")

    def _evaluate_under_members(self, algorithm, name: str) -> list[dict]:
        return [self._compare_with_myopic(algorithm, name, self.env.budget, population)
                for population in self.env.twin.members()]

    def _compare_with_myopic(self, algorithm, name, budget, population) -> dict:
        market = self.make_market(self.customers, 11, "test", budget, population)
        policy, _ = self.deploy(algorithm, market, self.make_market(self.tuning_customers, 12, "train", budget, population))
        return {row: summary(self.simulate(policy, market, None, self.seasons, 13), market)
                for row, policy in (("myopic knapsack", self.myopic_policy(market, 0.0)), (name, policy))}


def ahead(ours: list[SeasonRecord], theirs: list[SeasonRecord]) -> list[float]:
    """Difference of two incremental profits with its interval, customer by customer under the same random numbers."""
    each = torch.stack([a.incremental_profit.sum(0) - b.incremental_profit.sum(0) for a, b in zip(ours, theirs)]).mean(0)
    half = len(each) * normal_half_width(each, LEVEL).item()
    return [each.sum().item(), each.sum().item() - half, each.sum().item() + half]
