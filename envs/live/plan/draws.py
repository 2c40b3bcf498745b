"""Decisions of an arm: drawn at private prices, drawn uniformly, or as the shop's own rules have them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.plan.money_rules import MoneyRule, Totals
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.logging_policies import reach_probabilities
from envs.offers.world.catalogue import Catalogue

NEVER = torch.nan  # price of a step that does not exist


class Decisions(NamedTuple):
    """What was decided for N customers, [N] each."""

    action: Tensor  #: flat index, int64
    propensity: Tensor  #: of the action under the arm's rule, float64
    own_price: Tensor  #: the price below which the action is held; NaN for nothing, and where no price decides
    next_action: Tensor  #: what the customer would be bought next, 0 where nothing follows
    next_price: Tensor  #: at which it would be; NaN where nothing follows


def undecided(n: int) -> Decisions:
    """Return nothing for n customers, with certainty."""
    nothing = torch.zeros(n, dtype=torch.long)
    never = torch.full((n,), NEVER)
    return Decisions(nothing, torch.ones(n, dtype=torch.float64), never, nothing.clone(), never.clone())


def at_private_price(steps: Increments, price: float, sigma: float, u: Tensor) -> Decisions:
    """Decide at the private prices price·exp(σξ), where ξ is the normal quantile of the customer's lot u [N].

    A step is bought where u lies below the probability of reaching it, which is therefore exact. Prices of steps fall
    along a row. `price` may be inf: nothing is bought.
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
    )


def less(money: float, excess: float) -> float:
    """Return less money to clear after lots that held `excess` more than there is: a little less at least."""
    return max(min(money - excess, 0.999 * money - 1e-9), 0.0)


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
        """Return the sums over customers, by the weight [N, P] of each pair."""
        zero = np.zeros(())
        spend, variance, charge = (np.asarray((x * weight).sum()) for x in self)
        return Totals(spend, variance, charge, zero, zero)


def uniformly(pairs: PairTotals, mask: Tensor, u: Tensor, money: float, rule: MoneyRule) -> tuple[Decisions, float]:
    """Draw among all pairs of the mask [N, P] alike, in a share of cases that the money covers; else send nothing.

    Returns the share, too. Every pair that the rules allow has a probability above 0 wherever there is money. What
    `reserved` holds for the drawn pairs never passes the money.
    """
    left = money
    while True:
        drawn, share = _uniformly(pairs, mask, u, left, rule)
        held = float(pairs.charge.gather(1, drawn.action[:, None])[drawn.action > 0].sum())
        if rule.name != "reserved" or held <= money:
            return drawn, share
        left = less(left, held - money)


def _uniformly(pairs: PairTotals, mask: Tensor, u: Tensor, money: float, rule: MoneyRule) -> tuple[Decisions, float]:
    allowed = mask.sum(1, keepdim=True).double()
    totals = pairs.sums(mask / allowed)
    share, step = 0.0, 1.0
    fits_all = money > 0 and bool(rule.used(totals) <= money)
    while not fits_all and step > 1e-9:
        step /= 2
        if rule.used(Totals(*(x * (share + step) for x in totals))) <= money:
            share += step
    share = 1.0 if fits_all else share
    each = share / allowed[:, 0]
    contacts = mask.clone()
    contacts[:, 0] = False
    number = torch.where(each > 0, u / each.clamp_min(1e-300), torch.inf)  # of the contact whose share holds u
    drawn = number < contacts.sum(1)
    rank = contacts.long().cumsum(1) - 1
    chosen = (contacts & (rank == torch.where(drawn, number, 0).long()[:, None])).to(torch.uint8).argmax(1)
    base = undecided(len(u))
    nothing = 1 - each * contacts.sum(1)
    return base._replace(action=torch.where(drawn, chosen, 0), propensity=torch.where(drawn, each, nothing)), share


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
    fits = rule.used(Totals(spend, variance, charge, zeros, zeros)) <= money
    covered = order[: len(order) if fits.all() else int(fits.argmin())]
    kept = torch.zeros_like(wanted)
    kept[covered] = wanted[covered]
    return kept
