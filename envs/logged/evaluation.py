"""Judge what was learned from a log by the log: off-policy, on the side that nothing was learned from."""

from __future__ import annotations

import math
from typing import Any

import torch

from envs.base import VectorEnv
from rlcore.algorithm import Algorithm
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope import estimators
from rlcore.ope.dataset_checks import without_unknown_propensities
from rlcore.ope.evaluator import OffPolicyEvaluator
from rlcore.ope.report import OffPolicyReport, evaluate_dataset


class LogEvaluator:
    """Values policies on the test side of the log `path`, by the estimators of `off_policy`; nothing is simulated."""

    headline = "validation/net_per_decision"

    def __init__(self, env: VectorEnv, *, path: str | None, off_policy: OffPolicyEvaluator):
        if not path:
            raise ValueError("log: expected the path of the log that values policies, as in log=log.csv")
        self.env, self.path, self.off_policy = env, path, off_policy
        self._held_out: LoggedDataset | None = None

    @property
    def held_out(self) -> LoggedDataset:
        """The decisions of the test side, read once."""
        if self._held_out is None:
            self._held_out = self.env.read_log(self.path, "test")
        return self._held_out

    @torch.no_grad()
    def validate(self, algorithm: Algorithm) -> dict[str, float]:
        """Return the net reward of a decision by SNIPS, of the decisions that the policy would have made too.

        Decisions without a propensity are left out; where that would leave none, or select decisions by what was
        done, all count alike. NaN where no decision counts.
        """
        held_out = self.held_out
        log, target, _ = without_unknown_propensities(held_out, self.off_policy.target(algorithm.policy, held_out))
        chosen = target.gather(1, log.action[:, None])[:, 0].double()
        weight = chosen if log.propensity.isnan().any() else chosen / log.propensity
        value = estimators.snips(weight, log.net_reward.double())
        numerator, denominator = value.ratios()
        total = denominator.sum().item()
        return {self.headline: numerator.sum().item() / total if total else math.nan}

    def evaluate(self, algorithm: Algorithm | None, name: str) -> OffPolicyReport:
        """Value the policy, as the row of each estimator."""
        if algorithm is None:
            raise ValueError("checkpoint: expected the path of the policy to value on the log")
        return evaluate_dataset(self.held_out, self.path, self.off_policy, algorithm, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held_out": None}
