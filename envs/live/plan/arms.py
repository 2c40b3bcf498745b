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

    `holdout` is a share of all customers, `random` of those who are not held out, `bau` (the shop's own rules) of those
    in neither. What remains is the policy's. Each share is compared with a lot of its own, so that a share which
    changes moves customers into its arm or out of it, and between no other two.
    """

    salt: int
    holdout: float
    random: float
    bau: float

    def of(self, ids: Sequence[str], held_out: np.ndarray) -> np.ndarray:
        """Return the arm of each customer, an index into ARMS, uint8 [N].

        `held_out`, bool [N], are the customers whom the policy's own contact rules hold out.
        """
        in_holdout = held_out | (hash_uniform(ids, self.salt).numpy() < self.holdout)  # as in those contact rules
        in_random, in_bau = (
            hash_uniform([f"{name}:{x}" for x in ids], self.salt).numpy() < share
            for name, share in (("random", self.random), ("bau", self.bau))
        )
        return np.select((in_holdout, in_random, in_bau), (HOLDOUT, RANDOM, BAU), RL).astype(np.uint8)

    def moves(self, now: Arms, ids: Sequence[str]) -> int:
        """Count the customers whose arm another setting draws anew."""
        nobody = np.zeros(len(ids), dtype=bool)
        return 0 if now == self else int((self.of(ids, nobody) != now.of(ids, nobody)).sum())


def expected_shares(*, holdout: float, random: float, bau: float) -> dict[str, float]:
    """Return each arm's share of all customers, by its name, from the shares that `Arms` has."""
    others = 1 - holdout
    rest = others * (1 - random)
    share = {HOLDOUT: holdout, RANDOM: others * random, BAU: rest * bau, RL: rest * (1 - bau)}
    return {ARMS[k]: share[k] for k in share}


def money_by_arm(money: float, arm: np.ndarray, eligible: np.ndarray) -> dict[int, float]:
    """Split a week's money by each arm's share of the customers who may be sent something; arm, eligible [N].

    Nothing flows between arms, so that none can starve another; the holdout gets none.
    """
    sent_to = eligible & (arm != HOLDOUT)
    total = max(int(sent_to.sum()), 1)
    return {k: money * int((sent_to & (arm == k)).sum()) / total for k in (RANDOM, BAU, RL)}
