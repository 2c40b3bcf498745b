"""Decisions of an arm: drawn at private prices, drawn uniformly, or as the shop's own rules have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.plan.money_rules import MoneyRule, Totals
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.logging_policies import reach_probabilities
from envs.offers.world.catalogue import Catalogue

NEVER = torch.nan  # price of a step that does not exist
TRIED = 24  # exponents of Chernoff's bound


class Decisions(NamedTuple):
    """What was decided for N customers, [N] each."""

    action: Tensor  #: flat index, int64
    propensity: Tensor  #: of the action under the arm's rule, float64
    own_price: Tensor  #: the price below which the action is held; NaN for nothing, and where no price decides
    next_action: Tensor  #: the next action on the customer's ladder, 0 where nothing follows
    next_price: Tensor  #: at which it would be; NaN where nothing follows
    cut: Tensor  #: whether the lot would have sent something that holds more than there is, bool


def undecided(n: int) -> Decisions:
    """Return the decision "send nothing" for n customers, with propensity 1."""
    nothing = torch.zeros(n, dtype=torch.long)
    never = torch.full((n,), NEVER)
    certain = torch.ones(n, dtype=torch.float64)
    return Decisions(nothing, certain, never, nothing.clone(), never.clone(), torch.zeros(n, dtype=torch.bool))


def at_private_price(steps: Increments, price: float, sigma: float, u: Tensor) -> Decisions:
    """Decide at the private prices price·exp(σξ), where ξ is the normal quantile of the customer's lot u [N].

    A step is bought where u lies below the probability of reaching it. The propensity is therefore exact. Prices of
    steps fall along a row. `price` may be inf: nothing is bought.
    """
    n, k = steps.price.shape
    rows = torch.arange(n)
    below = reach_probabilities(steps, torch.full((n,), price), sigma)
    bounds = torch.cat((torch.ones(n, 1).double(), below, torch.zeros(n, 1).double()), 1)
    bought = (u[:, None] < below).sum(1)
    held, follows = (bought - 1).clamp_min(0), bought.clamp_max(k - 1)
    real = (bought < k) & (steps.price[rows, follows] > -torch.inf)
    return Decisions(
        torch.where(bought > 0, steps.action[rows, held], 0),
        bounds[rows, bought] - bounds[rows, bought + 1],
        torch.where(bought > 0, steps.price[rows, held], NEVER),
        torch.where(real, steps.action[rows, follows], 0),
        torch.where(real, steps.price[rows, follows], NEVER),
        torch.zeros(n, dtype=torch.bool),
    )


def kept_within(
    decisions: Decisions, nothing: Tensor, charge: Tensor, u: Tensor, money: float, odds: float
) -> Decisions:
    """Keep the decisions [n] whose charges [n] lie within the money, by rising lots u [n]; nothing for all others.

    `odds` bound the probability that lots leave anything to cut, so that propensities are exact but for it. Who is cut
    has the probability of nothing, `nothing` [n], or the odds where these are higher, and no next step: no price brings
    back what was cut.
    """
    if float(charge.sum()) <= money:
        return decisions
    order = u.argsort()
    cut = torch.zeros(len(u), dtype=torch.bool)
    cut[order] = charge[order].cumsum(0) > money
    cut &= charge > 0
    none = undecided(len(u))._replace(propensity=nothing.clamp_min(odds), cut=torch.ones_like(cut))
    return Decisions(*(torch.where(cut, x, kept) for x, kept in zip(none, decisions)))


def passing_odds(probability: Tensor, use: Tensor, limit: float) -> float:
    """Bound the probability that independent draws use more than a limit: each row [n, K] is one, of what `use` says.

    This is Chernoff's bound: E exp(t·use) / exp(t·limit), at the t of a grid that makes it lowest.
    """
    undecided_rows = (probability.amax(1) < 1).numpy()
    spare = limit - float((probability * use).sum(1)[~undecided_rows].sum())
    probability, use = probability[undecided_rows], use[undecided_rows]
    if not len(use):
        return 0.0 if spare >= 0 else 1.0
    scale = float(use.max())
    if scale == 0:
        return 0.0
    bounds = [
        float((probability * (use * t).exp()).sum(1).log().sum()) - t * spare
        for t in (np.geomspace(1e-3, 10.0, TRIED) / scale).tolist()
    ]
    return min(math.exp(min(bounds)), 1.0)


class PairTotals(NamedTuple):
    """What sending each pair to each customer uses, float64 [N, P]."""

    spend: Tensor
    variance: Tensor
    charge: Tensor

    @classmethod
    def of(cls, spend: Tensor, catalogue: Catalogue) -> PairTotals:
        """Return the use of money of pairs whose expected spend is `spend` [N, P]; the catalogue is in float64."""
        offer, channel = catalogue.action_codec.decode(torch.arange(spend.shape[1]))
        face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
        given = torch.minimum((spend.double() - message).clamp_min(0), face)
        return cls(spend.double(), given * (face - given), (face + message).expand_as(spend))

    def sums(self, weight: Tensor) -> Totals:
        """Return the sums over customers who draw each pair with the probability `weight` [N, P]."""
        zero = np.zeros(())
        spend, variance, charge = (np.asarray((x * weight).sum()) for x in self)
        return Totals(spend, variance, charge, zero, self.lots(self.spend, weight), self.lots(self.charge, weight))

    @staticmethod
    def lots(x: Tensor, weight: Tensor) -> np.ndarray:
        """Return the variance that draws of a pair bring to a sum of x [N, P]."""
        return np.asarray(((x.square() * weight).sum(1) - (x * weight).sum(1).square()).sum())


def share_of_draws(
    pairs: PairTotals, mask: Tensor, weight_at: Callable[[float], Tensor], money: float, rule: MoneyRule
) -> float:
    """Return the share of cases in which a pair can be drawn so that money suffices.

    The pairs of the mask [N, P] are drawn alike, but for the weight [P] that `weight_at` gives them at a share.
    """

    def fits(share: float) -> bool:
        uniform = mask * weight_at(share).float() / mask.sum(1, keepdim=True)
        spend, variance, charge = ((x * uniform).sum(1) for x in pairs)
        squares = [(x.square() * uniform).sum() for x in (pairs.spend, pairs.charge)]
        lots = (share * y - (share * x).square().sum() for x, y in zip((spend, charge), squares))
        sums = (share * spend.sum(), share * variance.sum(), share * charge.sum(), torch.zeros(()), *lots)
        return bool(rule.used(Totals(*(x.double().numpy() for x in sums))) <= money)

    if money <= 0 or not len(mask):
        return 0.0
    if fits(1.0):
        return 1.0
    share, step = 0.0, 1.0
    while step > 1e-9:
        step /= 2
        share += step if fits(share + step) else 0.0
    return share


def uniformly(mask: Tensor, weight: Tensor, u: Tensor, share: float) -> Decisions:
    """Draw among all pairs of the mask [N, P] alike, but for their weight [P], in a share of cases; else send nothing.

    Every pair that the rules allow, and that has a weight, has a probability above 0 wherever the share has one.
    """
    each = share / mask.sum(1).double()
    weights = mask * weight
    weights[:, 0] = 0
    reach = weights.cumsum(1)
    number = torch.where(each > 0, u / each.clamp_min(1e-300), torch.inf)  # u lies in the part of one pair
    chosen = (reach > number[:, None]).to(torch.uint8).argmax(1)
    drawn = number < reach[:, -1]
    action = torch.where(drawn, chosen, 0)
    return undecided(len(u))._replace(
        action=action, propensity=torch.where(drawn, each * weight[chosen], 1 - each * reach[:, -1])
    )


def by_redemption(spend: Tensor, mask: Tensor, catalogue: Catalogue) -> tuple[Tensor, Tensor]:
    """Return each customer's pair of the highest probability of a redemption, [N], and that probability.

    This is the trade's response model: whoever is likeliest to redeem comes first, whether or not the offer changes
    anything. The catalogue is in float64.
    """
    offer, channel = catalogue.action_codec.decode(torch.arange(spend.shape[1]))
    face, message = catalogue.value[offer], catalogue.cost[channel] * (offer > 0)
    chance = torch.where(face > 0, (spend.double() - message) / face.clamp_min(1e-12), 0.0)
    chance = torch.where(mask & (offer > 0), chance, -1.0)
    best, action = chance.max(1)
    return torch.where(best >= 0, action, 0), best


def in_turn(wanted: Tensor, rank: Tensor, pairs: PairTotals, money: float, rule: MoneyRule) -> Tensor:
    """Keep the wanted actions [N], by falling rank [N], that the money covers; nothing for all others."""
    order = rank.argsort(descending=True, stable=True)
    order = order[wanted[order] > 0]
    each = (x[order, wanted[order]].cumsum(0).numpy() for x in pairs)
    spend, variance, charge = each
    zeros = np.zeros(len(order))
    fits = rule.used(Totals(spend, variance, charge, zeros, zeros, zeros)) <= money
    covered = order[: len(order) if fits.all() else int(fits.argmin())]
    kept = torch.zeros_like(wanted)
    kept[covered] = wanted[covered]
    return kept
