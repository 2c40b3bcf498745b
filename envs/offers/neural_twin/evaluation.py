"""Compare policies on a neural twin with each other and with no contact; the neural twin has no bound."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.evaluation.profit_decomposition import summarise_spending
from envs.offers.evaluation.season_evaluator import SeasonEvaluator
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.neural_twin.counterfactual import Counterfactual
from envs.offers.neural_twin.customers import NeuralCustomers
from envs.offers.neural_twin.ensemble import NeuralEnsemble
from envs.offers.planning.knapsack import allowed_increments, upper_hull
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import BatchedPolicy, SeasonPolicy
from envs.offers.policies.information import TRUTH, Information
from envs.offers.world.customers import CustomerState
from envs.offers.world.history import PassedWeek
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.ope.intervals import LEVEL, normal_half_width
from rlcore.runs.report import Report


class NeuralKnapsackPolicy(BatchedPolicy):
    """The exact knapsack of the week on the twin's own predictions; `fee` is charged a contact, money."""

    information = Information(TRUTH, ("history",), equations=True)

    def __init__(self, customers: NeuralCustomers, *, fee: float):
        self.customers, self.fee = customers, fee

    def batch_increments(self, rows, week, state, options):
        """Return the efficient increments of every customer."""
        value, spend = self.customers[rows].profit_and_spend(week, options.history)
        value[:, self.customers.world.catalogue.action_codec.contacts] -= self.fee
        return upper_hull(value.masked_fill(~options.action_mask, -torch.inf), spend)


def simulate_neural_season(policy: SeasonPolicy, market: EvaluationMarket[NeuralCustomers], u: Tensor) -> SeasonRecord:
    """Simulate the season of uniforms u [T, 6, N].

    `incremental_profit` is the expected profit less that of the same customers, never contacted. That of the last week
    includes the values of the tails. Spend on a customer is weighted by the probability that the customer is still
    there.
    """
    codec = market.world.catalogue.action_codec
    season = Counterfactual(market.customers, market.initial_state.status, realised=False)
    account = BudgetAccount(market.budget, market.stock, market.rollover, market.world.catalogue)
    memory = policy.view.start(market.initial_state)
    weeks = []
    for t in range(market.world.weeks):
        history, p_active = season.track
        hidden = torch.zeros_like(history.status)
        state = CustomerState(hidden, hidden, hidden, history.status)
        options = market.contact_policy.options(history, policy.view.subscribed(memory, state), memory)

        def redeems(action, t=t, history=history):
            week = market.customers.simulate_week(history, t, *codec.decode(action), u[t], draws_churn=False)
            return week.redeemed

        account.open(t)
        increments = allowed_increments(policy.increments(t, state, options), options.action_mask)
        increments = increments._replace(spend=increments.spend * p_active[:, None])
        action, price = market.budget_rule.allocate(account, increments, redeems)
        offer, channel = codec.decode(action)
        week, profit, no_contact_profit = season.simulate_week(t, offer, channel, u[t])
        next_state = state._replace(status=week.next_history.status)
        seen = week.seen(offer, channel, history.status)
        memory = policy.view.after(memory, PassedWeek(t, seen, state, next_state))
        weeks.append(
            {
                "action": action,
                "planned_action": hidden,
                "habit": hidden,
                "lost_profit": torch.zeros_like(profit),
                "incremental_profit": profit - no_contact_profit,
                "expected_spend": p_active * week.spend,
                "redeem_probability": week.redeem,
                "realised_spend": p_active * week.paid,
                "clearing_price": price,
            }
        )
    tail, no_contact_tail = season.tail_values()
    record = SeasonRecord(**{name: torch.stack([week[name] for week in weeks]) for name in weeks[0]})
    record.incremental_profit[-1] += tail - no_contact_tail
    return record


def total_with_interval(by_customer: Tensor) -> list[float]:
    """Return the sum over customers [N] and its interval, [total, low, high]."""
    total = by_customer.sum().item()
    half_width = len(by_customer) * normal_half_width(by_customer, LEVEL).item()
    return [total, total - half_width, total + half_width]


