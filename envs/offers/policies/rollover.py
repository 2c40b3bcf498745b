"""Plans at dual prices and, for a budget that rolls over, the prices of the weeks and the value of carried money."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.offers.planning.batching import plan_in_batches, recompute
from envs.offers.planning.knapsack import Increments, clear
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.planning.state_values import StateValues
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefView
from envs.offers.policies.information import Information
from envs.offers.policies.wrappers import ReservationPricePolicy

if TYPE_CHECKING:
    from envs.offers.evaluation.simulation import EvaluationMarket


def price_path(weeks: list[Increments], budget: Tensor) -> Tensor:
    """Return the prices [T], never rising, at which the increments of the weeks use a budget [T] that rolls over.

    The prices minimise Σ p_t·B_t + Σ_t ∫_{p_t} demand_t over p_1 ≥ … ≥ p_T ≥ 0, by pooling adjacent violators: weeks of
    one price share their money, and earlier weeks save money for a later week that would be dearer.
    """
    pools: list[tuple[list[int], float]] = []
    for t in range(len(budget)):
        pool = [t]
        price = pooled_price(weeks, budget, pool)
        while pools and price >= pools[-1][1]:
            pool = pools.pop()[0] + pool
            price = pooled_price(weeks, budget, pool)
        pools.append((pool, price))
    return torch.tensor([price for pool, price in pools for _ in pool], dtype=budget.dtype, device=budget.device)


def pooled_price(weeks: list[Increments], budget: Tensor, pool: list[int]) -> float:
    """Return the price at which the weeks of a pool together clear their budgets."""
    price = torch.cat([weeks[t].price.flatten() for t in pool])[:, None]
    spend = torch.cat([weeks[t].spend.flatten() for t in pool])[:, None]
    return clear(Increments(price, spend, torch.zeros_like(price, dtype=torch.long)), budget[pool].sum())[1].item()


def carry_over_value(path: Tensor) -> Tensor:
    """Return the value of a unit of money left over in each week, [T]: the next week's price, 0 after the last."""
    return torch.cat((path[1:], torch.zeros_like(path[:1])))


def planning_policy(
    market: EvaluationMarket, bound: Bound, information: Information, start: Tensor | None = None
) -> SeasonPolicy:
    """Plan at the dual prices of a market.

    With `start` [14], the marginals of the state at the start of a season, the policy sees no state and filters it.
    """
    return with_carried_money(plan_at_prices(market, bound, information, start, bound.values), market, bound)


def with_carried_money(policy: SeasonPolicy, market: EvaluationMarket, bound: Bound) -> SeasonPolicy:
    """Keep money that rolls over for the next week where it is worth more there, by the bound's prices."""
    return ReservationPricePolicy(policy, carry_over_value(bound.prices)) if market.rollover else policy


def values_at_prices(market: EvaluationMarket, bound: Bound) -> list[StateValues] | None:
    """Return V^λ of a market at a bound's prices, weeks 1..T+1; None where tables are not kept."""
    if bound.values is None:
        return None
    return plan_in_batches(
        market.customers,
        market.world,
        market.no_contact_values,
        market.initial_state,
        bound.prices,
        bound.scarcity,
        contacts=market.contact_policy.contacts,
    ).values


def plan_at_prices(
    market: EvaluationMarket,
    bound: Bound,
    information: Information,
    start: Tensor | None,
    values: list[StateValues] | None,
) -> KnapsackPolicy:
    """Return the week's knapsack on the values of a plan at a bound's prices; None: they are computed week by week."""
    customers, world, contacts = market.customers, market.world, market.contact_policy.contacts
    known = values or partial(recompute, customers, world, bound.prices, bound.scarcity, contacts)
    if start is None:
        return KnapsackPolicy(customers, world, information, values=known, fee=0.0, scarcity=bound.scarcity)
    view = BeliefView(customers, world, start)
    return BeliefPlanner(customers, world, information, view, fee=0.0, values=known, scarcity=bound.scarcity)
