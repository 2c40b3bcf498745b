"""The customers of the sequential environment: a toy with a known optimum, and the structural customer of envs/offers.

Both kinds draw customers as rows (a tuple of tensors [n, ...]), encode them as features, and respond to flat actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import VisitedStates
from envs.offers.policies.base import pair_table
from envs.offers.rewards import realised_profit
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, Customers, CustomerState, World
from envs.offers.world.observation import DYNAMICS, STATUSES, one_hot_state
from envs.offers.world.transition import transition


class ToyCustomers:
    """Toy customers: profit and P(trip) are affine in the numbers of offer and channel, the same for everyone.

    Features are standard normals without meaning. No customer comes twice.
    """

    uniforms = 1  #: random numbers that a customer's response takes

    def __init__(
        self,
        catalogue: Catalogue,
        device: torch.device,
        *,
        weeks: int,
        num_features: int,
        profit: dict,
        trip: dict,
        trips: float,
        outcomes: str,
    ):
        self.weeks, self.num_features, self.trips = weeks, num_features, trips
        self.realised = is_realised(outcomes)
        offer, channel = (torch.arange(n, device=device).double() for n in catalogue.nvec)

        def table(base: float, offer_slope: float, channel_slope: float) -> Tensor:
            pairs = base + offer_slope * offer[:, None] + channel_slope * channel
            pairs[0] = base  # "nothing" is the same through every channel
            return pairs.flatten().float()

        self.profit = table(profit["base"], profit["offer"], profit["channel"])
        self.trip = table(trip["base"], trip["offer"], trip["channel"])
        self.value = self.profit + trips * self.trip

    def use_realised_outcomes(self) -> None:
        """From now on draw trips."""
        self.realised = True

    def store(self, worlds: int, customers: int) -> None:
        """Keep nothing of a customer."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor]:
        """Draw features [n, F]."""
        return (torch.randn(n, self.num_features, generator=generator, device=generator.device),)

    def features(self, visit: tuple[Tensor]) -> Tensor:
        """Return the features of customers, [W, F]."""
        return visit[0]

    def mask_actions(self, visit: tuple[Tensor], action_mask: Tensor) -> Tensor:
        """Return the mask [W, *nvec] unchanged: everyone may be contacted."""
        return action_mask

    def deliver(self, visit: tuple[Tensor], flat_action: Tensor) -> Tensor:
        """Return the flat actions [W] unchanged: every message arrives."""
        return flat_action

    def values(self, visit: tuple[Tensor], week: Tensor) -> Tensor:
        """Return the expected reward of every flat action, [W, P]."""
        return self.value.expand(len(visit[0]), -1)

    def respond(self, visit: tuple[Tensor], flat_action: Tensor, week: Tensor, u: Tensor) -> tuple[Tensor, None]:
        """Return the rewards [W] of flat actions [W]; uniforms u [1, W] draw the trips."""
        if self.realised:
            return self.profit[flat_action] + self.trips * (u[0] < self.trip[flat_action]), None
        return self.value[flat_action], None


