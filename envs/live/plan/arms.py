"""Arms of a running shop: which rule decides for which customer, drawn by the customer's id, and each arm's money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs.offers.logs.customer_weeks import ARMS
from envs.offers.populations.base import hash_uniform

HOLDOUT, RANDOM, BAU, RL = range(len(ARMS))


@dataclass(frozen=True)
class Arms:
    """Shares of the customers by arm. A customer's arm depends on the customer's id and on `salt` alone.

    `holdout` and `random` are shares of all customers, `bau` (the shop's own rules) is a share of the rest. What
    remains is the policy's. Each customer has one fixed number, which thresholds turn into an arm. As `bau` shrinks, a
    customer can change once, from bau to rl.
    """

    salt: int
    holdout: float
    random: float
    bau: float

    def __post_init__(self):
        if self.holdout + self.random >= 1:
            raise ValueError(
                f"arms: expected holdout and random to leave customers, got {self.holdout} and {self.random}"
            )

    def of(self, ids: Sequence[str], held_out: np.ndarray) -> np.ndarray:
        """Return the arm of each customer, an index into ARMS, uint8 [N].

        `held_out`, bool [N], are the customers whom the policy's own contact rules hold out.
        """
        u = hash_uniform(ids, self.salt).numpy()
        first = self.holdout + self.random
        rest = (u - first) / (1 - first)
        arm = np.where(rest < 1 - self.bau, RL, BAU)
        arm = np.where(u < first, RANDOM, arm)
        return np.where((u < self.holdout) | held_out, HOLDOUT, arm).astype(np.uint8)


def money_by_arm(money: float, arm: np.ndarray, eligible: np.ndarray) -> dict[int, float]:
    """Split a week's money by each arm's share of the customers who may be sent something; arm, eligible [N].

    Nothing flows between arms, so that none can starve another; the holdout gets none.
    """
    sent_to = eligible & (arm != HOLDOUT)
    total = max(int(sent_to.sum()), 1)
    return {k: money * int((sent_to & (arm == k)).sum()) / total for k in (RANDOM, BAU, RL)}
