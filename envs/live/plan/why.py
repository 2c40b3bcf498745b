"""The whole ladder of one customer: every step with the price at which it is bought, and what rules refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.live.plan.arms import RL
from envs.live.plan.channel_capacity import Capacity, priced
from envs.live.plan.deciding import Customers, PolicyPackage, allowed_now
from envs.live.plan.inputs.exported import ExportedPolicy
from envs.live.plan.output.plan_file import read_facts
from envs.live.plan.reasons import RuleNames, number, pair_name
from envs.live.plan.run import PlanRequest, first_day_of, past_weeks, read_customers, with_absent
from envs.live.plan.scoring import best_refused, score_customers
from rlcore.offline.parquet_files import read_parquet


def why(policy: ExportedPolicy, request: PlanRequest, customer: str) -> list[str]:
    """Explain what a plan on disk decided for a customer, in lines; raise ValueError where it has no such customer.

    The customer alone is scored again, by the plan's own corrections of the forecast.
    """
    table, _, file = read_customers(policy, request)
    if customer not in table.ids:
        raise ValueError(f"{request.customers}: has no customer '{customer}'")
    row = table.ids.index(customer)
    past = past_weeks(policy, request, table.ids)
    path = request.path(past.week)
    decided = planned_row(path, customer)
    facts = read_facts(path)
    if facts["policy"] != policy.version:
        raise ValueError(f"{path}: was planned with the package {facts['policy']}, not with {policy.version}")
    table = with_absent(table, file, request, first_day_of(past, request))
    customers = allowed_now(policy.catalogue, policy.contact_rules, table, past).take(row)
    factor = torch.tensor(facts["factors"], dtype=torch.float64)
    return explain(policy, customers, factor, facts, decided)


def planned_row(path: Path, customer: str) -> dict[str, Any]:
    """Return a customer's row of a plan, None where it is empty."""
    if not path.is_file():
        raise ValueError(f"{path}: no such plan; make the plan first, without why=")
    if "fees" not in read_facts(path):
        raise ValueError(f"{path}: expected a plan of this version, got one without prices of channels; plan it again")
    rows = read_parquet(path, filters=[("customer", "=", customer)]).to_pylist()
    if not rows:
        raise ValueError(f"{path}: has no customer '{customer}'")
    return rows[0]


def explain(
    package: PolicyPackage, customers: Customers, factor: torch.Tensor, facts: dict[str, Any], decided: dict[str, Any]
) -> list[str]:
    """Lay out the ladder of the one customer of `customers`."""
    catalogue, policy = package.catalogue, customers.contact_policy
    price = math.inf if facts["price"] is None else facts["price"]
    lines = [
        f"{decided['customer']}, week {facts['week']}, arm {decided['arm']}: {decided['reason']}",
        f"sent: {decided['channel']} {decided['offer']}" if decided["offer"] else "sent: nothing",
        f"propensity {decided['propensity']:.6g} under '{decided['policy']}'",
    ]
    capacity = Capacity.read(facts["capacity"], catalogue)
    fee = torch.tensor([facts["fees"].get(x, 0.0) for x in catalogue.channels], dtype=torch.float64)
    arm = np.array([RL], dtype=np.uint8)
    scored = score_customers(package, customers, factor, arm, 1, capacity.barred(catalogue))
    if not len(scored.eligible):
        lines.append("the rules allow no contact, so there is no ladder")
    elif decided["arm"] == "holdout":
        lines.append("the holdout is sent nothing, whatever it would be worth")
    else:
        steps = priced(scored.steps, scored.without, fee, capacity, catalogue)
        lines += [f"a {name} counts as {number(x)} dearer" for name, x in facts["fees"].items() if x > 0]
        lines += ladder(package, steps, scored.spend, price, decided)
    action, rule = best_refused(package, customers, scored, price)
    names = RuleNames(policy).names
    if action[0]:
        lines.append(f"without rules: {pair_name(catalogue, int(action[0]))}; refused by {names[rule[0]]}")
    contacted = customers.past.contacted(max((cap.weeks for cap in policy.caps), default=1) - 1)
    for k in range(catalogue.action_codec.contacts.start, catalogue.action_codec.num_actions):
        offer, channel = catalogue.action_codec.decode(k)
        found = policy.reasons(0, offer, channel, bool(customers.subscribed[0]), contacted)
        if found:
            lines.append(f"  refused  {pair_name(catalogue, k)}: {'; '.join(found)}")
    return lines


def ladder(package: PolicyPackage, steps, spend: torch.Tensor, price: float, decided: dict[str, Any]) -> list[str]:
    """Return one line per step, the highest price first."""
    catalogue = package.catalogue
    costs = "there is no money" if price == math.inf else f"money costs {number(price)}"
    lines = [f"steps by falling price ({costs}, the grid is {package.prices[0]:g} to {package.prices[-1]:g}):"]
    held = (decided["offer"], decided["channel"])
    for at, action in zip(steps.price[0].tolist(), steps.action[0].tolist()):
        if at == -math.inf:
            continue
        offer, channel = catalogue.action_codec.decode(action)
        face = float(catalogue.value[offer] + catalogue.cost[channel])
        mark = "sent" if (catalogue.offers[offer], catalogue.channels[channel]) == held else ""
        lines.append(
            f"  {number(at):>8}  {pair_name(catalogue, action)}: expected spend {float(spend[0, action]):.2f}, face "
            f"{face:.2f}{'  <- ' + mark if mark else ''}"
        )
    return lines if len(lines) > 1 else ["nothing pays at any price of the grid"]
