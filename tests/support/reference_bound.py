"""The budgeted season as a linear program over occupancies, which the bound must equal under any rules."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array

from envs.offers.planning.dynamic_program import no_contact_values
from envs.offers.planning.lagrangian_bound import unconstrained_spend
from reference_world import tuples

# 5 actions, both steps of fatigue
FIVE_ACTIONS = {"offers": ["euro_1_00", "euro_2_50"], "channels": ["email", "sms"]}
FULL_SEASON = {"weeks": 12, **FIVE_ACTIONS}
DUAL_SOLVER = {"first_price": 3.0, "tolerance": 1e-5, "max_evaluations": 200}


def with_budget(season, share=0.3):
    """Add V⁰ and a weekly budget to a season."""
    season.v0 = no_contact_values(season.customers, season.world)
    season.budget = share * unconstrained_spend(season.customers, season.world, season.v0, season.start)
    return season


def no_contact_profit(season) -> float:
    """Return J(none) of the reference."""
    return sum(r.no_contact_values()[0][s] for r, s in zip(season.references, tuples(season.start)))


def linear_program(season, rollover=False, stock=()) -> tuple[float, torch.Tensor]:
    """Solve the relaxed problem over occupancies x(customer, week, state, action) ≥ 0; return value and multipliers.

    With `rollover` the budgets of the weeks so far limit what was spent so far; `stock` lists (offer, redemptions).
    """
    gain, flow, paid, start = [], [], [], []  # objective; (row, column, coefficient) of flow and of spend; entries
    weeks, rows = season.world.weeks, 0
    for r, first in zip(season.references, tuples(season.start)):
        end, reached = r.end(), {first: rows}  # states of this week and the flow row that feeds each
        rows, start = rows + 1, [*start, 1.0]
        for t, x in enumerate(r.season):
            following = {}
            for s, row in reached.items():
                for a in r.allowed(s):
                    column, law = len(gain), r.law(s, x, a)
                    flow.append((row, column, 1.0))
                    paid += [(when, column, r.spend(s, x, a)) for when in range(t, weeks if rollover else t + 1)]
                    paid += [(weeks + k, column, r.respond(s, x, a)[0]) for k, (o, _) in enumerate(stock) if a[0] == o]
                    gain.append(r.profit(s, x, a))
                    if t == weeks - 1:
                        gain[-1] += r.ahead(s, x, a, end)
                        continue
                    for state, p in law.items():
                        row_of = following.setdefault(state, rows + len(following))
                        flow.append((row_of, column, -p))
            rows, start, reached = rows + len(following), start + [0.0] * len(following), following

    def matrix(entries, height):
        i, j, x = zip(*entries)
        return coo_array((x, (i, j)), shape=(height, len(gain))).tocsr()

    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    budget = season.budget.numpy()
    limits = np.append(budget.cumsum() if rollover else budget, [pieces for _, pieces in stock])
    solved = linprog(
        -np.array(gain), matrix(paid, len(limits)), limits, matrix(flow, rows), start, method="highs", options=exact
    )
    assert solved.status == 0, solved.message
    return -solved.fun, -torch.tensor(solved.ineqlin.marginals)
