"""Who comes next and what one does: the seed's stub of outcomes, and the structural customer of envs/offers.

A world draws customers as rows (a tuple of tensors [n, ...]), lays them out as features, and responds to flat pairs.
"""
from __future__ import annotations

from dataclasses import fields
from typing import Callable

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.planning.state_values import VisitedStates
from envs.offers.world.observation import hot
from envs.offers.policies.base import pair_table
from envs.offers.planning.dynamic_program import action_values
from envs.offers.world.customers import (CHURNED, EXPECTATIONS, FATIGUES, HABITS, SUBSCRIBED, UNIFORMS, CustomerState,
                                         Customers, World)
from envs.offers.world.transition import transition


class Toy:
    """The seed's stub: profit and P(trip) are affine in the numbers of offer and channel, whoever the customer is.

    Features are standard normals that mean nothing. Nobody is met twice.
    """

    uniforms = 1

    def __init__(self, catalogue: Catalogue, device: torch.device, *, weeks: int, num_features: int, profit: dict,
                 trip: dict, trips: float, outcomes: str):
        self.weeks, self.num_features, self.trips = weeks, num_features, trips
        self.realised = check(outcomes)
        offer, channel = (torch.arange(n, device=device).double() for n in catalogue.nvec)

        def table(base, offer_slope, channel_slope):
            pairs = base + offer_slope * offer[:, None] + channel_slope * channel
            pairs[0] = base  # nothing is nothing in whatever channel
            return pairs.flatten().float()
        self.profit = table(profit["base"], profit["offer"], profit["channel"])
        self.trip = table(trip["base"], trip["offer"], trip["channel"])
        self.value = self.profit + trips * self.trip

    def use_realised_outcomes(self) -> None:
        """Draw trips."""
        self.realised = True

    def store(self, worlds: int, customers: int) -> None:
        """Keep nothing of a customer."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor]:
        """Draw features [n, F]."""
        return torch.randn(n, self.num_features, generator=generator, device=generator.device),

    def features(self, visit: tuple[Tensor]) -> Tensor:
        """Observe customers, [W, F]."""
        return visit[0]

    def allowed(self, visit: tuple[Tensor], mask: Tensor) -> Tensor:
        """Allow everyone everything."""
        return mask

    def addressed(self, visit: tuple[Tensor], pair: Tensor) -> Tensor:
        """Reach everyone."""
        return pair

    def values(self, visit: tuple[Tensor], week: Tensor) -> Tensor:
        """Expected reward of every flat pair, [W, P]."""
        return self.value.expand(len(visit[0]), -1)

    def respond(self, visit: tuple[Tensor], pair: Tensor, week: Tensor, u: Tensor) -> tuple[Tensor, None]:
        """Return rewards [W] for flat pairs [W]; u [1, W] decides about trips."""
        if self.realised:
            return self.profit[pair] + self.trips * (u[0] < self.trip[pair]), None
        return self.value[pair], None


class Structural:
    """The customer of envs/offers, who remembers: met once a week, its state moves on each time.

    Rewards are the world's without V_end and shaping: what a contact does to later weeks is in the state, but N steps away.
    `incremental` takes off what the week would have brought without a message: the same choices within a week, and next
    to none of the noise of organic purchases.
    """

    uniforms = UNIFORMS

    def __init__(self, catalogue: Catalogue, device: torch.device, *, market: Callable, reward, population: Callable,
                 incremental: bool):
        if reward.shaping or reward.terminal:
            raise ValueError("env.world.reward: expected shaping: false and terminal: 0, a step here is one of many customers'")
        self.realised = check(reward.outcomes)
        self.incremental = incremental
        self.market: World = market(catalogue, reward).to(device, torch.float32)
        self.population, self.weeks = population(catalogue), self.market.weeks
        self.num_features = self.population.num_features + HABITS + FATIGUES + EXPECTATIONS + 3
        self.sizes = [len(catalogue.channels) if f.name == "omega" else 1 for f in fields(Customers)]
        self.device = device

    def use_realised_outcomes(self) -> None:
        """Draw purchases, and reward what came of them alone."""
        self.realised, self.incremental = True, False

    def store(self, worlds: int, customers: int) -> tuple[Tensor, ...]:
        """Make room for parameters, features and states of all customers, [W, N, ...] each."""
        sizes = (sum(self.sizes), self.population.num_features)
        rows = (torch.zeros(worlds, customers, size, device=self.device) for size in sizes)
        return *rows, torch.zeros(worlds, customers, len(CustomerState._fields), dtype=torch.long, device=self.device)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw parameters [n, θ], features [n, F] and states [n, 4]."""
        sample = self.population.draw(n, generator, "train")
        c = self.market.inhabit(sample.customers)
        theta = torch.cat([x if x.dim() == 2 else x[None] for x in (getattr(c, f.name) for f in fields(c))]).T
        return theta, sample.features.to(theta), torch.stack(sample.state, -1)

    def _customers(self, theta: Tensor) -> Customers:
        parts = theta.T.split(self.sizes)
        return Customers(**{f.name: x if f.name == "omega" else x[0] for f, x in zip(fields(Customers), parts)})

    def features(self, visit: tuple[Tensor, ...]) -> Tensor:
        """Observe features and state of customers, [W, F + 16]."""
        _, x, state = visit
        columns = (hot(s, n) for s, n in zip(state.unbind(-1), (HABITS, FATIGUES, EXPECTATIONS, 3)))
        return torch.cat((x, *(h.to(x.dtype) for h in columns)), -1)

    def _contactable(self, visit: tuple[Tensor, ...]) -> Tensor:
        return CustomerState(*visit[2].unbind(-1)).status == SUBSCRIBED

    def allowed(self, visit: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        """Leave nothing but nothing to those who can't be contacted."""
        return mask & self.market.catalogue.allowed(self._contactable(visit))

    def addressed(self, visit: tuple[Tensor, ...], pair: Tensor) -> Tensor:
        """Send nothing to those who can't be contacted."""
        return torch.where(self._contactable(visit), pair, 0)

    def values(self, visit: tuple[Tensor, ...], week: Tensor) -> Tensor:
        """Expected reward of every flat pair, [W, P]; −inf where it can't be sent."""
        c, state = self._customers(visit[0]), CustomerState(*visit[2].unbind(-1))
        nothing, contact = action_values(c, self.market, week, VisitedStates(state, c.alpha), 0.0, None)
        allowed = self.market.catalogue.allowed(state.status == SUBSCRIBED).flatten(1)
        return pair_table(torch.where(state.status == CHURNED, 0.0, nothing), contact, allowed)

    def respond(self, visit: tuple[Tensor, ...], pair: Tensor, week: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return rewards [W] for flat pairs [W] and the states [W, 4] that u [6, W] leads to."""
        c, state, market = self._customers(visit[0]), CustomerState(*visit[2].unbind(-1)), self.market
        offer, channel = market.catalogue.action_codec.decode(pair)
        following, bought, redeemed, _ = transition(c, market, week, state, offer, channel, u)
        if self.realised:
            terms, contacted = market.reward, offer > 0
            churned = (following.status == CHURNED) & (state.status != CHURNED)
            reward = ((c.margin + terms.trips) * bought - market.catalogue.spend(offer, channel, redeemed)
                      - terms.churn_cost * churned
                      - terms.fatigue_penalty * (contacted & (state.fatigue >= terms.fatigue_limit)))
        else:
            reward = self.values(visit, week).gather(1, pair[:, None])[:, 0]
        if self.incremental:
            reward = reward - self.values(visit, week)[:, 0]
        return reward, torch.stack(following, -1)


def check(outcomes: str) -> bool:
    """Return whether outcomes are realised, not expected."""
    if outcomes not in ("expected", "realised"):
        raise ValueError(f"env.world.outcomes: expected 'expected' or 'realised', got '{outcomes}'")
    return outcomes == "realised"
