"""Seasons of uniform decisions as a shop sees them, with the states that it does not see."""

from __future__ import annotations

from typing import NamedTuple

import torch

from envs.offers.populations.base import Population
from envs.offers.world.customers import SUBSCRIBED, UNIFORMS, UNSUBSCRIBED, Customers, CustomerState, World
from envs.offers.world.history import SeenWeek
from envs.offers.world.transition import transition


class SeenSeason(NamedTuple):
    """A season of N customers."""

    customers: Customers
    features: torch.Tensor  # [N, F]
    seen: list[SeenWeek]
    states: list[CustomerState]  # before each week, and after the last


def random_season(population: Population, world: World, n: int, generator: torch.Generator) -> SeenSeason:
    """Simulate a season of n customers; each week draws nothing or any pair, for the churned as for the active."""
    sample, codec = population.draw(n, generator, "train"), world.catalogue.action_codec
    c, state = world.inhabit(sample.customers), sample.state
    seen, states = [], [state]
    opted_out = torch.zeros(n, dtype=torch.bool, device=c.alpha.device)
    for t in range(world.weeks):
        nth = torch.randint(codec.num_treatments, (n,), generator=generator, device=generator.device)
        offer, channel = codec.decode(torch.where(opted_out | (nth == 0), 0, codec.nth_contact(nth - 1)))
        u = torch.rand(UNIFORMS, n, generator=generator, device=generator.device).to(c.alpha)
        after, bought, redeemed, _ = transition(c, world, t, state, offer, channel, u)
        left = (state.status == SUBSCRIBED) & (after.status == UNSUBSCRIBED)
        seen.append(SeenWeek(offer, channel, bought, redeemed, left, c.margin * bought))
        opted_out, state = opted_out | left, after
        states.append(state)
    return SeenSeason(c, sample.features, seen, states)
