"""Who gets what: every policy names, week by week, the steps that falling prices would buy."""
from __future__ import annotations

from typing import Callable, Protocol

import torch
from torch import Tensor

from envs.offers.budget import Increments, hull, ranked, switches
from envs.offers.observation import Observation
from envs.offers.program import Values, Visited, action_values, successors
from envs.offers.world import SUBSCRIBED, Customers, Outcome, State, World, outcome


class Policy(Protocol):
    """A policy over one population; `information` says what it knows of a customer: `true θ` or `features`."""

    information: str

    def increments(self, week: int, state: State) -> Increments:
        """Return what it would send in `week` as prices fall."""


def pair_table(nothing: Tensor, contact: Tensor, contactable: Tensor) -> Tensor:
    """Values of every flat pair [N, (O+1)·C] from those of nothing [N] and of contacts [O, C, N].

    −inf where a pair does not exist or the customer is not `contactable` [N].
    """
    contact = torch.where(contactable, contact, -torch.inf)
    first = torch.full_like(contact[:1], -torch.inf)
    first[0, 0] = nothing
    return torch.cat((first, contact)).flatten(0, 1).T


def outcomes(c: Customers, world: World, week: int, state: State) -> Outcome:
    """Outcome of every flat pair for every customer, [N, (O+1)·C] each."""
    channels = len(world.catalogue.channels)
    pair = torch.arange(len(world.catalogue.offers) * channels, device=c.alpha.device)[:, None].expand(-1, len(c))
    h, f, d = (x.to(c.alpha.dtype) for x in state[:3])
    return Outcome(*(x.T for x in outcome(c, world, week, h, f, d, pair // channels, pair % channels)))


class Nothing:
    """Never contact anyone."""

    information = "none"

    def increments(self, week: int, state: State) -> Increments:
        """Return no step at all."""
        zeros = torch.zeros_like(state.habit)
        return ranked(torch.full(zeros.shape, -torch.inf, device=zeros.device), zeros.double(), zeros)


class Random:
    """A pair drawn uniformly, customers in random order, until the money ends."""

    information = "none"

    def __init__(self, c: Customers, world: World, *, seed: int):
        self.c, self.world = c, world
        self.generator = torch.Generator(c.alpha.device).manual_seed(seed)

    def increments(self, week: int, state: State) -> Increments:
        """Return one step a subscribed customer, at a random rank."""
        n, channels = len(self.c), len(self.world.catalogue.channels)
        spend = outcomes(self.c, self.world, week, state).spend
        action, order = (torch.rand(n, generator=self.generator, device=spend.device) for _ in range(2))
        action = channels + (action * (spend.shape[1] - channels)).long()
        order = torch.where(state.status == SUBSCRIBED, order, -torch.inf)
        return ranked(order, spend.gather(1, action[:, None])[:, 0], action)


class Response:
    """The trade's two habits: send what most probably brings a purchase to the most probable buyers (`propensity`),
    or what most raises the probability to those where the rise earns most this week (`uplift`)."""

    information = "true θ"

    def __init__(self, c: Customers, world: World, *, uplift: bool):
        self.c, self.world, self.uplift = c, world, uplift

    def increments(self, week: int, state: State) -> Increments:
        """Return one step a subscribed customer, ranked."""
        channels = len(self.world.catalogue.channels)
        o = outcomes(self.c, self.world, week, state)
        buy = o.redeem + o.buy
        best, action = buy[:, channels:].max(1)
        action = action + channels
        spend = o.spend.gather(1, action[:, None])[:, 0]
        if self.uplift:
            best = (self.c.margin + self.world.reward.trips) * (best - buy[:, 0]) - spend
        return ranked(torch.where(state.status == SUBSCRIBED, best, -torch.inf), spend, action)


class Knapsack:
    """The exact knapsack of the week on (spend, value): myopic without `values`, planning with the V of weeks 1..T+1.

    `fee` is charged a contact: the trade's way to mind the future without planning.
    """

    def __init__(self, c: Customers, world: World, information: str, *, values: list[Values] | None, fee: float):
        self.c, self.world, self.information, self.values, self.fee = c, world, information, values, fee

    def increments(self, week: int, state: State) -> Increments:
        """Return every customer's efficient steps."""
        then = successors(self.c, self.values[week + 1]) if self.values else None
        nothing, contact = action_values(self.c, self.world, week, Visited(state, self.c.alpha), 0.0, then)
        value = pair_table(nothing, contact - self.fee, state.status == SUBSCRIBED)
        return hull(value, outcomes(self.c, self.world, week, state).spend)


class Priced:
    """A learned policy over observations: what its mode buys as the price falls.

    `logits` maps observations [B, D] to [B, P]; `redeem` maps them to P(redeem) [B, O+1, C], or is null for the
    world's own spend. `drift` is what it is told that the logarithm of the price will do a week.
    """

    def __init__(self, logits: Callable, redeem: Callable | None, observe: Observation, c: Customers, world: World,
                 features: Tensor, prices: Tensor, drift: float):
        self.logits, self.redeem, self.observe, self.c, self.world = logits, redeem, observe, c, world
        self.features, self.prices, self.drift = features.float(), prices.float(), torch.full_like(prices, drift).float()
        self.information = "features" if redeem else "features, true spend"

    @torch.no_grad()
    def increments(self, week: int, state: State) -> Increments:
        """Return the switches of every subscribed customer on the price grid."""
        catalogue, n = self.world.catalogue, len(state.habit)
        context = self.observe.context(self.features, state, week)
        price = self.observe.price(self.prices, self.drift)
        valid = catalogue.allowed(state.status == SUBSCRIBED).flatten(1)
        asked = [torch.cat((context, p.expand(n, -1)), -1) for p in price]
        logits = torch.stack([self.logits(obs).masked_fill(~valid, -torch.inf) for obs in asked])
        if self.redeem:
            offer, channel = (torch.arange(n, device=price.device) for n in catalogue.nvec)
            spend = catalogue.spend(offer[:, None], channel, self.redeem(asked[0])).flatten(1)
        else:
            spend = outcomes(self.c, self.world, week, state).spend
        return switches(logits, spend, self.prices)
