"""Customers' response in a week: probabilities of purchase, redemption, churn and opt-out, and expected profit.

Pure functions of tensors. Customers are the last axis, so the same functions serve N visited states (h, f, d of shape
[N]) and the whole state grid (h [6, 1, 1, 1], f [4, 1, 1], d [3, 1]). Symbols and equations: envs/offers/README.md §2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.customers import Customers, CustomerState, RewardConfig, World


def utility(c: Customers, h: Tensor, d: Tensor, season: Tensor) -> Tensor:
    """b = α + κ·h/5 − ξ·d/2 + 2·ln(season)."""
    return c.alpha + c.kappa * (h / 5) - c.xi * (d / 2) + 2 * season.log()


def attention(omega: Tensor, c: Customers, f: Tensor) -> Tensor:
    """q = σ(ω − φ·f), P(message seen)."""
    return torch.sigmoid(omega - c.phi * f)


def purchase_if_seen(c: Customers, b: Tensor, d: Tensor, value: Tensor) -> Tensor:
    """p1 = σ(b + η + β·ln(1 + e)), perceived value e = max(v − ρ·d, 0.05)."""
    e = (value - c.rho * d).clamp_min(0.05)
    return torch.sigmoid(b + c.eta + c.beta * torch.log1p(e))


class Outcome(NamedTuple):
    """Expected outcome of one week under one action."""

    redeem: Tensor  # P(bought by redeeming the offer)
    buy: Tensor  # P(bought without redeeming)
    spend: Tensor  # expected money that the budget pays


def outcome(
    c: Customers,
    world: World,
    week: int | Tensor,
    h: Tensor,
    f: Tensor,
    d: Tensor,
    offer: Tensor,
    channel: Tensor,
) -> Outcome:
    """Outcome of one offer and channel for each state, int64 in the shape of the states; offer 0 is no contact.

    The week is a number or a tensor that broadcasts to the states.
    """
    b = utility(c, h, d, world.season[week])
    omega = c.omega.view(-1, *(1,) * (offer.dim() - 1), len(c)).expand(-1, *offer.shape)
    q = attention(omega.gather(0, channel[None])[0], c, f) * (offer > 0)
    seen_and_bought = q * purchase_if_seen(c, b, d, world.catalogue.value[offer])
    redeem = seen_and_bought * c.mu
    buy = seen_and_bought - redeem + (1 - q) * torch.sigmoid(b)
    return Outcome(redeem, buy, world.catalogue.spend(offer, channel, redeem))


def outcomes(c: Customers, world: World, week: int | Tensor, state: CustomerState) -> Outcome:
    """Outcome of every flat index for every customer, [N, P] each."""
    codec = world.catalogue.action_codec
    index = codec.every_action(c.alpha.device)[:, None].expand(-1, len(c))
    h, f, d = (x.to(c.alpha.dtype) for x in state[:3])
    return Outcome(*(x.T for x in outcome(c, world, week, h, f, d, *codec.decode(index))))


def churn_probability(c: Customers, h: Tensor, f: Tensor) -> Tensor:
    """P(churn | no purchase); after a purchase it is a quarter of this."""
    return (c.c0 * torch.exp(-c.gamma_h * h + c.gamma_f * f)).clamp_max(0.5)


def opt_out_probability(c: Customers, f: Tensor, rate: Tensor) -> Tensor:
    """P(opt-out | contacted, not churned) for a channel's base rate."""
    return (rate * c.opt_out * (1 + f)).clamp_max(0.3)


def profit(c: Customers, reward: RewardConfig, h: Tensor, f: Tensor, o: Outcome, contacted: Tensor) -> Tensor:
    """Expected profit of a week with outcome o, after the budget's spend; `contacted` is bool."""
    bought = o.redeem + o.buy
    annoyed = contacted & (f >= reward.fatigue_limit)
    churned = churn_probability(c, h, f) * (1 - 0.75 * bought)
    return (c.margin + reward.trips) * bought - o.spend - reward.churn_cost * churned - reward.fatigue_penalty * annoyed