class StructuralCustomers:
    """The customers of envs/offers, who have a state: each comes once a week, and its state changes each time.

    Rewards are the world's without V_end and shaping: the effect of a contact on later weeks is in the state, but N
    steps away. `incremental` subtracts the week's expected reward without a message, which leaves the choices within a
    week the same and removes almost all noise of organic purchases. `dynamics` is the World of the customers.
    """

    uniforms = UNIFORMS  #: random numbers that a customer's response takes

    def __init__(
        self,
        catalogue: Catalogue,
        device: torch.device,
        *,
        dynamics: Callable,
        reward,
        population: Callable,
        incremental: bool,
    ):
        if reward.shaping or reward.terminal:
            raise ValueError(
                "env.world.reward: expected shaping: false and terminal: 0, as a step here is one of many customers'"
            )
        self.realised = is_realised(reward.outcomes)
        self.incremental = incremental
        self.dynamics: World = dynamics(catalogue, reward).to(device, torch.float32)
        self.population, self.weeks = population(catalogue), self.dynamics.weeks
        self.num_features = self.population.num_features + sum(DYNAMICS.values()) + STATUSES
        self.sizes = [len(catalogue.channels) if f.name == "omega" else 1 for f in fields(Customers)]
        self.device = device

    def use_realised_outcomes(self) -> None:
        """From now on draw purchases, and reward realised outcomes alone."""
        self.realised, self.incremental = True, False

    def store(self, worlds: int, customers: int) -> tuple[Tensor, ...]:
        """Allocate parameters, features and states of all customers, [W, N, ...] each."""
        sizes = (sum(self.sizes), self.population.num_features)
        rows = (torch.zeros(worlds, customers, size, device=self.device) for size in sizes)
        return *rows, torch.zeros(worlds, customers, len(CustomerState._fields), dtype=torch.long, device=self.device)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw parameters [n, θ], features [n, F] and states [n, 4]."""
        sample = self.population.draw(n, generator, "train")
        c = self.dynamics.inhabit(sample.customers)
        theta = torch.cat([x if x.dim() == 2 else x[None] for x in (getattr(c, f.name) for f in fields(c))]).T
        return theta, sample.features.to(theta), torch.stack(sample.state, -1)

    def _customers(self, theta: Tensor) -> Customers:
        parts = theta.T.split(self.sizes)
        return Customers(**{f.name: x if f.name == "omega" else x[0] for f, x in zip(fields(Customers), parts)})

    def features(self, visit: tuple[Tensor, ...]) -> Tensor:
        """Return the features and one-hot states of customers, [W, F + 16]."""
        _, features, state = visit
        columns = one_hot_state(CustomerState(*state.unbind(-1)))
        return torch.cat((features, *(x.to(features.dtype) for x in columns)), -1)

    def _contactable(self, visit: tuple[Tensor, ...]) -> Tensor:
        return CustomerState(*visit[2].unbind(-1)).status == SUBSCRIBED

    def mask_actions(self, visit: tuple[Tensor, ...], action_mask: Tensor) -> Tensor:
        """Return the mask [W, *nvec] without the contacts to customers who are not subscribed."""
        return action_mask & self.dynamics.catalogue.action_mask(self._contactable(visit))

    def deliver(self, visit: tuple[Tensor, ...], flat_action: Tensor) -> Tensor:
        """Return flat actions [W], nothing to customers who are not subscribed."""
        return torch.where(self._contactable(visit), flat_action, 0)

    def values(self, visit: tuple[Tensor, ...], week: Tensor) -> Tensor:
        """Return the expected reward of every flat action, [W, P]; −inf where it can't be sent."""
        c, state = self._customers(visit[0]), CustomerState(*visit[2].unbind(-1))
        no_contact, contact = action_values(c, self.dynamics, week, VisitedStates(state, c.alpha), 0.0, None)
        action_mask = self.dynamics.catalogue.action_mask(state.status == SUBSCRIBED).flatten(1)
        return pair_table(torch.where(state.status == CHURNED, 0.0, no_contact), contact, action_mask)

    def respond(self, visit: tuple[Tensor, ...], flat_action: Tensor, week: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rewards [W] of flat actions [W], and the states [W, 4] that uniforms u [6, W] lead to."""
        c, state, dynamics = self._customers(visit[0]), CustomerState(*visit[2].unbind(-1)), self.dynamics
        offer, channel = dynamics.catalogue.action_codec.decode(flat_action)
        next_state, bought, redeemed, _ = transition(c, dynamics, week, state, offer, channel, u)
        if self.realised:
            reward, _ = realised_profit(c, dynamics, state, next_state, offer, channel, bought, redeemed)
        else:
            reward = self.values(visit, week).gather(1, flat_action[:, None])[:, 0]
        if self.incremental:
            reward = reward - self.values(visit, week)[:, 0]
        return reward, torch.stack(next_state, -1)


def is_realised(outcomes: str) -> bool:
    """Return whether outcomes are realised rather than expected; raise ValueError where they are neither."""
    if outcomes not in ("expected", "realised"):
        raise ValueError(f"env.world.outcomes: expected 'expected' or 'realised', got '{outcomes}'")
    return outcomes == "realised"
