"""The offers environment, its evaluation and logs of it, at sizes that take a second."""

from __future__ import annotations

import torch
from hydra.utils import instantiate

from configs import composed, load
from envs.data_collection import UniformPolicy, rollouts
from envs.offers.env import OffersEnv
from rlcore.offline.logged_dataset import LoggedDataset

CPU = torch.device("cpu")


def small_evaluation(customers: int = 60, seasons: int = 2, r2: float = 1.0, **changes):
    """Build the shipped evaluation, smaller, with its environment."""
    small = {
        "customers": customers,
        "seasons": seasons,
        "validation": 40,
        "tuning_customers": 50,
        "tuning_seasons": 1,
        "fees": [0.0, 0.7],
        "regression_customers": 1000,
        "bound": {"tolerance": 1e-3},
        "calibration_seasons": 1,
        "frontier": [],
    }
    population = {"reference_size": 1000, "r2": r2}
    env = load("offers_full_information", CPU, 0, num_agents=30, population=population, evaluation={**small, **changes})
    return env.evaluation(env)


def offers_env(agents: int = 60, **changes) -> OffersEnv:
    """Build the shipped environment with few customers, whose outcomes are drawn."""
    env = load("offers_full_information", CPU, 0, num_agents=agents, population={"reference_size": 1000}, **changes)
    env.use_realised_outcomes()
    return env


def logging_policy(name: str, **changes):
    """Build conf/logging_policy/NAME.yaml with some of its keys replaced."""
    return instantiate(
        {**composed(f"logging_policy={name}", name="collect").logging_policy, **changes}, _convert_="all"
    )


def random_log(customers: int, seed: int = 0, **changes) -> tuple[OffersEnv, LoggedDataset]:
    """An environment, and a log of a season of random decisions for its customers."""
    env = load("offers_full_information", CPU, seed, num_agents=customers, **changes)
    return env, random_season(env, seed)


def random_season(env: OffersEnv, seed: int = 0) -> LoggedDataset:
    """A log of a season of random decisions in an environment, which pays realised outcomes from now on."""
    env.use_realised_outcomes()
    parts = rollouts(
        env, UniformPolicy(), "uniform", seed, decisions=12 * env.num_agents, steps=1, all_propensities=False
    )
    return LoggedDataset.cat(list(parts))
