"""The likelihood of a panel's outcomes under customers' parameters, by the world's own probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.predictions import OutcomePrediction
from envs.offers.world.customers import CHURNED, HABITS, SUBSCRIBED, UNSUBSCRIBED, Customers, World
from envs.offers.world.response import churn_probability, opt_out_probability, outcome
from envs.offers.world.transition import habit_gain

MIN_PROBABILITY = 1e-6  # lower bound before a logarithm


def bernoulli_log_prob(p: Tensor, happened: Tensor, known: Tensor) -> Tensor:
    """Return log P of a binary event of probability p: `happened` or not; 0 where that is not `known`."""
    p = p.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return torch.where(known, torch.where(happened, p, 1 - p).log(), 0.0)


def log_likelihood(c: Customers, world: World, panel: Panel) -> dict[str, Tensor]:
    """Return the log-likelihood of a panel by kind of outcome, [T, N] each, 0 where the outcome was not possible.

    A week's draws are independent given the response (envs/offers/world/transition.py), so the kinds add up. Money is
    scored as a Gamma of shape 1, −log g − y/g, whose maximum is the mean for every distribution (McCullagh & Nelder
    1989, §8).
    """
    before, after = panel.state, panel.next_state
    h, f, d = (x.to(c.alpha.dtype) for x in before[:3])
    active, subscribed = panel.active, panel.subscribed
    offer = torch.where(subscribed, panel.offer, 0)
    contacted = offer > 0
    stays = active & (after.status != CHURNED)
    stays_subscribed = stays & (after.status == SUBSCRIBED)

    response = outcome(c, world, panel.week, h, f, d, offer, panel.channel)
    neither = 1 - response.redeem - response.buy
    p_response = torch.where(panel.redeemed, response.redeem, torch.where(panel.bought, response.buy, neither))
    p_habit_up = torch.where(panel.redeemed, habit_gain(c, h, True), habit_gain(c, h, False))
    p_churn = churn_probability(c, h, f) * torch.where(panel.bought, 0.25, 1.0)
    p_opt_out = opt_out_probability(c, f, world.catalogue.opt_out[panel.channel])
    habit_can_rise = stays & panel.bought & (before.habit < HABITS - 1)
    habit_can_fall = stays & ~panel.bought & (before.habit > 0)
    fatigue_can_fall = stays_subscribed & ~contacted & (before.fatigue > 0)
    expectation_can_fall = stays_subscribed & ~panel.redeemed & (before.expectation > 0)
    return {
        "response": bernoulli_log_prob(p_response, torch.ones_like(active), active),
        "habit": bernoulli_log_prob(p_habit_up, after.habit > before.habit, habit_can_rise)
        + bernoulli_log_prob(c.pi_minus.expand_as(h), after.habit < before.habit, habit_can_fall),
        "fatigue": bernoulli_log_prob(c.delta_f.expand_as(h), after.fatigue < before.fatigue, fatigue_can_fall),
        "expectation": bernoulli_log_prob(
            c.delta_d.expand_as(h), after.expectation < before.expectation, expectation_can_fall
        ),
        "churn": bernoulli_log_prob(p_churn, after.status == CHURNED, active),
        "opt_out": bernoulli_log_prob(p_opt_out, after.status == UNSUBSCRIBED, stays & contacted),
        "margin": torch.where(active & panel.bought, -c.margin.log() - panel.margin / c.margin, 0.0),
    }


def predicted_probabilities(c: Customers, world: World, panel: Panel) -> dict[str, OutcomePrediction]:
    """Return the probabilities of a panel's outcomes before the week's response is known."""
    h, f, d = (x.to(c.alpha.dtype) for x in panel.state[:3])
    active = panel.active
    offer = torch.where(panel.state.status == SUBSCRIBED, panel.offer, 0)
    contacted = active & (offer > 0)
    response = outcome(c, world, panel.week, h, f, d, offer, panel.channel)
    p_trip = response.redeem + response.buy
    p_churn = churn_probability(c, h, f) * (1 - 0.75 * p_trip)
    p_opt_out = (1 - p_churn) * opt_out_probability(c, f, world.catalogue.opt_out[panel.channel])
    status = panel.next_state.status
    return {
        "trips": OutcomePrediction(p_trip, panel.bought, active),
        "redeemed": OutcomePrediction(response.redeem, panel.redeemed, contacted),
        "opt_out": OutcomePrediction(p_opt_out, status == UNSUBSCRIBED, contacted),
        "churn": OutcomePrediction(p_churn, status == CHURNED, active),
    }
