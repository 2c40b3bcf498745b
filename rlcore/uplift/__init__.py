"""Uplift: meta-learners of causal effects, and metrics of how well a score ranks units by them."""

from rlcore.uplift.comparison import UpliftTestSet
from rlcore.uplift.meta_learners import DR, S, T, X
from rlcore.uplift.metrics import auuc, qini

__all__ = ["DR", "S", "T", "UpliftTestSet", "X", "auuc", "qini"]
