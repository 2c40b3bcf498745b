"""A budget that rolls over: what carried money will be worth, and policies that don't spend below it."""
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from envs.offers.planning.batching import recompute
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.planning.knapsack import Increments, clear
from envs.offers.policies.learned import Knapsack, Policy


def price_path(weeks: list[Increments], budget: Tensor) -> Tensor:
    """Return the prices [T] at which steps of the weeks use a budget [T] that rolls over: they never rise.

    They minimise Σ p_t·B_t + Σ_t ∫_{p_t} demand_t over p_1 ≥ … ≥ p_T ≥ 0, by pooling adjacent violators: weeks of one
    price share their money, and where the later would be dearer the earlier save for it.
    """
    blocks: list[tuple[list[int], float]] = []
    for t in range(len(budget)):
        pool = [t]
        price = pooled(weeks, budget, pool)
        while blocks and price >= blocks[-1][1]:
            pool = blocks.pop()[0] + pool
            price = pooled(weeks, budget, pool)
        blocks.append((pool, price))
    return torch.tensor([price for pool, price in blocks for _ in pool], dtype=budget.dtype, device=budget.device)


def pooled(weeks: list[Increments], budget: Tensor, pool: list[int]) -> float:
    """Return the price at which some weeks together clear their budgets."""
    price, spend = (torch.cat([getattr(weeks[t], name).flatten() for t in pool])[:, None] for name in ("price", "spend"))
    return clear(Increments(price, spend, torch.zeros_like(price, dtype=torch.long)), budget[pool].sum())[1].item()


def carried(path: Tensor) -> Tensor:
    """Return what money left over in each week is worth, [T]: the next week's price, and nothing after the last."""
    return torch.cat((path[1:], torch.zeros_like(path[:1])))


class Saving:
    """A policy that leaves alone what earns less than money carried out of the week will, `worth` [T]."""

    def __init__(self, policy: Policy, worth: Tensor):
        self.policy, self.worth, self.information = policy, worth, policy.information

    def increments(self, week: int, *seen) -> Increments:
        """Return the policy's steps above the worth of carried money."""
        steps = self.policy.increments(week, *seen)
        return steps._replace(price=torch.where(steps.price >= self.worth[week], steps.price, -torch.inf))

    def marginal(self, price: Tensor) -> Tensor:
        """Return at what prices weeks cleared that cleared at prices [T] for what was asked: money that waits has its worth."""
        return torch.maximum(price, self.worth.to(price))


def planner(market, bound: Bound, information: str) -> Policy:
    """Plan at the dual prices of a market (envs/offers/evaluation/simulation.py); money carried out of a week is worth the next one's."""
    c, world = market.customers, market.world
    values = bound.values or partial(recompute, c, world, bound.prices, bound.scarcity, market.contact_policy.contacts)
    policy = Knapsack(c, world, information, values=values, fee=0.0, scarcity=bound.scarcity)
    return Saving(policy, carried(bound.prices)) if market.rollover else policy


class Watched:
    """A policy whose steps of every week are kept."""

    def __init__(self, policy: Policy):
        self.policy, self.information, self.weeks = policy, policy.information, []

    def increments(self, week: int, *seen) -> Increments:
        """Return the policy's steps."""
        self.weeks.append(self.policy.increments(week, *seen))
        return self.weeks[-1]
