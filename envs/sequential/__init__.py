"""The sequential formulation: customers one at a time in each of many parallel worlds, with the budget observed."""

from envs.sequential.customers import StructuralCustomers, ToyCustomers
from envs.sequential.env import SequentialEnv
from envs.sequential.evaluation import SequentialEvaluator

__all__ = ["SequentialEnv", "SequentialEvaluator", "StructuralCustomers", "ToyCustomers"]
