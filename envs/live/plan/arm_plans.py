"""What each arm decides for its own customers, within its own money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from envs.live.plan import draws
from envs.live.plan.arms import BAU, RANDOM, RL, Arms, money_by_arm
from envs.live.plan.channel_capacity import (
    Capacity,
    WithinCapacity,
    channels_of,
    clear_within,
    drawn_weight,
    first_of_each_channel,
    holding,
    through_channels,
)
from envs.live.plan.clearing import Cleared, Demand, clear
from envs.live.plan.deciding import Customers, PolicyPackage
from envs.live.plan.draws import Decisions, PairTotals, undecided
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.scoring import Scored, score_customers
from envs.offers.planning.knapsack import Increments
from envs.offers.populations.base import hash_uniform
from envs.offers.world.catalogue import Catalogue


@dataclass(frozen=True)
class PlanSetting:
    """What a week is planned by, apart from customers and package."""

    money: float
    rule: MoneyRule
    sigma: float  #: standard deviation of the logarithm of private prices
    salt: int  #: of the lots of decisions
    arms: Arms
    shop_rule: ShopRule
    capacity: Capacity
    block: int  #: customers that are scored at once


class ArmPlan(NamedTuple):
    """Decisions on an arm's customers, those of them who may be sent something."""

    rows: Tensor  #: of the table, int64 [n]
    decisions: Decisions
    expected: float  #: spend, over the lots as well
    odds: float  #: bound of the probability that lots pass the money of `reserved` or a capacity, so that some are cut
    no_room: Tensor  #: the flat action that was to be sent, and that its channel does not carry; 0 for none, [n]


@dataclass(frozen=True)
class PlannedWeek:
    """The customers of a week with their arms, scores, lots and money, from which the arms draw."""

    package: PolicyPackage
    customers: Customers
    setting: PlanSetting
    arm: np.ndarray  #: index into ARMS, uint8 [N]
    scored: Scored  #: of the E customers who may be sent something
    money: dict[int, float]  #: by arm
    capacity: dict[int, Capacity]  #: by arm
    u: Tensor  #: lots, [N]

    @classmethod
    def of(cls, package: PolicyPackage, customers: Customers, factor: Tensor, setting: PlanSetting) -> PlannedWeek:
        """Draw arms and lots by the customers' ids, and score the customers."""
        held_out = torch.zeros(len(customers), dtype=torch.bool)
        for x in customers.contact_policy.exclusions:
            if x.reason == "holdout":
                held_out |= x.excluded
        arm = setting.arms.of(customers.ids, held_out.numpy())
        money, share = (money_by_arm(x, arm, customers.eligible.numpy()) for x in (setting.money, 1.0))
        capacity = {k: setting.capacity.share(x) for k, x in share.items()}
        u = hash_uniform([f"{customers.past.week}:{name}" for name in customers.ids], setting.salt)
        barred = setting.capacity.barred(package.catalogue)
        scored = score_customers(package, customers, factor, arm, setting.block, barred)
        return cls(package, customers, setting, arm, scored, money, capacity, u)

    def of_arm(self, arm: int) -> tuple[Tensor, Tensor]:
        """Return the places of an arm's customers among those who were scored, and their rows in the table."""
        places = torch.from_numpy(np.flatnonzero(self.arm[self.scored.eligible] == arm))
        return places, torch.from_numpy(self.scored.eligible)[places]

    def pairs(self, places: Tensor) -> PairTotals:
        """Return what each pair uses of the money, for some of the scored customers."""
        return PairTotals.of(self.scored.spend[places], self.package.catalogue)


def by_policy(week: PlannedWeek) -> tuple[ArmPlan, WithinCapacity]:
    """Clear the policy's money and channels, and draw a decision for each customer at a private price.

    Prices of money and of messages follow from expectations alone, before any lot is drawn, so that propensities are
    exact.
    """
    catalogue, setting = week.package.catalogue, week.setting
    places, rows = week.of_arm(RL)
    own, *without = (Increments(*(x[places] for x in ladder)) for ladder in (week.scored.steps, *week.scored.without))
    money, capacity, u = week.money[RL], week.capacity[RL], week.u[rows]

    def price_of_money(demand: Demand) -> Cleared:
        return clear(demand, money, setting.rule, setting.sigma, float(week.package.prices[-1]))

    within = clear_within(own, without, capacity, catalogue, setting.sigma, price_of_money)
    steps, price = within.steps, within.cleared.price
    drawn = draws.at_private_price(steps, price, setting.sigma, u)
    expected, odds, no_room = float(within.cleared.totals.spend), 0.0, torch.zeros_like(drawn.action)
    may_pass = setting.rule.holds_face_value and setting.sigma > 0  # without private prices lots decide nothing
    if may_pass or capacity.limited:
        wanted = draws.at_private_price(own, price, setting.sigma, u).action if capacity.limited else drawn.action
        lots = Lots(pad(steps.action, (1, 0)), holding(steps, price, setting.sigma), u)
        drawn, odds, no_room = cut_to_limits(drawn, wanted, lots, money if may_pass else None, capacity, catalogue)
    return ArmPlan(rows, drawn, expected, odds, no_room), within


