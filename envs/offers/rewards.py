"""The profit and the reward of a week, expected or realised: pure functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import Contacts, StateValues, VisitedStates
from envs.offers.policies.base import pair_table
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, Customers, CustomerState, RewardConfig, World
from envs.offers.world.response import Outcome, outcome, outcomes, profit


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


class WeekAccount(NamedTuple):
    """What a week of N customers brought and cost, in money, [N] each."""

    profit: Tensor  # with shaping, less that of no contact
    spend: Tensor
    reward: Tensor  # profit − price·spend, with shaping A⁰ − price·spend


def account_for_week(
    customers: Customers,
    world: World,
    week: Tensor,
    price: Tensor,
    *,
    state: CustomerState,
    next_state: CustomerState,
    offer: Tensor,
    channel: Tensor,
    bought: Tensor,
    redeemed: Tensor,
    expected: Outcome,
    no_contact_values: StateValues,
    next_no_contact_values: StateValues,
) -> WeekAccount:
    """Return profit, spend and reward of a week [1] at prices [N], expected or realised as `world.reward` says.

    `expected` is the expected outcome of what was sent; the V⁰ are those of this week and of the next.
    """
    terms, contacted = world.reward, offer > 0
    if terms.outcomes == "expected":
        spend = expected.spend + cost_of_silence(world.catalogue, state, offer, channel)
        week_profit = expected_profit(customers, terms, state, expected._replace(spend=spend), contacted)
        reward = expected_reward(customers, world, week, state, offer, channel, price, next_no_contact_values)
    else:
        week_profit, spend = realised_profit(customers, world, state, next_state, offer, channel, bought, redeemed)
        reward = week_profit - price * spend
        if terms.shaping:
            reward = reward + next_no_contact_values.at(next_state) - no_contact_values.at(state)
    if terms.shaping:
        h, f, d = (x.to(week_profit) for x in state[:3])
        no_contact = outcome(customers, world, week, h, f, d, torch.zeros_like(offer), channel)
        nobody = torch.zeros_like(contacted)
        week_profit = week_profit - expected_profit(customers, terms, state, no_contact, nobody)
    return WeekAccount(week_profit, spend, reward)


def expected_reward_table(
    c: Customers, world: World, week: int, state: CustomerState, price: Tensor, action_mask: Tensor
) -> Tensor:
    """Return a week's expected profit less its spend at prices [N], without later weeks, [N, P]; −inf where masked."""
    no_contact, contact = action_values(c, world, week, VisitedStates(state, c.alpha), price, None)
    silent = state.status == CHURNED
    unheard = -(1 + price) * world.catalogue.cost[:, None]
    return pair_table(torch.where(silent, 0.0, no_contact), torch.where(silent, unheard, contact), action_mask)


def redeem_probability_table(c: Customers, world: World, week: int, state: CustomerState) -> Tensor:
    """Return P(redeem) of every action, [N, O+1, C]; nobody who has churned redeems."""
    silent = (state.status == CHURNED)[:, None]
    return torch.where(silent, 0.0, outcomes(c, world, week, state).redeem).unflatten(1, world.catalogue.nvec)
