"""Uplift: meta-learners of causal effects, and metrics of how well a score ranks units by them."""

from rlcore.uplift.meta_learners import DR, S, T, X
from rlcore.uplift.metrics import UpliftTestSet, auuc, qini

__all__ = ["DR", "S", "T", "UpliftTestSet", "X", "auuc", "qini"]
