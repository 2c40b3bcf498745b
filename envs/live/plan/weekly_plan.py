"""The plan of a week: who is sent which offer through which channel, within each arm's money, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.live.plan.arm_plans import ArmPlan, PlannedWeek, PlanSetting, at_random, by_policy, by_the_shop
from envs.live.plan.arms import ARMS, BAU, RANDOM, RL
from envs.live.plan.channel_capacity import WithinCapacity, channels_of
from envs.live.plan.clearing import Cleared, Demand
from envs.live.plan.deciding import Customers, PolicyPackage
from envs.live.plan.draws import Decisions, undecided
from envs.live.plan.output.plan_columns import add_gains, plan_columns
from envs.live.plan.reasons import Refused, RuleNames
from envs.live.plan.scoring import best_refused
from envs.live.plan.twin_gains import ExpectedGain, TwinGains


class PlanViolation(Exception):
    """The contact rules do not allow a decision that an arm drew."""


class ArmResult(NamedTuple):
    """What an arm's plan comes to: customers, contacts, money."""

    customers: int
    eligible: int
    contacts: int
    money: float
    spend: float  #: expected over redemptions, given what was drawn
    expected: float  #: expected over redemptions and over what is drawn
    face: float  #: face value and cost of all that is sent, which a ledger must reserve
    odds: float  #: upper bound of the probability that sends are cut: that the drawn ones exceed a limit


class ChannelUse(NamedTuple):
    """What a channel with a limit carries in the week."""

    messages: int
    capacity: int
    fee: float  #: price of a message on top of its cost, in the policy's units of worth
    closed: bool  #: the fee is so high that nobody is sent anything; it is then not the worth of one more message


@dataclass
class WeekPlan:
    """A plan of N customers: the columns of its file, and what is reported about it."""

    columns: dict[str, Any]
    sent: np.ndarray  #: rows that are sent something, int64
    arms: dict[str, ArmResult]
    channels: dict[str, ChannelUse]  #: those that have a limit
    cleared: Cleared
    demand: Demand
    random_share: float
    refused_by_shop_rule: int
    arm: np.ndarray
    action: np.ndarray
    spend: np.ndarray
    gain: ExpectedGain | None = None  #: what a twin expects the policy's sends to earn; None without a twin
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DecidedWeek:
    """What was decided of the N customers of a week."""

    week: PlannedWeek
    arms: dict[int, ArmPlan]
    within: WithinCapacity  #: the policy's prices
    decisions: Decisions
    spend: Tensor  #: expected, [N]
    random_share: float
    refused_by_shop_rule: int


def decide_week(package: PolicyPackage, customers: Customers, factor: Tensor, setting: PlanSetting) -> DecidedWeek:
    """Decide the week that follows `customers.past`. `factor` [P], one of each pair of offer and channel, corrects the
    forecast of redemptions.

    Raises PlanViolation where the contact rules do not allow a drawn decision.
    """
    week = PlannedWeek.of(package, customers, factor, setting)
    policys, within = by_policy(week)
    randoms, share = at_random(week)
    shops, refused = by_the_shop(week)
    arms = {RL: policys, RANDOM: randoms, BAU: shops}
    decisions = together(arms, len(customers))
    check_allowed(decisions.action, customers.options.action_mask)
    return DecidedWeek(week, arms, within, decisions, expected_spend(week, decisions.action), share, refused)


def plan_week(
    package: PolicyPackage,
    customers: Customers,
    factor: Tensor,
    setting: PlanSetting,
    twin: TwinGains | None = None,
) -> WeekPlan:
    """Decide a week (`decide_week`), and say why. A twin says what each send brings, this week and later."""
    decided = decide_week(package, customers, factor, setting)
    week, decisions, price = decided.week, decided.decisions, decided.within.cleared.price
    refused = refusals(week, decided.arms, best_refused(package, customers, week.scored, price))
    columns = plan_columns(package, customers, setting, week.arm, decisions, decided.spend, price, refused)
    gain = None
    if twin is not None:
        now, later = twin.of(customers, decisions.action.numpy())
        add_gains(columns, now, later)
        gain = ExpectedGain(*(float(x[week.arm == RL].sum(dtype=np.float64)) for x in (now, later)))
    plan = WeekPlan(
        columns=columns,
        sent=np.flatnonzero(decisions.action.numpy() > 0),
        arms=results_of(week, decided.arms, columns),
        channels=uses_of(week, decisions.action, decided.within),
        cleared=decided.within.cleared,
        demand=decided.within.demand,
        random_share=decided.random_share,
        refused_by_shop_rule=decided.refused_by_shop_rule,
        arm=week.arm,
        action=decisions.action.numpy(),
        spend=decided.spend.numpy(),
        gain=gain,
    )
    plan.warnings = warnings_of(plan, package, setting)
    return plan


