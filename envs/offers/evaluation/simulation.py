"""A market under a weekly budget, and the simulation of a season with every decision scored against the bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.constraints.budget_rules import BudgetRule
from envs.offers.constraints.contact_policy import ContactPolicy
from envs.offers.constraints.contact_rules import ContactRules
from envs.offers.planning.batching import batches, no_contact_values_if_they_fit
from envs.offers.planning.dynamic_program import action_values, best_plan
from envs.offers.planning.knapsack import allowed_increments
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.planning.state_values import StateValues, VisitedStates
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.policies.base import SeasonPolicy, pair_table
from envs.offers.populations.base import Sample
from envs.offers.rewards import cost_of_silence
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, Customers, CustomerState, World
from envs.offers.world.history import History, PassedWeek, SeenWeek
from envs.offers.world.response import outcome
from envs.offers.world.transition import transition


@dataclass(frozen=True)
class EvaluationMarket:
    """N customers at the start of a season of T weeks, and the money and stock that a policy may use on them."""

    customers: Customers
    world: World
    features: Tensor  # [N, F]
    initial_state: CustomerState
    no_contact_values: list[StateValues] | None  # V⁰ of weeks 1..T+1; None where the tables would be too large
    budget: Tensor  # money of each week, [T]
    stock: Tensor  # pieces of each offer in the season, [O+1]
    rollover: bool
    budget_rule: BudgetRule
    contact_policy: ContactPolicy

    @staticmethod
    def from_sample(sample: Sample, world: World, budget: Budget, contact_rules: ContactRules) -> EvaluationMarket:
        """Place a drawn sample in a world, under a budget and contact rules."""
        customers, contact_policy = world.inhabit(sample.customers), contact_rules.policy(sample)
        values = no_contact_values_if_they_fit(customers, world)
        return EvaluationMarket(
            customers=customers,
            world=world,
            features=sample.features,
            initial_state=sample.state,
            no_contact_values=values,
            budget=budget.weekly_amounts(customers, world, values, sample.state, contact_policy.contacts),
            stock=budget.pieces(len(customers), world.catalogue),
            rollover=budget.rollover,
            budget_rule=budget.rule,
            contact_policy=contact_policy,
        )

    def __len__(self) -> int:
        return len(self.customers)

    def with_customers(self, customers: Customers, world: World | None = None) -> EvaluationMarket:
        """Return the market with other parameters of its customers, or in another world; V⁰ goes with both."""
        world = world or self.world
        values = no_contact_values_if_they_fit(customers, world)
        return replace(self, customers=customers, world=world, no_contact_values=values)

    def sample_uniforms(self, generator: torch.Generator) -> Tensor:
        """Draw the uniforms of one season, [T, 6, N]."""
        return torch.rand(
            self.world.weeks, UNIFORMS, len(self), generator=generator, device=generator.device, dtype=self.budget.dtype
        )


@dataclass(frozen=True)
class SeasonRecord:
    """One season of one policy: [T, N] by week and customer, money in the catalogue's currency."""

    action: Tensor  # flat action sent
    planned_action: Tensor  # flat action that the bound's plan would have sent in the same state
    habit: Tensor  # before the week
    lost_profit: Tensor  # ρ, against the bound's plan at its prices
    incremental_profit: Tensor  # A⁰, the expected gain over never contacting again
    expected_spend: Tensor
    redeem_probability: Tensor
    realised_spend: Tensor
    clearing_price: Tensor  # of each week, [T]


class DecisionScores(NamedTuple):
    """Some customers' decisions compared with the bound's plan, [T, B] each: fields of SeasonRecord."""

    planned_action: Tensor
    lost_profit: Tensor
    incremental_profit: Tensor


