"""The mails of a refresh of a reward model: new ones, and a replay of old ones."""

from __future__ import annotations

import math

import torch

from email_rl.data.mails import Mails


def without_crossing(new: dict[str, Mails], old: dict[str, Mails]) -> dict[str, Mails]:
    """Return the new splits, without texts that are on another side of the old splits."""
    return {
        name: mails.without(sum((x for other, x in old.items() if other != name), mails.rows([])))
        for name, mails in new.items()
    }


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
