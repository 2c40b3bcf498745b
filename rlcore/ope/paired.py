"""Two policies on the same decisions of a log: the value of each and their difference, paired by unit."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import torch

from rlcore.algorithm import Policy
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.alternatives import best_estimator, with_interval
from rlcore.ope.estimators import Terms
from rlcore.ope.evaluator import NET, OffPolicyEvaluator
from rlcore.runs.before_after import BeforeAfter

DIGEST = 1  # bytes of a hash: its first bit decides


class Halves(NamedTuple):
    """Decisions on which the better policy is chosen, and those on which both are then judged; no unit is in both."""

    choosing: LoggedDataset
    judging: LoggedDataset

    @classmethod
    def of(cls, dataset: LoggedDataset, seed: int) -> Halves:
        """Deal the units of a dataset by a hash of their names, so that a unit has one role in all datasets.

        Raises ValueError where a half would be empty.
        """
        units, place = torch.unique(dataset.unit, return_inverse=True)
        chooses = torch.tensor([_chooses(name, seed) for name in dataset.names_of_units(units)])[place.cpu()]
        chooses = chooses.to(dataset.unit.device)
        if chooses.all() or not chooses.any():
            name = dataset.names.unit
            raise ValueError(
                f"log: {len(units)} {name}s are too few: some choose the better policy, and others judge both"
            )
        return cls(dataset[chooses], dataset[~chooses])


def _chooses(name: str, seed: int) -> bool:
    """Tell whether a unit is among those that choose: by a hash of its name, with a probability of one half."""
    hashed = blake2b(f"{seed}:{name}".encode(), digest_size=DIGEST).digest()
    return hashed[0] < 128


def compare_on_log(evaluator: OffPolicyEvaluator, dataset: LoggedDataset, before: Policy, after: Policy) -> BeforeAfter:
    """Value two policies by the doubly robust estimator, or the model's where the log has no propensities.

    An interval is that of the central limit, clustered by unit. Raises ValueError where the log can't value a policy.
    """
    old, new = (evaluator(dataset, evaluator.target(policy, dataset)) for policy in (before, after))
    estimator = best_estimator(old.terms[NET])
    terms = [found.terms[NET][estimator] for found in (old, new)]
    difference = Terms(terms[1].plain - terms[0].plain)
    return BeforeAfter(*(with_interval(one, old.layout, evaluator.level) for one in (*terms, difference)))
