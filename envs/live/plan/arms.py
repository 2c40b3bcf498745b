"""Arms of a running shop: which rule decides for which customer, drawn by the customer's id, and each arm's money."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from envs.live.plan.output.plan_file import plans_in, read_facts
from envs.offers.logs.customer_weeks import ARMS
from envs.offers.populations.base import hash_uniform
from rlcore.offline.file_columns import arrow
from rlcore.offline.parquet_files import read_parquet

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


def moved_arms(folder: Path, week: int, arms: Arms, ids: Sequence[str], arm: np.ndarray) -> Iterator[str]:
    """Warn where customers have another arm, an index into ARMS [N], than in the newest plan before a week.

    The arms of both are compared, not the settings that they follow from: a package's own holdout, or another program,
    moves customers too.
    """
    paths = {read_facts(path)["week"]: path for path in plans_in(folder)}
    newest = max((k for k in paths if k < week), default=None)
    if newest is None:
        return
    before = arms_in(paths[newest], ids)
    is_in_both = before >= 0
    moved = int((before != arm)[is_in_both].sum())
    if moved:
        shares = Arms(*read_facts(paths[newest])["shares"])
        changed = [f.name for f in fields(arms) if getattr(shares, f.name) != getattr(arms, f.name)]
        settings = [f"arms.{name} {getattr(shares, name)} -> {getattr(arms, name)}" for name in changed]
        why = ", ".join(settings) or "no arms.* changed: the package's holdout did, or the program that draws arms"
        yield (
            f"{moved:,} of {int(is_in_both.sum()):,} customers have another arm than in week {newest} ({why}): a "
            "comparison of arms over both weeks leaves them out"
        )


def arms_in(plan: Path, ids: Sequence[str]) -> np.ndarray:
    """Return the arm that a plan's file gives to each of the customers `ids`, int64 [N]; −1: the plan lacks them."""
    pa = arrow()
    table = read_parquet(plan, columns=["customer", "arm"])
    number = pa.compute.index_in(table["arm"].cast(pa.string()).combine_chunks(), pa.array(ARMS))
    row = pa.compute.index_in(pa.array(ids, pa.string()), table["customer"].cast(pa.string()).combine_chunks())
    return number.take(row).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
