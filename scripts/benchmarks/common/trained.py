"""Trained policies of offers, restored for a benchmark, and twins that a benchmark fits, stored."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from envs.configuration import CONF, instantiate_stored
from envs.offers.env import OffersEnv
from envs.offers.twin.ensemble import TwinEnsemble
from envs.range_checks import check_stored_ranges
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs import checkpoint
from scripts.shared.stored_runs import fitting


class Training(NamedTuple):
    """A checkpoint's algorithm, in the environment that it was trained in, and its configuration."""

    algorithm: NetworkAlgorithm
    env: OffersEnv
    config: dict


def restore(path: str, device: torch.device, trusted: list[str]) -> Training:
    """Restore a checkpoint. Raises ValueError where its environment is not one of offers."""
    state = checkpoint.load(path)
    config = state["config"]
    check_stored_ranges(config, CONF, path)
    with fitting(path):
        make_env, make_algorithm = (instantiate_stored(config[part], path, trusted=trusted) for part in ("env", "algo"))
        env = make_env(device, config["seed"])
        if not isinstance(env, OffersEnv):
            raise ValueError(f"{path}: expected a policy of env=offers, got one of {type(env).__name__}")
        env.load_fitted(state["agent"]["env"])
        algorithm = make_algorithm(env, config["seed"])
        algorithm.load_policy(state["agent"])
    return Training(algorithm, env, config)


def store_twin(path: Path, twin: TwinEnsemble) -> None:
    """Write a structural twin as a checkpoint, which environments, views of beliefs and benchmarks read."""
    checkpoint.save(path, {"agent": twin.state_dict(), "name": "twin", "config": {}, "logger": {}, "shards": [{}]})
