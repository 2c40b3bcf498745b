"""The mails of a refresh of a reward model: new ones, and a replay of old ones."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable

import torch

from email_rl.data.mails import Mails


def without_crossing(
    new: dict[str, Mails], old: dict[str, Mails], group: Callable[[Mails], list[int]]
) -> dict[str, Mails]:
    """Return the new splits without mails of the old ones, and without near-duplicates of another old side's mails.

    A near-duplicate is what `group` gives the same number, over old and new mails together. A mail that occurs n times
    among the old ones is left out at most n times: the file may hold the old mails again, and new ones that are equal.
    """
    parts = [*old.values(), *new.values()]
    groups = iter(group(sum(parts[1:], parts[0])))
    old_sides: dict[int, set[str]] = defaultdict(set)
    old_mails: Counter[tuple[str, str, int]] = Counter()
    for side, mails in old.items():
        for mail in _records(mails):
            old_sides[next(groups)].add(side)
            old_mails[mail] += 1
    kept: dict[str, list[int]] = {side: [] for side in new}
    for side, mails in new.items():
        for i, mail in enumerate(_records(mails)):
            crosses = not old_sides[next(groups)] <= {side}
            if old_mails[mail]:
                old_mails[mail] -= 1
            elif not crosses:
                kept[side].append(i)
    return {side: mails.rows(kept[side]) for side, mails in new.items()}


def _records(mails: Mails) -> list[tuple[str, str, int]]:
    return list(zip(mails.contexts, mails.texts, mails.outcome.tolist()))


def with_replay(new: Mails, old: Mails, replay_ratio: float, seed: int) -> Mails:
    """Return the new mails and `replay_ratio` times as many old ones, drawn at random (all where there are fewer)."""
    n = min(len(old), math.ceil(replay_ratio * len(new)))
    rows = torch.randperm(len(old), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return new + old.rows(rows)


def pack_splits(new: dict[str, Mails], old: dict[str, Mails] | None) -> dict:
    """Pack the mails of a run for a checkpoint and, in a refresh, those that the model had been trained on."""
    known = old or {name: Mails([], [], torch.zeros(0, dtype=torch.long)) for name in new}
    return {
        "new": {name: mails.pack() for name, mails in new.items()},
        "old": {name: mails.pack() for name, mails in known.items()},
    }


def unpack_splits(state: dict) -> dict[str, dict[str, Mails]]:
    """Restore the result of `pack_splits`, as `new` and `old`."""
    return {age: {name: Mails.unpack(packed) for name, packed in splits.items()} for age, splits in state.items()}
