"""What each arm decides for its own customers, within its own money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.plan import draws
from envs.live.plan.arms import BAU, RANDOM, RL, Arms, money_by_arm
from envs.live.plan.clearing import Cleared, Demand, clear
from envs.live.plan.deciding import Customers, PolicyPackage
from envs.live.plan.draws import Decisions, PairTotals, undecided
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.scoring import Scored, score_customers
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.logging_policies import reach_probabilities
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
    block: int  #: customers that are scored at once


class ArmPlan(NamedTuple):
    """Decisions on an arm's customers, those of them who may be sent something."""

    rows: Tensor  #: of the table, int64 [n]
    decisions: Decisions
    expected: float  #: spend, over the lots as well
    odds: float  #: bound of the probability that lots pass the money of `reserved`, so that some are cut


@dataclass(frozen=True)
class PlannedWeek:
    """The customers of a week with their arms, scores, lots and money, from which the arms draw."""

    package: PolicyPackage
    customers: Customers
    setting: PlanSetting
    arm: np.ndarray  #: index into ARMS, uint8 [N]
    scored: Scored  #: of the E customers who may be sent something
    money: dict[int, float]  #: by arm
    u: Tensor  #: lots, [N]

    @classmethod
    def of(cls, package: PolicyPackage, customers: Customers, factor: Tensor, setting: PlanSetting) -> PlannedWeek:
        """Draw arms and lots by the customers' ids, and score the customers."""
        held_out = torch.zeros(len(customers), dtype=torch.bool)
        for x in customers.contact_policy.exclusions:
            if x.reason == "holdout":
                held_out |= x.excluded
        arm = setting.arms.of(customers.ids, held_out.numpy())
        money = money_by_arm(setting.money, arm, customers.eligible.numpy())
        u = hash_uniform([f"{customers.past.week}:{name}" for name in customers.ids], setting.salt)
        scored = score_customers(package, customers, factor, arm, setting.block)
        return cls(package, customers, setting, arm, scored, money, u)

    def of_arm(self, arm: int) -> tuple[Tensor, Tensor]:
        """Return the places of an arm's customers among those who were scored, and their rows in the table."""
        places = torch.from_numpy(np.flatnonzero(self.arm[self.scored.eligible] == arm))
        return places, torch.from_numpy(self.scored.eligible)[places]

    def pairs(self, places: Tensor) -> PairTotals:
        """Return what each pair uses of the money, for some of the scored customers."""
        return PairTotals.of(self.scored.spend[places], self.package.catalogue)


def by_policy(week: PlannedWeek) -> tuple[ArmPlan, Cleared, Demand]:
    """Clear the policy's money, and draw a decision for each customer at a private price.

    The price of money follows from expectations alone, before any lot is drawn, so that propensities are exact.
    """
    catalogue, setting = week.package.catalogue, week.setting
    places, rows = week.of_arm(RL)
    steps = Increments(*(x[places] for x in week.scored.steps))
    demand = Demand.of(steps, catalogue)
    money = week.money[RL]
    cleared = clear(demand, money, setting.rule, setting.sigma, float(week.package.prices[-1]))
    drawn = draws.at_private_price(steps, cleared.price, setting.sigma, week.u[rows])
    odds = 0.0
    if setting.rule.holds_face_value and setting.sigma > 0:
        reached = reach_probabilities(steps, torch.full((len(places),), cleared.price), setting.sigma)
        bounds = torch.cat((torch.ones(len(places), 1).double(), reached, torch.zeros(len(places), 1).double()), 1)
        held = torch.cat((torch.zeros(len(places), 1).double(), charges(steps.action, catalogue)), 1)
        odds = draws.passing_odds(bounds[:, :-1] - bounds[:, 1:], held, money)
        nothing = 1 - reached[:, 0]
        drawn = draws.kept_within(drawn, nothing, charges(drawn.action, catalogue), week.u[rows], money, odds)
    return ArmPlan(rows, drawn, float(cleared.totals.spend), odds), cleared, demand


def at_random(week: PlannedWeek) -> tuple[ArmPlan, float]:
    """Draw any pair that the rules allow, in the share of cases that the arm's money covers; return the share too."""
    catalogue, rule = week.package.catalogue, week.setting.rule
    places, rows = week.of_arm(RANDOM)
    pairs, mask, u = week.pairs(places), week.customers.options.action_mask[rows], week.u[rows]
    money = week.money[RANDOM]
    share = draws.share_of_draws(pairs, mask, money, rule)
    drawn = draws.uniformly(mask, u, share)
    uniform = mask / mask.sum(1, keepdim=True).double()
    odds = 0.0
    if rule.holds_face_value:
        probability = share * uniform
        probability[:, 0] += 1 - share
        odds = draws.passing_odds(probability, pairs.charge, money)
        drawn = draws.kept_within(drawn, probability[:, 0], charges(drawn.action, catalogue), u, money, odds)
    return ArmPlan(rows, drawn, share * float(pairs.sums(uniform).spend), odds), share


def by_the_shop(week: PlannedWeek) -> tuple[ArmPlan, int]:
    """Take the shop's own decisions in turn until the arm's money ends; return how many the contact rules refuse."""
    catalogue, shop_rule, ids = week.package.catalogue, week.setting.shop_rule, week.customers.ids
    places, rows = week.of_arm(BAU)
    spend, mask = week.scored.spend[places], week.customers.options.action_mask[rows]
    wanted, rank, refused = shop_rule.wanted([ids[k] for k in rows.tolist()], spend, mask, catalogue)
    action = draws.in_turn(wanted, rank, week.pairs(places), week.money[BAU], week.setting.rule)
    barred = np.flatnonzero((week.arm == BAU) & ~week.customers.eligible.numpy())
    refused += shop_rule.asks_for([ids[k] for k in barred.tolist()])
    expected = float(spend.gather(1, action[:, None]).double().sum())
    return ArmPlan(rows, undecided(len(rows))._replace(action=action), expected, 0.0), refused


def charges(action: Tensor, catalogue: Catalogue) -> Tensor:
    """Return the face value and the message's cost of flat actions, in their shape; the catalogue is in float64."""
    offer, channel = catalogue.action_codec.decode(action)
    return catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)
