"""A population under a weekly budget, and a season played in it with every cent accounted for against the bound."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.offers.planning.batching import batches, no_contact_values_if_they_fit
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.planning.knapsack import allowed_increments
from envs.offers.world.history import History
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.planning.state_values import StateValues, VisitedStates
from envs.offers.policies.learned import Policy, pair_table
from envs.offers.populations.base import Sample
from envs.offers.planning.dynamic_program import action_values, best_plan
from envs.offers.constraints.contact_rules import ContactPolicy, ContactRules
from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.constraints.budget_rules import BudgetRule
from envs.offers.world.customers import SUBSCRIBED, UNIFORMS, CustomerState, Customers, World
from envs.offers.world.response import outcome
from envs.offers.world.transition import transition


@dataclass(frozen=True)
class Market:
    """N customers at the start of a season; a policy for them spends `budget` [T] and `stock` [O+1] week by week."""

    customers: Customers
    world: World
    features: Tensor
    start: CustomerState
    no_contact_values: list[StateValues] | None  # V⁰, None for more customers than tables are kept of
    budget: Tensor
    stock: Tensor
    rollover: bool
    rule: BudgetRule
    contact_policy: ContactPolicy

    @classmethod
    def open(cls, sample: Sample, world: World, budget, rules: ContactRules) -> Market:
        """Settle a drawn sample in a world; `budget` says what each week may cost, and by which rule of money, `rules`
        what may be sent to whom."""
        c, contact_policy = world.inhabit(sample.customers), rules.policy(sample)
        v0 = no_contact_values_if_they_fit(c, world)
        amounts = budget.weekly_amounts(c, world, v0, sample.state, contact_policy.contacts)
        return cls(c, world, sample.features, sample.state, v0, amounts, budget.pieces(len(c), world.catalogue),
                   budget.rollover, budget.rule, contact_policy)

    def __len__(self) -> int:
        return len(self.customers)

    def uniforms(self, generator: torch.Generator) -> Tensor:
        """Draw the randomness of one season, [T, 6, N]."""
        return torch.rand(self.world.weeks, UNIFORMS, len(self), generator=generator, device=generator.device,
                          dtype=self.budget.dtype)


@dataclass(frozen=True)
class Record:
    """One season, [T, N] each, and the price [T] at which each week cleared."""

    action: Tensor  # flat pair sent
    planned: Tensor  # flat pair that the bound's plan would have sent in the same state
    habit: Tensor  # before the week
    lost: Tensor  # ρ, profit lost against the bound's plan at its prices
    gained: Tensor  # A⁰, expected gain over never contacting again
    spend: Tensor  # expected
    redeem: Tensor  # P(redeem)
    paid: Tensor  # realised
    price: Tensor


def play(policy: Policy, market: Market, u: Tensor, bound: Bound | None = None) -> Record:
    """Play the season that uniforms u [T, 6, N] make; without a bound, `lost` is 0 and `planned` nothing.

    What the market's rules don't allow is not sent, whatever the policy asks for. The bound's plan is free of contact
    caps, so what they cost counts as lost.
    """
    c, world, state, weeks, states = market.customers, market.world, market.start, [], []
    history = History.start(state.status, world.season.dtype)
    codec = world.catalogue.action_codec
    account = BudgetAccount(market.budget, market.stock, market.rollover, world.catalogue)
    for t in range(world.weeks):
        subscribed = state.status == SUBSCRIBED
        mask = market.contact_policy.action_mask(history)
        at = VisitedStates(state, c.alpha)

        def redeems(action):
            got = torch.where(subscribed, action, 0)
            return u[t, 0] < outcome(c, world, t, at.h, at.f, at.d, *codec.decode(got)).redeem

        account.open(t)
        action, price = market.rule.allocate(account, allowed_increments(policy.increments(t, state, mask), mask.allowed), redeems)

        offer, channel = codec.decode(action)
        following, got, redeemed, o = transition(c, world, t, state, offer, channel, u[t])
        paid = world.catalogue.spend(offer, channel, redeemed)
        weeks.append((action, o.spend, o.redeem, paid, price))
        states.append(state)
        state, history = following, history.after(following.status, world.catalogue, offer, channel, got, redeemed)
    action, *money = (torch.stack(x) for x in zip(*weeks))
    planned, lost, gained = (torch.cat(x, 1) for x in zip(*(
        judged(market, bound, rows, [CustomerState(*(x[rows] for x in state)) for state in states], action[:, rows])
        for rows in batches(c.alpha))))
    return Record(action, planned, torch.stack([state.habit for state in states]), lost, gained, *money)


def judged(market: Market, bound: Bound | None, rows: slice, states: list[CustomerState],
           action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hold what was sent to some customers in their states against the bound's plan: what it would have sent, profit lost
    against it, and gained over nothing, [T, B] each. Tables that are not kept are made anew."""
    c, world, contact_policy = market.customers[rows], market.world, market.contact_policy.take(rows)
    free = fast_no_contact_values(c, world) if market.no_contact_values is None else [v.take(rows) for v in market.no_contact_values]
    if bound is not None:
        best = [v.take(rows) for v in bound.values] if bound.values else best_plan(
            c, world, free, bound.prices, bound.scarcity, contacts=contact_policy.contacts)[0]
    weeks = []
    for t, (state, sent) in enumerate(zip(states, action)):
        at, uncapped = VisitedStates(state, c.alpha), contact_policy(state.status == SUBSCRIBED, []).allowed

        def table(price, values, scarcity=None):
            return pair_table(*action_values(c, world, t, at, price, values[t + 1], scarcity), uncapped)

        untold = table(0.0, free)
        gained = (untold - untold[:, :1]).gather(1, sent[:, None])[:, 0]
        lost, planned = torch.zeros_like(gained), torch.zeros_like(sent)
        if bound is not None:
            priced = table(bound.prices[t], best, bound.scarcity)
            most, planned = priced.max(1)
            lost = most - priced.gather(1, sent[:, None])[:, 0]
        weeks.append((planned, lost, gained))
    return tuple(torch.stack(x) for x in zip(*weeks))
