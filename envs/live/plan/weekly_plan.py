"""The plan of a week: score, clear each arm's money, draw, and say why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.plan import draws
from envs.live.plan.arms import ARMS, BAU, RANDOM, RL, Arms, money_by_arm
from envs.live.plan.clearing import Cleared, Demand, clear
from envs.live.plan.deciding import Customers, PolicyPackage, best_refused, score_customers
from envs.live.plan.draws import Decisions, PairTotals, undecided
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.output.plan_columns import plan_columns
from envs.offers.planning.knapsack import Increments
from envs.offers.populations.base import hash_uniform
from envs.offers.world.catalogue import Catalogue


class PlanViolation(Exception):
    """A decision that the contact rules refuse got past the policy's own mask."""


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


class ArmResult(NamedTuple):
    """What an arm's money became."""

    customers: int
    eligible: int
    contacts: int
    money: float
    spend: float  #: expected, of what was drawn
    expected: float  #: expected, over the lots as well
    face: float  #: what a ledger must reserve


@dataclass
class WeekPlan:
    """A plan of N customers: the columns of its file, and what is said of it."""

    columns: dict[str, Any]
    sent: np.ndarray  #: rows that are sent something, int64
    arms: dict[str, ArmResult]
    cleared: Cleared
    demand: Demand
    random_share: float
    refused_by_shop_rule: int
    arm: np.ndarray
    action: np.ndarray
    spend: np.ndarray
    warnings: list[str] = field(default_factory=list)


def plan_week(package: PolicyPackage, customers: Customers, factor: Tensor, setting: PlanSetting) -> WeekPlan:
    """Plan the week that `customers.past` leads to. `factor` [P] corrects the forecast of redemptions.

    Raises PlanViolation where a drawn decision is none that the rules allow.
    """
    held_out = torch.zeros(len(customers), dtype=torch.bool)
    for x in customers.contact_policy.exclusions:
        if x.reason == "holdout":
            held_out |= x.excluded
    arm = setting.arms.of(customers.ids, held_out.numpy())
    scored = score_customers(package, customers, factor, arm, setting.block)
    money = money_by_arm(setting.money, arm, customers.eligible.numpy())
    u = hash_uniform([f"{customers.past.week}:{name}" for name in customers.ids], setting.salt)

    decisions = undecided(len(customers))
    steps, row = scored.steps, torch.from_numpy(scored.eligible)
    of_arm = {k: np.flatnonzero(arm[scored.eligible] == k) for k in (RANDOM, BAU, RL)}
    catalogue = package.catalogue

    at = torch.from_numpy(of_arm[RL])
    own = Increments(*(x[at] for x in steps))
    cleared, demand, drawn = cleared_draw(package, own, u[row[at]], money[RL], setting)
    put(decisions, row[at], drawn)
    expected = {RL: float(cleared.totals.spend)}

    at = torch.from_numpy(of_arm[RANDOM])
    pairs = PairTotals.of(scored.spend[at], catalogue)
    mask = customers.options.action_mask
    drawn, share = draws.uniformly(pairs, mask[row[at]], u[row[at]], money[RANDOM], setting.rule)
    put(decisions, row[at], drawn)
    uniform = mask[row[at]] / mask[row[at]].sum(1, keepdim=True)
    expected[RANDOM] = share * float(pairs.sums(uniform).spend)

    at = torch.from_numpy(of_arm[BAU])
    pairs = PairTotals.of(scored.spend[at], catalogue)
    ids = [customers.ids[k] for k in row[at].tolist()]
    wanted, rank, refused = setting.shop_rule.wanted(ids, scored.spend[at], mask[row[at]], catalogue)
    action = draws.in_turn(wanted, rank, pairs, money[BAU], setting.rule)
    put(decisions, row[at], undecided(len(at))._replace(action=action))
    barred = np.flatnonzero((arm == BAU) & ~customers.eligible.numpy())
    refused += setting.shop_rule.asks_for([customers.ids[k] for k in barred.tolist()])

    spend = torch.zeros(len(customers))
    spend[row] = scored.spend.gather(1, decisions.action[row, None])[:, 0]
    check_allowed(decisions.action, mask)
    expected[BAU] = float(spend[row[at]].double().sum())
    refusal = best_refused(package, customers, scored, cleared.price)
    columns = plan_columns(package, customers, setting, arm, decisions, spend, cleared.price, refusal)
    sent = np.flatnonzero(decisions.action.numpy() > 0)
    results = {
        ARMS[k]: ArmResult(
            customers=int((arm == k).sum()),
            eligible=int((arm[scored.eligible] == k).sum()),
            contacts=int((arm[sent] == k).sum()),
            money=money.get(k, 0.0),
            spend=float(spend.double().numpy()[arm == k].sum()),
            expected=expected.get(k, 0.0),
            face=float(columns["face"][arm == k].astype(np.float64).sum()),
        )
        for k in range(len(ARMS))
    }
    plan = WeekPlan(
        columns,
        sent,
        results,
        cleared,
        demand,
        share,
        refused,
        arm,
        decisions.action.numpy(),
        spend.numpy(),
    )
    plan.warnings = warnings_of(plan, package, setting)
    return plan


