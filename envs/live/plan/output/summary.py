"""What a plan says of itself in the terminal, and the figures of its page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.live.plan.clearing import Cleared, clear
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.reasons import number
from envs.live.plan.run import Planned


class RuleCost(NamedTuple):
    """What the rule of money gives up, compared with the rule `expected`."""

    spend_share: float  #: expected spend / money
    worth_lost: float  #: share of what `expected` buys, at the policy's own prices, that is not bought


def rule_cost(planned: Planned) -> RuleCost:
    """Compare an arm's purchases with those of the rule `expected` on the same money."""
    plan, setting = planned.plan, planned.setting
    money = plan.arms["rl"].money
    lowest = float(planned.package.prices[-1])
    usual: Cleared = clear(plan.demand, money, MoneyRule("expected", 0.0), setting.sigma, lowest)
    worth = float(usual.totals.worth)
    lost = 1 - float(plan.cleared.totals.worth) / worth if worth > 0 else 0.0
    return RuleCost(float(plan.cleared.totals.spend) / money if money > 0 else 0.0, max(lost, 0.0))


def price_of_money(planned: Planned) -> str:
    """Say the price of money."""
    price = planned.plan.cleared.price
    return "there is no money" if price == np.inf else f"money costs {number(price)}"


def rule_line(planned: Planned) -> str:
    """Say the rule of money, and what it costs."""
    rule, cost = planned.setting.rule, rule_cost(planned)
    line = f"rule={rule.name}: {rule.meaning()}; expected spend is {cost.spend_share:.1%} of the policy's money"
    return line if rule.name == "expected" else f"{line}, and {cost.worth_lost:.1%} of what `expected` buys is given up"


def gain_line(planned: Planned) -> str | None:
    """Say what the policy's sends are expected to earn by the twin; None without a twin."""
    gain = planned.plan.gain
    if gain is None:
        return None
    spend = planned.plan.arms["rl"].spend
    return (
        f"by the twin the policy's sends earn {gain.now + gain.later:+,.2f} more than sending nothing: "
        f"{gain.now:+,.2f} this week, spend taken off, and {gain.later:+,.2f} later; expected spend {spend:,.2f}"
    )


def refusals(planned: Planned) -> list[tuple[str, int]]:
    """Return each rule that stands against what the policy would send, with the number of customers, most first."""
    column = planned.plan.columns["rule"]
    count = np.bincount(column.index, minlength=len(column.texts))
    found = [
        (column.texts[k], int(count[k])) for k in np.argsort(-count, kind="stable") if count[k] and column.texts[k]
    ]
    return found


def summary(planned: Planned) -> list[str]:
    """Return the lines that are printed when a plan is written."""
    plan, past = planned.plan, planned.customers.past
    n = len(planned.customers)
    history = (
        "no log: every customer starts fresh"
        if past.log is None
        else f"{int(past.known.sum()):,} with history in the log, the rest start fresh"
    )
    lines = [
        f"week {past.week}: {n:,} customers ({history}), {len(plan.sent):,} sent something, {price_of_money(planned)}",
        rule_line(planned),
    ]
    for name, arm in plan.arms.items():
        if arm.customers:
            lines.append(
                f"  {name:<8}{arm.customers:>10,} customers{arm.contacts:>10,} sent   money {arm.money:,.2f}   "
                f"expected spend {arm.expected:,.2f} (as drawn {arm.spend:,.2f})   held {arm.face:,.2f}"
            )
    for name, use in plan.channels.items():
        lines.append(
            f"  {name}: {use.messages:,} of {use.capacity:,} messages"
            + (f"; one more is worth {number(use.fee)} to the policy" if use.fee > 0 and not use.closed else "")
        )
    earned = gain_line(planned)
    if earned:
        lines.append(f"  {earned}")
    odds = max(arm.odds for arm in plan.arms.values())
    if odds:
        lines.append(f"  propensities are exact to {odds:.1g}: as seldom do lots hold more than there is, and are cut")
    if plan.arms["random"].eligible and plan.random_share < 1:
        lines.append(f"  random: lots are drawn for {plan.random_share:.1%} of its customers, for its money ends there")
    if planned.forecast.weeks:
        lines.append(
            f"forecast corrected by {planned.forecast.weeks} past plans: {planned.forecast.redeemed.sum():,.0f} "
            f"redeemed, {planned.forecast.forecast.sum():,.0f} forecast"
        )
    lines += [f"  refused by {name}: {count:,}" for name, count in refusals(planned)[:5]]
    return lines
