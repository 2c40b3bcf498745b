"""What a policy earned, where it lost, and how sure that is: from records of seasons to numbers."""
from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.evaluation.simulation import Market, Record
from rlcore.ope.intervals import LEVEL, normal_half_width

SEGMENTS = {"new or lapsing": (0, 1), "regular": (2, 3), "established": (4, 5)}  # by habit before the week


def losses(records: list[Record], market: Market, bound: Bound) -> tuple[Tensor, float]:
    """Split L − J(π) = E Σ ρ + Σ λ_t·(B_t − E spend_t) + Σ ν_o·(stock_o − E redeemed_o): Σ ρ of each customer [N], and
    what was left unused at its price.

    Money spent beyond a week's budget counts as no gain: who misjudges what messages cost must not score by it.
    """
    idle = unspent(records, market, bound).sum() + unredeemed(records, market, bound)
    return torch.stack([r.lost.sum(0) for r in records]).mean(0), idle.item()


def unspent(records: list[Record], market: Market, bound: Bound) -> Tensor:
    """What each week's unspent budget would have been worth, [T]; with roll-over only what no later week could use."""
    left = market.budget - torch.stack([r.spend.sum(1) for r in records]).mean(0)
    if not bound.rollover:
        return bound.prices * left.clamp_min(0)
    return (bound.prices - torch.cat((bound.prices[1:], torch.zeros_like(left[:1])))) * left.cumsum(0).clamp_min(0)


def unredeemed(records: list[Record], market: Market, bound: Bound) -> Tensor:
    """What the stock left over would have been worth."""
    stocked, codec = bound.stock.isfinite(), market.world.catalogue.action_codec
    taken = torch.zeros_like(bound.stock)
    for r in records:
        taken.index_add_(0, codec.offer_of(r.action).flatten(), r.redeem.flatten() / len(records))
    return torch.where(stocked, bound.scarcity * (bound.stock - taken).clamp_min(0), 0.0).sum()


def share_of_gap(each: Tensor, rest: float, bound: Bound) -> list[float]:
    """(Σ each + rest) / (L − J(none)) with its 95 % interval over customers [N], by the delta method.

    Clearing pins what the population spends as a whole, so neither `rest` nor Σ λ·B varies with who is in it.
    """
    ratio = (each.sum().item() + rest) / bound.gap
    residual = each - ratio * bound.gain
    half = len(each) * normal_half_width(residual, LEVEL).item() / bound.gap
    return [ratio, ratio - half, ratio + half]


def summary(records: list[Record], market: Market, bound: Bound) -> dict:
    """Score with interval, the direct score as its check, profit, money and contacts of one policy."""
    lost, low, high = share_of_gap(*losses(records, market, bound), bound)
    gained = torch.stack([r.gained.sum(0) for r in records]).mean(0)
    direct, *direct_ci = share_of_gap(gained, 0.0, bound)
    paid, spend = (torch.stack([getattr(r, name).sum(1) for r in records]) for name in ("paid", "spend"))
    limit = market.budget
    if market.rollover:
        paid, limit = paid.cumsum(1), limit.cumsum(0)
    return {
        "score": 1 - lost, "score_ci": [1 - high, 1 - low], "score_direct": direct, "score_direct_ci": direct_ci,
        "incremental_profit": (1 - lost) * bound.gap,
        "spend_ratio": (spend.sum(1).mean() / market.budget.sum().clamp_min(1e-12)).item(),
        "weeks_breached": (paid > limit).double().mean().item(),
        "worst_week": (paid / limit.clamp_min(1e-12)).max().item(),
        "contact_rate": torch.stack([(r.action > 0).double().mean() for r in records]).mean().item(),
        "prices": torch.stack([r.price for r in records]).mean(0).tolist(),
        "lost": lost_profit(records, market, bound)}


def lost_profit(records: list[Record], market: Market, bound: Bound) -> dict:
    """Split 1 − score by cause, segment, channel and week; each adds up to it (the unspent budget is a cause alone)."""
    catalogue = market.world.catalogue
    codec, scale = catalogue.action_codec, bound.gap * len(records)
    action, planned, habit, lost = (torch.stack([getattr(r, name) for r in records])
                                    for name in ("action", "planned", "habit", "lost"))

    def share(where):
        return (lost * where).sum().item() / scale

    sent, meant = action > 0, planned > 0
    same_channel = codec.channel_of(action) == codec.channel_of(planned)
    channel = codec.channel_of(torch.where(meant, planned, action))
    idle = unspent(records, market, bound) / bound.gap
    stock = {"unused stock": (unredeemed(records, market, bound) / bound.gap).item()} if bound.stock.isfinite().any() else {}
    weeks = lost.sum((0, 2)) / scale
    return {
        "cause": {"missed contact": share(~sent & meant), "needless contact": share(sent & ~meant),
                  "wrong channel": share(sent & meant & ~same_channel), "wrong offer": share(sent & meant & same_channel),
                  "unspent budget": idle.sum().item(), **stock},
        "segment": {name: share((habit >= low) & (habit <= high)) for name, (low, high) in SEGMENTS.items()},
        "channel": {name: share((channel == k) & (sent | meant)) for k, name in enumerate(catalogue.channels)},
        "week": weeks.tolist(), "week_unspent": idle.tolist()}


def paired(ours: list[Record], theirs: list[Record], market: Market, bound: Bound) -> list[float]:
    """Difference of two scores with its interval, customer by customer under the same random numbers."""
    (a, unspent_a), (b, unspent_b) = losses(ours, market, bound), losses(theirs, market, bound)
    return share_of_gap(b - a, unspent_b - unspent_a, bound)
