"""Turn records of seasons into numbers: what a policy earned, where it lost profit, and intervals."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord
from envs.offers.planning.lagrangian_bound import Bound
from rlcore.ope.intervals import LEVEL, normal_half_width

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
    fall = bound.prices - torch.cat((bound.prices[1:], torch.zeros_like(unspent[:1])))
    return fall * unspent.cumsum(0).clamp_min(0)


def unused_stock_value(records: list[SeasonRecord], market: EvaluationMarket, bound: Bound) -> Tensor:
    """Return the value of the stock left over, a scalar."""
    is_stocked, codec = bound.stock.isfinite(), market.world.catalogue.action_codec
    redeemed = torch.zeros_like(bound.stock)
    for r in records:
        redeemed.index_add_(0, codec.offer_of(r.action).flatten(), r.redeem_probability.flatten() / len(records))
    return torch.where(is_stocked, bound.scarcity * (bound.stock - redeemed).clamp_min(0), 0.0).sum()


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
    """Summarise one policy: score with interval, the direct score as its check, profit, money and contacts."""
    lost, low, high = share_of_gap(*decompose_gap(records, market, bound), bound)
    incremental_profit = torch.stack([r.incremental_profit.sum(0) for r in records]).mean(0)
    direct, *direct_ci = share_of_gap(incremental_profit, 0.0, bound)
    return {
        "score": 1 - lost,
        "score_ci": [1 - high, 1 - low],
        "score_direct": direct,
        "score_direct_ci": direct_ci,
        "incremental_profit": (1 - lost) * bound.gap,
        **summarise_spending(records, market),
        "lost": decompose_lost_profit(records, market, bound),
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
    """Split 1 − score by cause, segment, channel and week; only the causes include the unspent budget."""
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
    our_loss, our_unused = decompose_gap(ours, market, bound)
    their_loss, their_unused = decompose_gap(theirs, market, bound)
    return share_of_gap(their_loss - our_loss, their_unused - our_unused, bound)
