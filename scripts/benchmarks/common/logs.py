"""Logs for benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from envs.base import VectorEnv
from envs.data_collection import LoggingPolicy, rollouts
from rlcore.offline.logged_dataset import LoggedDataset

Env = TypeVar("Env", bound=VectorEnv)


def log_seasons(
    env: Callable[..., Env],
    logging_policy: LoggingPolicy,
    decisions: int,
    agents: int,
    device: torch.device,
    seed: int,
    *,
    all_propensities: bool = False,
) -> tuple[Env, LoggedDataset]:
    """Log seasons of `agents` customers of an environment with realised outcomes, at least `decisions`, deduplicated.

    The environment is returned too; it still has the last season's customers.
    """
    world = env(device, seed, num_agents=agents)
    world.use_realised_outcomes()
    chunks = rollouts(
        world, logging_policy, "log", seed, decisions=decisions, steps=1, all_propensities=all_propensities
    )
    return world, LoggedDataset.cat([chunk.deduplicate(world.context_dim) for chunk in chunks])
