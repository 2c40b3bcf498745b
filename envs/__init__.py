"""Environments to learn from, and the contracts of envs/base.py that they keep."""

from envs.base import FunctionalEnv, PricedEnv, Step, VectorEnv

__all__ = ["FunctionalEnv", "PricedEnv", "Step", "VectorEnv"]
