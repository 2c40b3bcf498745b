"""Who gets what: every policy names, week by week, the steps that falling prices would buy."""
from __future__ import annotations

from copy import copy
from typing import Callable, Protocol

import torch
from torch import Tensor

from envs.offers.planning.batching import batches
from envs.offers.planning.knapsack import Increments, compact, concat_increments, demand_curve, ranked, upper_hull
from envs.offers.world.history import History
from envs.offers.planning.state_values import StateValues, VisitedStates
from envs.offers.world.observation import ObservationCodec
from rlcore.algorithm import Policy as LearnedPolicy
from envs.offers.planning.dynamic_program import action_values
from envs.offers.constraints.contact_rules import ActionMask
from envs.offers.world import response
from envs.offers.world.customers import CustomerState, Customers, World
from envs.offers.world.response import Outcome


class Policy(Protocol):
    """A policy over one population; `information` says what it knows of a customer: `true θ` or `features`."""

    information: str

    def increments(self, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return what it would send in `week` as prices fall, of what is allowed."""


def pair_table(nothing: Tensor, contact: Tensor, pairs: Tensor) -> Tensor:
    """Values of every flat pair [N, (O+1)·C] from those of nothing [N] and of contacts [O, C, N]; −inf outside `pairs`."""
    first = nothing.expand(1, contact.shape[1], -1)
    return torch.cat((first, contact)).flatten(0, 1).T.masked_fill(~pairs, -torch.inf)


def outcomes(c: Customers, world: World, week: int, state: CustomerState, history: History | None = None) -> Outcome:
    """Outcome of every flat pair for every customer, [N, (O+1)·C] each; a neural twin's depends on the history."""
    if isinstance(c, Customers):
        return response.outcomes(c, world, week, state)
    return c.outcomes(world, week, state, history)


class ByBlock:
    """A policy that looks at a block of customers at a time, whatever their number."""

    def increments(self, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return what it would send, the steps of all blocks."""
        parts = [self.some(rows, week, CustomerState(*(x[rows] for x in state)), mask.take(rows))
                 for rows in batches(state.status)]
        return parts[0] if len(parts) == 1 else concat_increments(parts)


class Nothing:
    """Never contact anyone."""

    information = "none"

    def increments(self, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return no step at all."""
        zeros = torch.zeros_like(state.status)
        return ranked(torch.full(zeros.shape, -torch.inf, device=zeros.device), zeros.double(), zeros)


class Random(ByBlock):
    """A pair drawn uniformly, customers in random order, until the money ends."""

    information = "none"

    def __init__(self, c: Customers, world: World, *, seed: int):
        self.c, self.world = c, world
        self.generator = torch.Generator(world.season.device).manual_seed(seed)

    def some(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return one step a customer who may be contacted, at a random rank."""
        c = self.c[rows]
        n, codec = len(c), self.world.catalogue.action_codec
        spend = outcomes(c, self.world, week, state, mask.history).spend
        action, order = (torch.rand(n, generator=self.generator, device=spend.device) for _ in range(2))
        count = mask.allowed[:, codec.contacts].long().cumsum(1)
        chosen = (action * count[:, -1]).long()  # which of those allowed
        action = codec.nth_contact((count <= chosen[:, None]).sum(1).clamp_max(count.shape[1] - 1))
        order = torch.where(count[:, -1] > 0, order, -torch.inf)
        return ranked(order, spend.gather(1, action[:, None])[:, 0], action)


class Response(ByBlock):
    """The trade's two habits: send what most probably brings a purchase to the most probable buyers (`propensity`),
    or what most raises the probability to those where the rise earns most this week (`uplift`)."""

    information = "true θ"

    def __init__(self, c: Customers, world: World, *, uplift: bool):
        self.c, self.world, self.uplift = c, world, uplift

    def some(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return one step a customer who may be contacted, ranked."""
        codec, c = self.world.catalogue.action_codec, self.c[rows]
        o = outcomes(c, self.world, week, state, mask.history)
        buy = o.redeem + o.buy
        best, action = buy[:, codec.contacts].masked_fill(~mask.allowed[:, codec.contacts], -torch.inf).max(1)
        action = codec.nth_contact(action)
        spend = o.spend.gather(1, action[:, None])[:, 0]
        if self.uplift:
            best = (c.earns(week, state, mask.history) + self.world.reward.trips) * (best - buy[:, 0]) - spend
        return ranked(best, spend, action)


class Knapsack(ByBlock):
    """The exact knapsack of the week on (spend, value): myopic without `values`, planning with the V of weeks 1..T+1, or with
    what gives the V of a week and some customers.

    `fee` is charged a contact: the trade's way to mind the future without planning. `scarcity` [O+1] is the price of a
    redemption of each offer.
    """

    def __init__(self, c: Customers, world: World, information: str, *, fee: float,
                 values: list[StateValues] | Callable[[int, slice], StateValues] | None, scarcity: Tensor | None = None):
        self.c, self.world, self.information, self.values, self.fee = c, world, information, values, fee
        self.scarcity = scarcity

    def some(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return every customer's efficient steps."""
        c, then = self.c[rows], None
        if self.values:
            values = self.values
            then = values(week + 1, rows) if callable(values) else values[week + 1].take(rows)
        nothing, contact = action_values(c, self.world, week, VisitedStates(state, c.alpha), 0.0, then, self.scarcity)
        return upper_hull(pair_table(nothing, contact - self.fee, mask.allowed), outcomes(c, self.world, week, state).spend)


class Learned(ByBlock):
    """A learned policy over observations. `redeem` maps contexts [B, D] to P(redeem) [B, O+1, C], or is null for the
    world's own expected spend."""

    def __init__(self, policy: LearnedPolicy, redeem: Callable | None, codec: ObservationCodec, c: Customers, world: World,
                 features: Tensor):
        self.policy = policy
        self.redeem, self.codec, self.c, self.world, self.features = redeem, codec, c, world, features.float()
        self.information = "features" if redeem else "features, true spend"

    def look(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> tuple[Tensor, Tensor]:
        """Return contexts [N, D] and the spend expected of pairs [N, P]."""
        catalogue = self.world.catalogue
        context = self.codec.encode_context(mask.with_caps_left(self.features[rows]), state, mask.history, week)
        if self.redeem is None:
            return context, outcomes(self.c[rows], self.world, week, state, mask.history).spend
        offer, channel = (torch.arange(n, device=context.device) for n in catalogue.nvec)
        return context, catalogue.spend(offer[:, None], channel, self.redeem(context)).flatten(1)


class Priced(Learned):
    """What a policy that observes the price buys as the price falls.

    `drift` is what it is told that the logarithm of the price will do a week.
    """

    def __init__(self, *learned, prices: Tensor, drift: float):
        super().__init__(*learned)
        self.prices, self.drift = prices.float(), torch.full_like(prices, drift).float()

    @torch.no_grad()
    def some(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return the switches of every subscribed customer on the price grid."""
        context, spend = self.look(rows, week, state, mask)
        steer = self.codec.encode_price(self.prices, self.drift)
        logits = torch.stack([
            self.at(price, torch.cat((context, seen.expand(len(context), -1)), -1), mask.allowed, spend)
            .masked_fill(~mask.allowed, -torch.inf) for price, seen in zip(self.prices, steer)])
        return compact(demand_curve(logits, spend, self.prices))

    def at(self, price: Tensor, obs: Tensor, pairs: Tensor, spend: Tensor) -> Tensor:
        """What it prefers at one price, [N, P]."""
        return self.policy.distribution(obs, pairs).logits


class PricedValues(Priced):
    """The same for a ValuePolicy, whose action values are what pairs are worth before the price of their own spend.

    At every price the exact knapsack's Lagrangian choice, worth less price times spend: the price that clears the week's
    budget is the one that the values are of.
    """

    def at(self, price, obs, pairs, spend):
        return self.policy.action_values(obs, pairs) - price * spend


class Valued(Learned):
    """The exact knapsack of the week on the values of a ValuePolicy that does not observe the price."""

    clears = True

    @torch.no_grad()
    def some(self, rows: slice, week: int, state: CustomerState, mask: ActionMask) -> Increments:
        """Return every customer's efficient steps."""
        context, spend = self.look(rows, week, state, mask)
        worth = self.policy.action_values(context, mask.allowed).to(spend)
        if self.clears:
            return upper_hull(worth, spend)
        most, action = worth.max(1)
        return ranked(most, torch.zeros_like(most), action)

    def uncleared(self) -> Valued:
        """Return the same policy heedless of the budget: every customer gets the pair of the highest worth."""
        policy = copy(self)
        policy.clears = False
        return policy
