"""A population under a weekly budget, and a season played in it with every cent accounted for against the bound."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.offers.bound import Bound
from envs.offers.budget import permitted
from envs.offers.policies import Policy, pair_table
from envs.offers.population import Sample
from envs.offers.program import Values, Visited, action_values, organic, successors
from envs.offers.rules import Permits, Rules
from envs.offers.spending import Purse, Rule
from envs.offers.world import SUBSCRIBED, UNIFORMS, Customers, State, World, outcome, transition


@dataclass(frozen=True)
class Market:
    """N customers at the start of a season; a policy for them spends `budget` [T] and `stock` [O+1] week by week."""

    customers: Customers
    world: World
    features: Tensor
    start: State
    organic: list[Values]  # V⁰
    budget: Tensor
    stock: Tensor
    rollover: bool
    rule: Rule
    permits: Permits

    @classmethod
    def open(cls, sample: Sample, world: World, budget, rules: Rules) -> Market:
        """Settle a drawn sample in a world; `budget` says what each week may cost, and by which rule of money, `rules`
        what may be sent to whom."""
        c, permits = world.inhabit(sample.customers), rules.permits(sample)
        v0 = organic(c, world)
        amounts = budget.weekly_amounts(c, world, v0, sample.state, permits.contacts)
        return cls(c, world, sample.features, sample.state, v0, amounts, budget.pieces(len(c), world.catalogue),
                   budget.rollover, budget.rule, permits)

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
    c, world, state, weeks, sent = market.customers, market.world, market.start, [], []
    channels = len(world.catalogue.channels)
    purse = Purse(market.budget, market.stock, market.rollover, world.catalogue)
    for t in range(world.weeks):
        subscribed = state.status == SUBSCRIBED
        allowed = market.permits(subscribed, sent)
        at, uncapped = Visited(state, c.alpha), market.permits(subscribed, []).pairs

        def redeems(action):
            got = torch.where(subscribed, action, 0)
            return u[t, 0] < outcome(c, world, t, at.h, at.f, at.d, got // channels, got % channels).redeem

        def table(price, values, scarcity=None):
            return pair_table(*action_values(c, world, t, at, price, successors(c, values[t + 1]), scarcity), uncapped)

        purse.open(t)
        action, price = market.rule.week(purse, permitted(policy.increments(t, state, allowed), allowed.pairs), redeems)

        free = table(0.0, market.organic)
        gained = (free - free[:, :1]).gather(1, action[:, None])[:, 0]
        lost, planned = torch.zeros_like(gained), torch.zeros_like(action)
        if bound is not None:
            priced = table(bound.prices[t], bound.values, bound.scarcity)
            best, planned = priced.max(1)
            lost = best - priced.gather(1, action[:, None])[:, 0]
        offer, channel = action // channels, action % channels
        following, _, redeemed, o = transition(c, world, t, state, offer, channel, u[t])
        paid = world.catalogue.spend(offer, channel, redeemed)
        weeks.append((action, planned, state.habit, lost, gained, o.spend, o.redeem, paid, price))
        state, sent = following, [*sent, action > 0]
    return Record(*(torch.stack(x) for x in zip(*weeks)))
