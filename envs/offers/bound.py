"""The provable upper bound: Lagrangian relaxation of the weekly budgets (envs/offers/README.md §5)."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from envs.offers.program import Values, best_plan, expected_spend
from envs.offers.world import Customers, State, World

LEVEL = 0.8  # how low the next prices aim: 0 is the tangents' least value, 1 the best found so far
PRECISION = 1e-7  # what the linear program is good for, as a share of what unlimited budgets would earn


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
    certificate: float  # L(λ) is nowhere below this

    @property
    def gap(self) -> float:
        """L(λ*) − J(none): all the incremental profit there can be."""
        return self.value - self.none


def unconstrained_spend(c: Customers, world: World, v0: list[Values], start: State, *,
                        contacts: Tensor | None = None) -> Tensor:
    """Expected weekly spend [T] of the best plan without a budget."""
    _, actions = best_plan(c, world, v0, torch.zeros_like(world.season), contacts=contacts)
    return expected_spend(c, world, start, actions).sum(1)


def dual(c: Customers, world: World, v0: list[Values], start: State, budget: Tensor, *, first_price: float,
         tolerance: float, max_evaluations: int, contacts: Tensor | None = None) -> Bound:
    """Minimise L(λ) = Σ λ_t·B_t + Σ_i V^λ_i1(s_i1) over λ ≥ 0; ∂L/∂λ_t = B_t − E spend_t of the best plan.

    Any λ gives a valid bound; the optimiser only decides how tight it is. L is convex and piecewise linear, with
    sharp kinks where customers are few. Each evaluation adds a tangent below it, and nowhere is L below the least
    value of the tangents' maximum (Kelley 1960, cutting planes). The prices there would jump about, so the next ones
    are the nearest to the best so far at which every tangent is below a level in between (Lemaréchal, Nemirovskii
    and Nesterov 1995, level bundle). It ends when less than `tolerance` of the gap L(λ) − J(none) can be removed.
    `contacts` are those that rules allow (envs/offers/program.py, best_plan).
    """
    untouched = v0[0].at(start)
    none = untouched.sum(dtype=torch.float64).item()
    point = np.zeros(len(budget))  # where it ends at once if no budget binds
    least, slopes, heights = np.inf, [], []
    for evaluations in range(1, max_evaluations + 1):
        prices = torch.as_tensor(point).to(budget)
        values, actions = best_plan(c, world, v0, prices, contacts=contacts)
        spend = expected_spend(c, world, start, actions).sum(1)
        gain = values[0].at(start) - untouched  # summed without the organic profit, whose rounding would drown it
        gap = ((prices * budget).sum(dtype=torch.float64) + gain.sum(dtype=torch.float64)).item()
        if evaluations == 1:
            unit = abs(gap) or 1.0
        if gap < least:
            least, centre = gap, point
            best = {"value": none + gap, "prices": prices, "values": values, "spend": spend, "gain": gain}
        slopes.append((budget - spend).double().cpu().numpy() / unit)
        heights.append(gap / unit - slopes[-1] @ prices.double().cpu().numpy())
        tangents = np.array(slopes), np.array(heights)
        low = unit * lowest(*tangents)
        if least - low <= tolerance * least + PRECISION * unit:
            break
        level = (low + LEVEL * (least - low)) / unit
        point = nearest(centre, *tangents, level) if evaluations > 1 else np.full(len(budget), first_price)
    return Bound(none=none, budget=budget, evaluations=evaluations, certificate=none + low, **best)


def lowest(slopes: np.ndarray, heights: np.ndarray) -> float:
    """Return the least y ≥ 0 with slopes·λ + heights ≤ y for some λ ≥ 0; y is L − J(none), which is never negative."""
    count, weeks = slopes.shape
    return linprog(np.eye(weeks + 1)[-1], np.c_[slopes, -np.ones(count)], -heights).fun


def nearest(point: np.ndarray, slopes: np.ndarray, heights: np.ndarray, level: float) -> np.ndarray:
    """Return the λ ≥ 0 nearest to `point` with slopes·λ + heights ≤ level (Lawson and Hanson 1974, problem LDP)."""
    excess = np.append(slopes @ point + heights - level, -point)
    system = np.vstack((np.c_[-slopes.T, np.eye(len(point))], excess))
    target = np.eye(len(system))[-1]
    rest = system @ nnls(system, target)[0] - target
    return np.maximum(point - rest[:-1] / rest[-1], 0.0)
