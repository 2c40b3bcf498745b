"""The provable upper bound: Lagrangian relaxation of the weekly budgets (docs/world.md §5)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import minimize
from torch import Tensor

from envs.offers.program import Values, best_plan, expected_spend
from envs.offers.world import Customers, State, World


@dataclass(frozen=True)
class Bound:
    """L(λ*) ≥ J(π) for every feasible policy, and what the score needs of it."""

    value: float  # L(λ*)
    none: float  # J(none)
    prices: Tensor  # λ* [T]
    values: list[Values]  # V^λ* of weeks 1..T+1
    budget: Tensor  # B [T]
    spend: Tensor  # expected spend of the greedy plan [T]
    gain: Tensor  # V^λ*(s_1) − V⁰(s_1) [N]
    evaluations: int

    @property
    def gap(self) -> float:
        """L(λ*) − J(none): all the incremental profit there can be."""
        return self.value - self.none


def unconstrained_spend(c: Customers, world: World, v0: list[Values], start: State) -> Tensor:
    """Expected weekly spend [T] of the best plan without a budget."""
    _, actions = best_plan(c, world, v0, torch.zeros_like(world.season))
    return expected_spend(c, world, start, actions).sum(1)


def dual(c: Customers, world: World, v0: list[Values], start: State, budget: Tensor, *, first_price: float,
         tolerance: float, max_evaluations: int) -> Bound:
    """Minimise L(λ) = Σ λ_t·B_t + Σ_i V^λ_i1(s_i1) over λ ≥ 0; ∂L/∂λ_t = B_t − E spend_t of the best plan.

    Any λ gives a valid bound; the optimiser only decides how tight it is.
    """
    best: dict = {}
    unit, untouched = budget.sum().item(), v0[0].at(start)
    none = untouched.sum().item()

    def evaluate(x):
        prices = torch.as_tensor(x).to(budget)
        values, actions = best_plan(c, world, v0, prices)
        spend = expected_spend(c, world, start, actions).sum(1)
        bound = ((prices * budget).sum() + values[0].at(start).sum()).item()
        if not best or bound < best["value"]:
            best.update(value=bound, prices=prices, values=values, spend=spend)
        # Less the organic profit, which would drown the optimiser's relative tolerance.
        return (bound - none) / unit, ((budget - spend) / unit).double().cpu().numpy()

    result = minimize(evaluate, [first_price] * len(budget), jac=True, method="L-BFGS-B",
                      bounds=[(0, None)] * len(budget),
                      options={"maxfun": max_evaluations, "ftol": tolerance, "gtol": 0.0})
    return Bound(none=none, budget=budget, gain=best["values"][0].at(start) - untouched,
                 evaluations=result.nfev, **best)
