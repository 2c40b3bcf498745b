"""Offline learners at sizes that take a second, and their logs."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import functional

from configs import load, node
from envs.data_collection import UniformPolicy, rollouts
from rlcore.offline.logged_dataset import LoggedDataset
from toy_envs import Chain

CPU = torch.device("cpu")
SPEND = node("../algo/auxiliary/redemption_model")
SMALL = {
    "network": {"hidden": [32, 32]},
    "optimizer": {"lr": 0.01},
    "lr_schedule": None,
    "auxiliary": None,
    "variance_reduction": None,
    "updates": 10,
    "batch_size": 64,
    "target_every": 5,
    "total_steps": 6400,
    "eval_every": 1000,
    "checkpoint_every": 1000,
}


def make(env, log, algo="cql", *, seed=0, keep="cql", kept=None, **changes):
    """Build an offline learner from its YAML: SMALL, then `changes`; `kept` are changes of what keeps it to its log."""
    config = node(f"../algo/{algo}", f"algo={algo}").copy()
    config.network = node("../algo/network/action_values")
    config = OmegaConf.merge(config, SMALL, changes)
    config.behaviour_constraint = keep and OmegaConf.merge(
        node(f"../algo/behaviour_constraint/{keep}", f"algo={algo}"), kept or {}
    )
    agent = instantiate(config, _convert_="all")(env, seed)
    agent.set_dataset(log)
    return agent


class Tabular(Chain):
    """The chain with a column for every time and place."""

    obs_dim = 30

    def observe(self, state):
        return functional.one_hot((state[:, 0] % 5) * 6 + state[:, 1], 30).float()


def logged(env, decisions=20_000, seed=0, steps=64) -> LoggedDataset:
    parts = rollouts(env, UniformPolicy(), "uniform", seed, decisions=decisions, steps=steps, all_propensities=False)
    return LoggedDataset.cat(list(parts))


def offers(agents=200, **changes):
    env = load("offers_full_information", CPU, 0, num_agents=agents, population={"reference_size": 1000}, **changes)
    env.use_realised_outcomes()
    env.reset()
    return env
