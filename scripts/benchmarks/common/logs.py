"""Logs for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
) -> tuple[Env, Iterator[LoggedDataset]]:
    """Open an environment with realised outcomes, and log its seasons of `agents` customers lazily.

    At least `decisions` are logged. The environment then still has the last season's customers.
    """
    world = env(device, seed, num_agents=agents)
    world.use_realised_outcomes()
    logs = rollouts(world, logging_policy, "log", seed, decisions=decisions, steps=1, all_propensities=all_propensities)
    return world, logs