def together(arms: dict[int, ArmPlan], n: int) -> Decisions:
    """Put the arms' decisions into those of all n customers; nobody else is sent anything."""
    decisions = undecided(n)
    for arm in arms.values():
        for whole, part in zip(decisions, arm.decisions):
            whole[arm.rows] = part.to(whole)
    return decisions


def refusals(week: PlannedWeek, arms: dict[int, ArmPlan], by_rules: tuple[np.ndarray, np.ndarray]) -> Refused:
    """Join two kinds of refusal: by contact rules, `by_rules` (flat action [N], rule [N]), and by full channels."""
    no_room = torch.zeros(len(week.customers), dtype=torch.long)
    for plan in arms.values():
        no_room[plan.rows] = plan.no_room
    names = RuleNames(week.customers.contact_policy).names
    is_full = no_room.numpy() > 0
    capacity_rule = len(names) + channels_of(week.package.catalogue)[no_room].numpy()
    action, rule = (np.where(is_full, x, y) for x, y in zip((no_room.numpy(), capacity_rule), by_rules))
    return Refused(action, rule, names + week.setting.capacity.names(), is_full)


def check_allowed(action: Tensor, mask: Tensor) -> None:
    """Raise PlanViolation where an action [N] is not in the mask [N, P]: a second check, of all arms' decisions."""
    wrong = ~mask.gather(1, action[:, None])[:, 0]
    if bool(wrong.any()):
        raise PlanViolation(f"{int(wrong.sum()):,} decisions break the contact rules; nothing was written")


def expected_spend(week: PlannedWeek, action: Tensor) -> Tensor:
    """Return what each customer's action [N] is expected to spend, [N]."""
    spend = torch.zeros(len(action))
    rows = torch.from_numpy(week.scored.eligible)
    spend[rows] = week.scored.spend.gather(1, action[rows, None])[:, 0]
    return spend


def results_of(week: PlannedWeek, arms: dict[int, ArmPlan], columns: dict[str, Any]) -> dict[str, ArmResult]:
    """Sum an arm's customers and money up, by the name of the arm."""
    arm, found = week.arm, {}
    is_sent = columns["offer"].index > 0
    for k, name in enumerate(ARMS):
        here = arm == k
        spend, face = (float(columns[x][here].astype(np.float64).sum()) for x in ("spend", "face"))
        found[name] = ArmResult(
            customers=int(here.sum()),
            eligible=int(here[week.scored.eligible].sum()),
            contacts=int((is_sent & here).sum()),
            money=week.money.get(k, 0.0),
            spend=spend,
            expected=arms[k].expected if k in arms else 0.0,
            face=face,
            odds=arms[k].odds if k in arms else 0.0,
        )
    return found


def uses_of(week: PlannedWeek, action: Tensor, within: WithinCapacity) -> dict[str, ChannelUse]:
    """Count the messages of all arms through each channel with a limit, by its name; action [N]."""
    capacity, policys = week.setting.capacity, week.capacity[RL]
    messages = torch.bincount(channels_of(week.package.catalogue)[action], minlength=len(capacity.channels) + 1)
    found = {}
    for k in capacity.limited:
        fee = float(within.fee[k])
        closed = fee > 0 and (k in within.closed or policys.of[k] == 0)
        found[capacity.channels[k]] = ChannelUse(int(messages[k]), int(capacity.of[k]), fee, closed)
    return found


def warnings_of(plan: WeekPlan, package: PolicyPackage, setting: PlanSetting) -> list[str]:
    """Return what the reader of a plan should know."""
    found = []
    highest, lowest = float(package.prices[0]), float(package.prices[-1])
    rl = plan.arms["rl"]
    if plan.cleared.grid_ended and rl.eligible:
        left = rl.money - float(setting.rule.used(plan.cleared.totals))
        found.append(f"at {lowest:g}, the policy's lowest price of money, {left:,.2f} of {rl.money:,.2f} is left")
    if highest < plan.cleared.price < np.inf:
        found.append(
            f"the price of money is {plan.cleared.price:.3g}, above {highest:g}, the highest that the policy was "
            "trained for"
        )
    found += [
        f"{name}: the policy sends nothing through it: at no price do its messages fit its share of {use.capacity:,}"
        for name, use in plan.channels.items()
        if use.closed and use.capacity
    ]
    if plan.refused_by_shop_rule:
        found.append(f"{plan.refused_by_shop_rule:,} of the shop's own decisions are refused by the contact rules")
    return found
