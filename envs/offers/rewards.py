"""The profit and the reward of a week, expected or realised: pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import Contacts, StateValues, VisitedStates
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, Customers, CustomerState, RewardConfig, World
from envs.offers.world.response import Outcome, profit


def cost_of_silence(catalogue: Catalogue, state: CustomerState, offer: Tensor, channel: Tensor) -> Tensor:
    """Return what messages to customers who have churned cost, [N].

    Only a policy that does not see churn sends them, and nobody answers (`transition`).
    """
    return catalogue.cost[channel] * ((offer > 0) & (state.status == CHURNED))


def expected_profit(
    c: Customers, terms: RewardConfig, state: CustomerState, expected: Outcome, contacted: Tensor
) -> Tensor:
    """Return the week's expected profit, [N]."""
    h, f = (x.to(expected.spend) for x in state[:2])
    return torch.where(state.status == CHURNED, 0.0 - expected.spend, profit(c, terms, h, f, expected, contacted))


def expected_reward(
    c: Customers,
    world: World,
    week: Tensor,
    state: CustomerState,
    offer: Tensor,
    channel: Tensor,
    price: Tensor,
    next_no_contact_values: StateValues,
) -> Tensor:
    """Return the week's expected reward, [N]; with shaping, less that of no contact."""
    shaping = world.reward.shaping
    no_contact, contact = action_values(
        c,
        world,
        week,
        VisitedStates(state, c.alpha),
        price,
        next_no_contact_values if shaping else None,
        contacts=Contacts.each(c, world.catalogue, offer, channel),
    )
    unheard = (1 + price) * cost_of_silence(world.catalogue, state, offer, channel)
    silent = state.status == CHURNED
    no_contact, contact = torch.where(silent, 0.0, no_contact), torch.where(silent, 0.0 - unheard, contact[0, 0])
    if shaping:
        return torch.where(offer > 0, contact - no_contact, 0.0)
    return torch.where(offer > 0, contact, no_contact)


def realised_profit(
    c: Customers,
    world: World,
    state: CustomerState,
    next_state: CustomerState,
    offer: Tensor,
    channel: Tensor,
    bought: Tensor,
    redeemed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the week's realised profit and spend, [N] each."""
    terms = world.reward
    spend = world.catalogue.spend(offer, channel, redeemed)
    churned = (next_state.status == CHURNED) & (state.status != CHURNED)
    annoyed = (offer > 0) & (state.fatigue >= terms.fatigue_limit)
    earned = (c.margin + terms.trips) * bought
    return earned - spend - terms.churn_cost * churned - terms.fatigue_penalty * annoyed, spend
