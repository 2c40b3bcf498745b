"""The provable upper bound: Lagrangian relaxation of budgets and stocks (envs/offers/README.md §5, §7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from envs.offers.planning.batching import plan_in_batches
from envs.offers.planning.state_values import StateValues
from envs.offers.world.customers import Customers, CustomerState, World

LEVEL = 0.8  # level that the next prices aim at: 0 is the tangents' least value, 1 the best value so far
PRECISION = 1e-7  # of the linear program, as a share of the gain with unlimited budgets


@dataclass(frozen=True)
class Bound:
    """L(λ*) ≥ J(π) for every feasible policy, and the quantities that scores need."""

    value: float  # L(λ*)
    none: float  # J(none)
    prices: Tensor  # λ* [T]
    scarcity: Tensor  # ν* [O+1], the price of a redemption of each offer; 0 without a stock
    values: list[StateValues] | None  # V^λ* of weeks 1..T+1, None where tables are not kept
    budget: Tensor  # B [T]
    stock: Tensor  # available redemptions of each offer in a season [O+1], inf without a limit
    rollover: bool  # money left over can be spent in later weeks
    spend: Tensor  # expected spend of the greedy plan [T]
    taken: Tensor  # the plan's expected redemptions of each stocked offer [S]
    gain: Tensor  # V^λ*(s_1) − V⁰(s_1) [N]
    evaluations: int
    certificate: float  # L(λ) is nowhere below this

    @property
    def gap(self) -> float:
        """L(λ*) − J(none), the largest possible incremental profit."""
        return self.value - self.none


def single_process(x: Tensor) -> Tensor:
    """Return x: no other process has customers (rlcore/backends/distributed.py, all_reduce_sum)."""
    return x


def unconstrained_spend(
    c: Customers,
    world: World,
    v0: list[StateValues] | None,
    start: CustomerState,
    *,
    contacts: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = single_process,
) -> Tensor:
    """Expected weekly spend [T] of the best plan without a budget."""
    plan = plan_in_batches(c, world, v0, start, torch.zeros_like(world.season), contacts=contacts)
    return total(plan.use).to(world.season)


def dual(
    c: Customers,
    world: World,
    v0: list[StateValues] | None,
    start: CustomerState,
    budget: Tensor,
    stock: Tensor | None = None,
    rollover: bool = False,
    *,
    first_price: float | list,
    tolerance: float,
    max_evaluations: int,
    contacts: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = single_process,
) -> Bound:
    """Minimise L(λ, ν) = Σ λ_t·B_t + Σ ν_o·stock_o + Σ_i V^λν_i1(s_i1); its slope is the unused budget and stock.

    The variables are the multipliers of the constraints, ≥ 0, and prices are a linear map of the multipliers. With
    roll-over, Σ_{s≤t} spend_s ≤ Σ_{s≤t} B_s has the multiplier μ_t, so that λ_t = Σ_{s≥t} μ_s never rises.

    Every λ gives a valid bound; the optimiser only decides how tight the bound is. L is convex and piecewise linear,
    with sharp kinks where customers are few. Each evaluation adds a tangent below L, and L is nowhere below the least
    value of the tangents' maximum (Kelley 1960, cutting planes). The prices of that least value would jump about. The
    next prices are therefore the nearest to the best so far at which every tangent is below a level in between
    (Lemaréchal, Nemirovskii and Nesterov 1995, level bundle). The optimiser ends when less than `tolerance` of the gap
    L(λ) − J(none) can be removed.

    `contacts` are the contacts that contact rules allow, as in `best_plan`. Without `v0` no tables are kept, whatever
    the number of customers. Customers may be spread over processes, with budget and stock of all customers: `total`
    then sums T + S + 2 numbers over the processes in each evaluation, and processes exchange nothing else.
    """
    weeks = len(budget)
    stock = torch.full_like(world.catalogue.value, torch.inf) if stock is None else stock.to(budget)
    stocked = tuple(stock.isfinite().nonzero()[:, 0].tolist())
    limits = torch.cat((budget, stock[list(stocked)]))
    spread = np.eye(len(limits))  # prices = spread @ multipliers
    if rollover:
        spread[:weeks, :weeks] = np.triu(np.ones((weeks, weeks)))
    bundle = Bundle(spread)
    point = np.zeros(len(limits))  # the optimum if no constraint binds
    for evaluations in range(1, max_evaluations + 1):
        prices = torch.as_tensor(spread @ point).to(budget)
        scarcity = torch.zeros_like(stock)
        scarcity[list(stocked)] = prices[weeks:]
        plan = plan_in_batches(
            c, world, v0, start, prices[:weeks], scarcity if stocked else None, stocked, contacts=contacts
        )
        # The gain is summed without the profit of no contact, whose rounding error is larger than the gain.
        sums = torch.stack([x.sum(dtype=torch.float64) for x in (plan.gain, plan.no_contact_value)])
        *used, gain, none = total(torch.cat((plan.use, sums))).tolist()
        use = torch.tensor(used, dtype=torch.float64).to(limits)
        gap = (prices * limits).sum(dtype=torch.float64).item() + gain
        if gap < bundle.least:
            best = {
                "value": none + gap,
                "prices": prices[:weeks],
                "scarcity": scarcity,
                "values": plan.values,
                "spend": use[:weeks],
                "taken": use[weeks:],
                "gain": plan.gain,
            }
        unused = limits - use
        bundle.add(point, gap, prices.double().cpu().numpy(), unused.double().cpu().numpy())
        if bundle.is_tight(tolerance):
            break
        point = (
            bundle.next_point()
            if evaluations > 1
            else np.linalg.solve(spread, np.append(np.broadcast_to(first_price, weeks), np.zeros(len(stocked))))
        )
    return Bound(
        none=none,
        budget=budget,
        stock=stock,
        rollover=rollover,
        evaluations=evaluations,
        certificate=none + bundle.low,
        **best,
    )


class Bundle:
    """Tangents below L − J(none), a convex function of multipliers ≥ 0, and the least value so far.

    Prices are spread @ multipliers. `low` is the least value of the tangents' maximum: the function is nowhere below.
    """

    def __init__(self, spread: np.ndarray):
        self.spread, self.unit = spread, 1.0
        self.slopes: list[np.ndarray] = []  # of tangents in units, by multiplier
        self.heights: list[float] = []  # of tangents in units, at 0
        self.least = np.inf
        self.centre = np.zeros(len(spread))  # the multipliers of the least value

    def add(self, point: np.ndarray, value: float, prices: np.ndarray, slope: np.ndarray) -> None:
        """Take the value at the multipliers `point`, which give `prices`, and its slope by price."""
        if not self.slopes:
            self.unit = abs(value) or 1.0
        if value < self.least:
            self.least, self.centre = value, point
        slope = slope / self.unit
        self.slopes.append(self.spread.T @ slope)
        self.heights.append(value / self.unit - slope @ prices)
        self.low = self.unit * lowest(np.array(self.slopes), np.array(self.heights))

    def is_tight(self, tolerance: float) -> bool:
        """Return whether no more than a share `tolerance` of the least value can be removed."""
        return self.least - self.low <= tolerance * self.least + PRECISION * self.unit

    def next_point(self) -> np.ndarray:
        """Return the multipliers nearest to the best so far at which every tangent is below the level."""
        level = (self.low + LEVEL * (self.least - self.low)) / self.unit
        return nearest(self.centre, np.array(self.slopes), np.array(self.heights), level)


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
