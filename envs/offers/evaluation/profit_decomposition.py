"""Turn records of seasons into numbers: what a policy earned, where it lost profit, and intervals.

What a policy earns over no contact, J(π) − J(none), has two exact accounts (envs/offers/README.md): the advantages A⁰
that it collects, and the bound's gain less the profit ρ that it loses. `ScoreTerms` has both by customer. The first has
no noise for a policy that sends nothing, the second none for the bound's own plan, so the score mixes
both by their inverse variances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.planning.lagrangian_bound import Bound
from rlcore.ope.intervals import LEVEL, normal_half_width

TINY = 1e-300  # least variance that is divided by
SEGMENTS = {"new or lapsing": (0, 1), "regular": (2, 3), "established": (4, 5)}  # by habit before the week


def decompose_gap(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> tuple[Tensor, float]:
    """Split L − J(π) = E Σ ρ + Σ λ_t·(B_t − E spend_t) + Σ ν_o·(stock_o − E redeemed_o).

    Returns Σ ρ of each customer, the mean over the records [N], and the value of unused budget and stock at its price,
    both in money. Money spent beyond a week's budget counts as no gain: a policy must not score by misjudging the cost
    of messages.
    """
    unused = unspent_budget_value(records, market, bound).sum() + unused_stock_value(records, market, bound)
    return torch.stack([r.lost_profit.sum(0) for r in records]).mean(0), unused.item()


def unspent_budget_value(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> Tensor:
    """Return the value of each week's unspent budget, [T]; with roll-over, of money that no later week can use."""
    unspent = market.budget - torch.stack([r.expected_spend.sum(1) for r in records]).mean(0)
    if not bound.rollover:
        return bound.prices * unspent.clamp_min(0)
    return price_falls(bound) * unspent.cumsum(0).clamp_min(0)


def price_falls(bound: Bound) -> Tensor:
    """Return how far the price of money falls after each week, [T]; after the last week to 0."""
    next_price = torch.cat((bound.prices[1:], torch.zeros_like(bound.prices[:1])))
    return bound.prices - next_price


