"""How good a twin is, on decisions that it wasn't fitted to: likelihood, calibration, weeks, drivers, and the log itself."""
from __future__ import annotations

import torch

from envs.offers.likelihood import log_likelihood, probabilities
from envs.offers.population import from_columns
from rlcore.report import Report


class Evaluation:
    """Hold a twin against what a log has that no member was fitted to."""

    def __init__(self, env):
        self.env = env

    def score(self, twin) -> dict[str, float]:
        """How likely held-out decisions are."""
        return {"twin/log_likelihood": 0.0}

    def run(self, twin, name: str) -> Report:
        """Report."""
        return Report("twin", "", {"x": {"score": 0.0}}, {}, None, {}, {}, "score")