def at_random(week: PlannedWeek) -> tuple[ArmPlan, float]:
    """Draw any pair that the rules allow, in the share of cases that the arm's money covers; return the share too.

    A channel that carries too little is drawn in a smaller share.
    """
    catalogue, rule = week.package.catalogue, week.setting.rule
    places, rows = week.of_arm(RANDOM)
    pairs, mask, u = week.pairs(places), week.customers.options.action_mask[rows], week.u[rows]
    money, capacity = week.money[RANDOM], week.capacity[RANDOM]
    share = draws.share_of_draws(pairs, mask, lambda x: drawn_weight(mask, x, capacity, catalogue), money, rule)
    weight = drawn_weight(mask, share, capacity, catalogue)
    drawn = draws.uniformly(mask, weight, u, share)
    uniform = mask * weight / mask.sum(1, keepdim=True).double()
    probability = share * uniform
    probability[:, 0] = 1 - probability[:, 1:].sum(1)
    lots = Lots(torch.arange(mask.shape[1]).expand_as(mask), probability, u)
    held = money if rule.holds_face_value else None
    drawn, odds, no_room = cut_to_limits(drawn, drawn.action, lots, held, capacity, catalogue)
    return ArmPlan(rows, drawn, share * float(pairs.sums(uniform).spend), odds, no_room), share


def by_the_shop(week: PlannedWeek) -> tuple[ArmPlan, int]:
    """Take the shop's own decisions in turn until the arm's money ends; return how many the contact rules refuse."""
    catalogue, shop_rule, ids = week.package.catalogue, week.setting.shop_rule, week.customers.ids
    places, rows = week.of_arm(BAU)
    spend, mask = week.scored.spend[places], week.customers.options.action_mask[rows]
    wanted, rank, refused = shop_rule.wanted([ids[k] for k in rows.tolist()], spend, mask, catalogue)
    carried_by = first_of_each_channel(wanted, rank, week.capacity[BAU], catalogue)
    action = draws.in_turn(carried_by, rank, week.pairs(places), week.money[BAU], week.setting.rule)
    barred = np.flatnonzero((week.arm == BAU) & ~week.customers.eligible.numpy())
    refused += shop_rule.asks_for([ids[k] for k in barred.tolist()])
    expected = float(spend.gather(1, action[:, None]).double().sum())
    no_room = torch.where(carried_by != wanted, wanted, 0)
    return ArmPlan(rows, undecided(len(rows))._replace(action=action), expected, 0.0, no_room), refused


class Lots(NamedTuple):
    """What lots can decide for n customers: M actions each, the first of which is nothing."""

    action: Tensor  #: int64 [n, M]
    probability: Tensor  #: float64 [n, M]
    u: Tensor  #: the lots, [n]


def cut_to_limits(
    drawn: Decisions, wanted: Tensor, lots: Lots, money: float | None, capacity: Capacity, catalogue: Catalogue
) -> tuple[Decisions, float, Tensor]:
    """Cut the decisions [n] that the money or a channel does not carry, the last lots first.

    The money is that of face values, None where expectations hold it. Returns also a bound of the odds that lots leave
    anything to cut, and the `wanted` actions that their channels do not carry, 0 for all others, [n].
    """
    nothing, odds = lots.probability[:, 0], 0.0
    if money is not None:
        odds = draws.passing_odds(lots.probability, charges(lots.action, catalogue), money)
        drawn = draws.kept_within(drawn, nothing, charges(drawn.action, catalogue), lots.u, money, odds)
    through = through_channels(lots.action, lots.probability, catalogue)
    drawn, cut_odds = carried(drawn, through, nothing, lots.u, capacity, catalogue)
    return drawn, odds + cut_odds, refused_by(capacity, wanted, drawn, catalogue)


def carried(
    drawn: Decisions, chance: Tensor, nothing: Tensor, u: Tensor, capacity: Capacity, catalogue: Catalogue
) -> tuple[Decisions, float]:
    """Cut the decisions [n] that their channels do not carry, the last lots first; return a bound of the odds too.

    chance [n, C] is that of a message through each channel, and nothing [n] that of none.
    """
    odds = 0.0
    for k in capacity.limited:
        through = chance[:, k]
        messages = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(len(through), 2)
        cut_odds = draws.passing_odds(torch.stack((1 - through, through), 1), messages, capacity.of[k])
        sent = (channels_of(catalogue)[drawn.action] == k).double()
        kept = draws.kept_within(drawn, nothing, sent, u, capacity.of[k], cut_odds)
        drawn, odds = kept._replace(cut=drawn.cut), odds + cut_odds
    return drawn, min(odds, 1.0)


def refused_by(capacity: Capacity, wanted: Tensor, drawn: Decisions, catalogue: Catalogue) -> Tensor:
    """Return the wanted actions [n] that a channel's limit kept from being sent, 0 for all others."""
    is_limited = capacity.pairs(catalogue)[wanted]
    return torch.where(is_limited & (drawn.action != wanted) & ~drawn.cut, wanted, 0)


def charges(action: Tensor, catalogue: Catalogue) -> Tensor:
    """Return the face value and the message's cost of flat actions, in their shape; the catalogue is in float64."""
    offer, channel = catalogue.action_codec.decode(action)
    return catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)
