"""Trained policies of offers, restored for a benchmark, and algorithms that a benchmark trained, stored."""

from __future__ import annotations

from pathlib import Path

import torch

from envs.offers.env import OffersEnv
from rlcore.algorithm import Algorithm
from rlcore.runs import checkpoint
from scripts.shared.stored_runs import Trained, load_whole, restored


def restore(path: str, device: torch.device, trusted: list[str]) -> Trained:
    """Restore a checkpoint. Raises ValueError where its environment is not one of offers."""
    state = load_whole(path)
    found = restored(state, path, state["config"], device, trusted=trusted)
    if not isinstance(found.env, OffersEnv):
        raise ValueError(f"{path}: expected a policy of env=offers, got one of {type(found.env).__name__}")
    return found


def store(path: Path, name: str, algorithm: Algorithm) -> None:
    """Write an algorithm that no configuration made as a checkpoint, which environments and views of beliefs read."""
    checkpoint.save(path, {"agent": algorithm.state_dict(), "name": name, "config": {}, "logger": {}})