def cleared_draw(
    package: PolicyPackage, steps: Increments, u: Tensor, money: float, setting: PlanSetting
) -> tuple[Cleared, Demand, Decisions]:
    """Clear an arm's money and draw its decisions; what `reserved` holds for them never passes the money."""
    demand = Demand.of(steps, package.catalogue)
    lowest = float(package.prices[-1])
    left = money
    while True:
        cleared = clear(demand, left, setting.rule, setting.sigma, lowest)
        drawn = draws.at_private_price(steps, cleared.price, setting.sigma, u)
        if setting.rule.name != "reserved":
            return cleared, demand, drawn
        held = float(charges(drawn.action, package.catalogue).sum())
        if held <= money:
            return cleared, demand, drawn
        left = draws.less(left, held - money)


def charges(action: Tensor, catalogue: Catalogue) -> Tensor:
    """Return the face value and the message's cost of each flat action, [N]; the catalogue is in float64."""
    offer, channel = catalogue.action_codec.decode(action)
    return catalogue.value[offer] + catalogue.cost[channel] * (offer > 0)


def put(decisions: Decisions, rows: Tensor, some: Decisions) -> None:
    """Write the decisions of some rows into those of all."""
    for whole, part in zip(decisions, some):
        whole[rows] = part.to(whole)


def check_allowed(action: Tensor, mask: Tensor) -> None:
    """Raise PlanViolation where an action [N] is not in the mask [N, P]: at clearing, after the policy's own mask."""
    wrong = ~mask.gather(1, action[:, None])[:, 0]
    if bool(wrong.any()):
        raise PlanViolation(
            f"{int(wrong.sum()):,} decisions are none that the contact rules allow; nothing was written"
        )


def warnings_of(plan: WeekPlan, package: PolicyPackage, setting: PlanSetting) -> list[str]:
    """Return what the reader of a plan should know."""
    found = []
    highest, lowest = float(package.prices[0]), float(package.prices[-1])
    rl = plan.arms["rl"]
    if plan.cleared.grid_ended and rl.eligible:
        left = rl.money - float(setting.rule.used(plan.cleared.totals))
        found.append(f"the grid ends at {lowest:g}; money is left: {left:,.2f} of {rl.money:,.2f}")
    if highest < plan.cleared.price < np.inf:
        found.append(
            f"the grid begins at {highest:g}; money costs {plan.cleared.price:.3g}, more than the policy knows"
        )
    if plan.refused_by_shop_rule:
        found.append(f"{plan.refused_by_shop_rule:,} of the shop's own decisions are refused by the contact rules")
    return found