def simulate_season(
    policy: SeasonPolicy, market: EvaluationMarket, u: Tensor, bound: Bound | None = None
) -> SeasonRecord:
    """Simulate the season of uniforms u [T, 6, N]; without a bound, lost profit is 0 and the plan sends nothing.

    A pair that the contact rules do not allow is not sent, whatever the policy requests. The bound's plan ignores
    contact caps, so the cost of caps counts as lost profit.
    """
    customers, world, state = market.customers, market.world, market.initial_state
    codec = world.catalogue.action_codec
    history, memory = History.start(state.status, world.season.dtype), policy.view.start(state)
    account = BudgetAccount(market.budget, market.stock, market.rollover, world.catalogue)
    states, weeks = [], []
    for t in range(world.weeks):
        options = market.contact_policy.options(history, policy.view.subscribed(memory, state), memory)
        redeems = partial(who_redeems, customers, world, t, state, u[t, 0])
        # 1. Send the increments that the budget pays for.
        account.open(t)
        increments = allowed_increments(policy.increments(t, state, options), options.action_mask)
        action, price = market.budget_rule.allocate(account, increments, redeems)
        # 2. Simulate what customers do.
        offer, channel = codec.decode(action)
        next_state, bought, redeemed, expected = transition(customers, world, t, state, offer, channel, u[t])
        weeks.append(
            {
                "action": action,
                "expected_spend": expected.spend + cost_of_silence(world.catalogue, state, offer, channel),
                "redeem_probability": expected.redeem,
                "realised_spend": world.catalogue.spend(offer, channel, redeemed),
                "clearing_price": price,
            }
        )
        states.append(state)
        seen = SeenWeek.between(
            state.status,
            next_state.status,
            offer=offer,
            channel=channel,
            bought=bought,
            redeemed=redeemed,
            margin=customers.margin,
        )
        memory = policy.view.after(memory, PassedWeek(t, seen, state, next_state))
        state = next_state
        history = history.after(state.status, world.catalogue, offer, channel, bought, redeemed)
    columns = {name: torch.stack([week[name] for week in weeks]) for name in weeks[0]}
    scores = []
    for rows in batches(customers.alpha):
        batch_states = [CustomerState(*(x[rows] for x in state)) for state in states]
        scores.append(score_decisions(market, bound, rows, batch_states, columns["action"][:, rows]))
    score = DecisionScores(*(torch.cat(x, 1) for x in zip(*scores)))
    return SeasonRecord(**columns, **score._asdict(), habit=torch.stack([state.habit for state in states]))


def who_redeems(c: Customers, world: World, week: int, state: CustomerState, u: Tensor, action: Tensor) -> Tensor:
    """Return who redeems flat actions [N] by uniforms u [N], bool [N]; who is not subscribed gets nothing."""
    h, f, d = (x.to(c.alpha.dtype) for x in state[:3])
    offer, channel = world.catalogue.action_codec.decode(torch.where(state.status == SUBSCRIBED, action, 0))
    return u < outcome(c, world, week, h, f, d, offer, channel).redeem


def score_decisions(
    market: EvaluationMarket, bound: Bound | None, rows: slice, states: list[CustomerState], action: Tensor
) -> DecisionScores:
    """Score the flat actions [T, B] of the customers in `rows`, in their states, against the bound's plan.

    Value tables that are not kept in memory are computed again.
    """
    customers, world, codec = market.customers[rows], market.world, market.world.catalogue.action_codec
    contact_policy = market.contact_policy.take(rows)
    if market.no_contact_values is None:
        no_contact_values = fast_no_contact_values(customers, world)
    else:
        no_contact_values = [v.take(rows) for v in market.no_contact_values]
    if bound is not None and bound.values:
        plan_values = [v.take(rows) for v in bound.values]
    elif bound is not None:
        plan_values, _ = best_plan(
            customers, world, no_contact_values, bound.prices, bound.scarcity, contacts=contact_policy.contacts
        )
    weeks = []
    for t, (state, sent) in enumerate(zip(states, action)):
        at = VisitedStates(state, customers.alpha)
        mask_without_caps = contact_policy(state.status == SUBSCRIBED, []).action_mask
        gain = pair_table(*action_values(customers, world, t, at, 0.0, no_contact_values[t + 1]), mask_without_caps)
        # A message to a customer who churned brings its cost and nothing else; no plan that sees churn sends it.
        unheard = (state.status == CHURNED) & codec.is_contact(sent)
        cost = world.catalogue.cost[codec.channel_of(sent)]
        incremental_profit = (gain - gain[:, :1]).gather(1, sent[:, None])[:, 0]
        incremental_profit = torch.where(unheard, -cost, incremental_profit)
        lost_profit, planned_action = torch.zeros_like(incremental_profit), torch.zeros_like(sent)
        if bound is not None:
            values = action_values(customers, world, t, at, bound.prices[t], plan_values[t + 1], bound.scarcity)
            priced = pair_table(*values, mask_without_caps)
            best, planned_action = priced.max(1)
            lost_profit = best - priced.gather(1, sent[:, None])[:, 0]
            lost_profit = torch.where(unheard, (1 + bound.prices[t]) * cost, lost_profit)
        weeks.append(DecisionScores(planned_action, lost_profit, incremental_profit))
    return DecisionScores(*(torch.stack(x) for x in zip(*weeks)))