class NeuralTwinEvaluator(SeasonEvaluator[None, NeuralEnsemble]):
    """Compare policies on customers that a neural twin simulates; a score is the incremental profit a customer, money.

    The budget is the share's money among the same customers without the twin, which is the same money as in the true
    world.
    """

    def make_market(
        self, n: int, stream: int, split: str, budget: Budget, population: NeuralEnsemble | None = None
    ) -> EvaluationMarket[NeuralCustomers]:
        """Draw n customers of a split by a random stream; they respond as `population`, by default the whole twin."""
        market: EvaluationMarket = self.draw_market(n, stream, split, budget, self.env.population)
        twin = population or self.env.twin
        world = self.env.world.to(self.env.device, torch.float64)
        return replace(market, customers=twin.customers(market.features, world), no_contact_values=None)

    def solve_bound(self, market: EvaluationMarket) -> None:
        """Return None: there is no bound."""

    def simulate_season(
        self, policy: SeasonPolicy, market: EvaluationMarket[NeuralCustomers], u: Tensor, bound: Bound | None
    ) -> SeasonRecord:
        """Simulate the season of uniforms u [T, 6, N]."""
        return simulate_neural_season(policy, market, u)

    def myopic_policy(self, market: EvaluationMarket[NeuralCustomers], fee: float) -> NeuralKnapsackPolicy:
        """Return the week's exact knapsack, with a fee a contact."""
        return NeuralKnapsackPolicy(market.customers, fee=fee)

    def members(self) -> list[NeuralEnsemble]:
        """Return, for each member of the twin, the ensemble in which all customers respond as that member."""
        return self.env.twin.members()

    def summarise(self, records: list[SeasonRecord], market: EvaluationMarket, bound: None) -> dict:
        """Summarise one policy: incremental profit with its interval, in total and a customer, money and contacts."""
        profit = torch.stack([r.incremental_profit.sum(0) for r in records]).mean(0)
        total, low, high = total_with_interval(profit)
        return {
            "score": total / len(market),
            "score_ci": [low / len(market), high / len(market)],
            "incremental_profit": total,
            "profit_ci": [low, high],
            **summarise_spending(records, market),
        }

    def paired_difference(
        self, ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: None
    ) -> list[float]:
        """Return the difference of two incremental profits with its interval, [difference, low, high]."""
        by_season = [a.incremental_profit.sum(0) - b.incremental_profit.sum(0) for a, b in zip(ours, theirs)]
        return total_with_interval(torch.stack(by_season).mean(0))

    def evaluate(self, algorithm: NetworkAlgorithm | None, name: str) -> Report:
        """Compare the algorithm, as the row `name`, with all baselines on new customers, and under each member."""
        market, tuning_market = self.test_market(self.env.budget), self.tuning_market(self.env.budget)
        baselines = self.untrained_policies(market, tuning_market)
        rows = self.compare(algorithm, name, baselines, market, tuning_market, None)
        for row, key in product(rows.values(), ("group", "information")):
            row[key] = row[key].replace("true θ", "the twin")
        members = [] if algorithm is None else self.compare_under_members(algorithm, name)
        return self._report(rows, market, name, members)

    def _report(self, rows: dict[str, dict], market: EvaluationMarket, name: str, members: list[dict]) -> Report:
        caption = (
            "profit: expected, over never contacting anyone, a season and its later weeks, ± its 95 % interval; "
            "spend: expected spend / budget; breach: weeks whose realised spend exceeded the budget; "
            "a neural twin has no bound"
        )
        for k, row in enumerate(members):
            caption += (
                f"\nunder member {k + 1} alone: {name} {row[name]['incremental_profit']:,.0f}, myopic knapsack "
                f"{row['myopic knapsack']['incremental_profit']:,.0f}"
            )
        return Report(
            title=f"{len(market):,} new customers of a neural twin of {len(self.env.twin.networks)} members, "
            f"{self.seasons} seasons of {self.world.weeks} weeks, budget {market.budget.mean():,.2f} a week\n"
            f"money {market.budget_rule}",
            caption=caption,
            rows=rows,
            columns={
                "knows": lambda row: row["information"],
                "profit": lambda row: f"{row['incremental_profit']:,.0f}",
                "±": lambda row: f"{row['profit_ci'][1] - row['incremental_profit']:,.0f}",
                "spend": lambda row: f"{row['spend_ratio']:.3f}",
                "breach": lambda row: f"{row['weeks_breached']:.0%}",
                "contacts": lambda row: f"{row['contact_rate']:.1%}",
            },
            last=None,
            extra={"members": members},
            plots={},
            judged="incremental_profit",
            beside=("spend_ratio", "weeks_breached", "contact_rate"),
        )
