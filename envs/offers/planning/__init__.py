"""Planning with known parameters: dynamic program, Lagrangian bound, knapsack."""

from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.knapsack import Increments, clear, demand_curve, upper_hull
from envs.offers.planning.lagrangian_bound import Bound, dual
from envs.offers.planning.state_values import StateGrid, StateValues, VisitedStates

__all__ = [
    "Bound",
    "Increments",
    "StateGrid",
    "StateValues",
    "VisitedStates",
    "action_values",
    "best_plan",
    "clear",
    "demand_curve",
    "dual",
    "no_contact_values",
    "upper_hull",
]