def unused_stock_value(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> Tensor:
    """Return the value of the stock left over, a scalar."""
    left = bound.stock - redemptions(records, market, bound)
    return torch.where(bound.stock.isfinite(), bound.scarcity * left.clamp_min(0), 0.0).sum()


def redemptions(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> Tensor:
    """Return the expected redemptions of each offer in a season, [O+1]."""
    codec = market.world.catalogue.action_codec
    redeemed = torch.zeros_like(bound.stock)
    for r in records:
        redeemed.index_add_(0, codec.offer_of(r.action).flatten(), r.redeem_probability.flatten() / len(records))
    return redeemed


class ScoreTerms(NamedTuple):
    """Two accounts of what a policy earns over no contact, both at the bound's prices; means over seasons, money."""

    by_advantage: Tensor  #: Σ_t A⁰ − λ_t·spend − ν·redeemed of each customer [N]: exactly 0 where nothing is sent
    by_loss: Tensor  #: V^λ(s_1) − V⁰(s_1) − Σ_t ρ of each customer [N], of the same mean
    used: float  #: value of the budget and the stock used, as far as there was budget and stock

    def mixed(self, bound: Bound) -> Tensor:
        """Mix both accounts, [N], by the inverse variances of their scores over customers.

        The weights are estimated on the same customers. Both accounts have the same mean whatever is known before the
        season, so estimated weights bias the score by a few hundredths of its standard error at most (heavy tails, 200
        customers; less with more). Where nothing is sent the weight of `by_advantage`, of variance 0, is exactly 1.
        """
        of_advantage, of_loss = (
            (account - (account.sum() + self.used) / bound.gap * bound.gain).var(correction=0)
            for account in (self.by_advantage, self.by_loss)
        )
        weight_of_loss = of_advantage / (of_advantage + of_loss).clamp_min(TINY)
        return self.by_advantage - weight_of_loss * (self.by_advantage - self.by_loss)


def score_terms(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> ScoreTerms:
    """Account for a policy's seasons. Money and stock beyond what there was count as no gain, as in `decompose_gap`."""
    codec = market.world.catalogue.action_codec
    spend = torch.stack([r.expected_spend for r in records]).mean(0)
    priced = bound.prices[:, None] * spend
    scarce = torch.stack([bound.scarcity[codec.offer_of(r.action)] * r.redeem_probability for r in records]).mean(0)
    advantage = torch.stack([r.incremental_profit for r in records]).mean(0)
    lost = torch.stack([r.lost_profit for r in records]).mean(0)

    used_budget = bound.prices * torch.minimum(spend.sum(1), market.budget)
    if bound.rollover:
        used_budget = price_falls(bound) * torch.minimum(spend.sum(1).cumsum(0), market.budget.cumsum(0))
    used_stock = bound.scarcity * torch.minimum(redemptions(records, market, bound), bound.stock)
    return ScoreTerms(
        by_advantage=(advantage - priced - scarce).sum(0),
        by_loss=bound.gain - lost.sum(0),
        used=(used_budget.sum() + used_stock.sum()).item(),
    )


def share_of_gap(by_customer: Tensor, constant: float, bound: Bound) -> list[float]:
    """Return (Σ by_customer + constant) / (L − J(none)) with its 95 % interval over customers [N], by the delta method.

    Clearing fixes the spend of the whole population, so neither `constant` nor Σ λ·B varies with its members. Raises
    ValueError where L = J(none).
    """
    if bound.gap == 0:
        raise ValueError(
            "env.contact_rules, env.evaluation.customers: expected customers to whom a contact is allowed and pays, "
            "got none: the upper bound is no higher than no contact"
        )
    ratio = (by_customer.sum().item() + constant) / bound.gap
    residual = by_customer - ratio * bound.gain
    half_width = len(residual) * normal_half_width(residual, LEVEL).item() / bound.gap
    return [ratio, ratio - half_width, ratio + half_width]


def summarise_seasons(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> dict:
    """Summarise one policy: score with interval, both accounts by themselves, profit, money and contacts."""
    terms = score_terms(records, market, bound)
    score, *score_ci = share_of_gap(terms.mixed(bound), terms.used, bound)
    lost, low, high = share_of_gap(*decompose_gap(records, market, bound), bound)
    incremental_profit = torch.stack([r.incremental_profit.sum(0) for r in records]).mean(0)
    direct, *direct_ci = share_of_gap(incremental_profit, 0.0, bound)
    return {
        "score": score,
        "score_ci": score_ci,
        "score_direct": direct,
        "score_direct_ci": direct_ci,
        "score_by_loss": 1 - lost,
        "score_by_loss_ci": [1 - high, 1 - low],
        "incremental_profit": score * bound.gap,
        **summarise_spending(records, market),
        "lost": {**decompose_lost_profit(records, market, bound), "chance": 1 - lost - score},
    }


def summarise_spending(records: list[SeasonRecord], market: EvaluationMarket) -> dict:
    """Summarise money and contacts of one policy.

    The numbers are the share of the budget that the policy spends in expectation, the share of weeks (with roll-over:
    of seasons so far) whose realised spend exceeded the budget, the share of customers contacted, and the prices.
    """
    expected_spend = torch.stack([r.expected_spend.sum(1) for r in records])
    realised_spend = torch.stack([r.realised_spend.sum(1) for r in records])
    limit = market.budget
    if market.rollover:
        realised_spend, limit = realised_spend.cumsum(1), limit.cumsum(0)
    return {
        "spend_ratio": (expected_spend.sum(1).mean() / market.budget.sum().clamp_min(1e-12)).item(),
        "weeks_breached": (realised_spend > limit).double().mean().item(),
        "worst_week": (realised_spend / limit.clamp_min(1e-12)).max().item(),
        "contact_rate": torch.stack([(r.action > 0).double().mean() for r in records]).mean().item(),
        "prices": torch.stack([r.clearing_price for r in records]).mean(0).tolist(),
    }


def decompose_lost_profit(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> dict:
    """Split the lost profit by cause, segment, channel and week; only the causes include the unspent budget."""
    catalogue = market.world.catalogue
    codec, scale = catalogue.action_codec, bound.gap * len(records)
    action = torch.stack([r.action for r in records])
    planned_action = torch.stack([r.planned_action for r in records])
    habit = torch.stack([r.habit for r in records])
    lost_profit = torch.stack([r.lost_profit for r in records])

    def share(where):
        return (lost_profit * where).sum().item() / scale

    sent, planned = action > 0, planned_action > 0
    same_channel = codec.channel_of(action) == codec.channel_of(planned_action)
    channel = codec.channel_of(torch.where(planned, planned_action, action))
    unspent = unspent_budget_value(records, market, bound) / bound.gap
    causes = {
        "missed contact": share(~sent & planned),
        "needless contact": share(sent & ~planned),
        "wrong channel": share(sent & planned & ~same_channel),
        "wrong offer": share(sent & planned & same_channel),
        "unspent budget": unspent.sum().item(),
    }
    if bound.stock.isfinite().any():
        causes["unused stock"] = (unused_stock_value(records, market, bound) / bound.gap).item()
    return {
        "cause": causes,
        "segment": {name: share((habit >= low) & (habit <= high)) for name, (low, high) in SEGMENTS.items()},
        "channel": {name: share((channel == k) & (sent | planned)) for k, name in enumerate(catalogue.channels)},
        "week": (lost_profit.sum((0, 2)) / scale).tolist(),
        "week_unspent": unspent.tolist(),
    }


def paired_difference(
    ours: list[SeasonRecord], theirs: list[SeasonRecord], market: EvaluationMarket, bound: Bound
) -> list[float]:
    """Return the difference of two scores with its interval, customer by customer under the same random numbers."""
    our_terms = score_terms(ours, market, bound)
    their_terms = score_terms(theirs, market, bound)
    by_customer = our_terms.mixed(bound) - their_terms.mixed(bound)
    return share_of_gap(by_customer, our_terms.used - their_terms.used, bound)
