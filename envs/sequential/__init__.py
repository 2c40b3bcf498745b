"""The seed's formulation: customers one at a time in each of many parallel worlds, the budget left in sight."""

from envs.sequential.customers import StructuralCustomers, ToyCustomers
from envs.sequential.env import SequentialEnv
from envs.sequential.evaluation import SequentialEvaluator

__all__ = ["SequentialEnv", "SequentialEvaluator", "StructuralCustomers", "ToyCustomers"]
