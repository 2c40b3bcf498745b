"""Stable-Baselines3 and our PPO under the same settings, each stage a function without arguments, to be timed."""
from __future__ import annotations

from functools import partial
from typing import Callable

import torch
from torch import nn

from envs.sequential.env import SequentialEnv
from scripts.benchmarks.speed.scalar_env import ScalarToy

try:
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
except ImportError as error:
    raise ValueError("Stable-Baselines3 is not installed: pip install -e '.[bench]'") from error


def scalars(env: SequentialEnv) -> DummyVecEnv:
    """As many scalar environments as `env` has worlds."""
    return DummyVecEnv([partial(ScalarToy, env)] * env.num_agents)


def peer(kind: type, env: VecEnv, seed: int, algo: dict):
    """Build Stable-Baselines3's algorithm with the settings of our PPO."""
    batch = env.num_envs * algo["num_steps"]
    net = algo["net"].keywords
    return kind("MlpPolicy", env, seed=seed, device="cpu", learning_rate=algo["optim"].keywords["lr"],
                n_steps=algo["num_steps"], batch_size=batch // algo["minibatches"], n_epochs=algo["epochs"],
                gamma=algo["gamma"], gae_lambda=algo["gae_lambda"], clip_range=algo["clip"], ent_coef=algo["ent_coef"],
                vf_coef=algo["vf_coef"] / 2, max_grad_norm=algo["max_grad_norm"],
                policy_kwargs={"net_arch": {"pi": net["hidden"], "vf": net["hidden"]}, "activation_fn": nn.Tanh})


class Peer:
    """Stable-Baselines3's PPO on a VecEnv."""

    def __init__(self, env: VecEnv, seed: int, algo: dict):
        self.model, self.env, self.steps = peer(stable_baselines3.PPO, env, seed, algo), env, algo["num_steps"]
        self.model.learn(1)  # sets up, and warms up with one iteration
        self.callback = self.model._init_callback(None)
        self.actions = [[self.env.action_space.sample() for _ in range(env.num_envs)] for _ in range(self.steps)]

    def step(self) -> None:
        """Step the environment alone."""
        for actions in self.actions:
            self.env.step(actions)

    def collect(self) -> None:
        """Fill a rollout buffer: act, step, store, values and advantages."""
        self.model.collect_rollouts(self.model.env, self.callback, self.model.rollout_buffer, self.steps)

    def update(self) -> None:
        """Learn from it."""
        self.model.train()


class Ours:
    """Our PPO on a BatchedEnv."""

    def __init__(self, env: SequentialEnv, seed: int, mode: str, algo: Callable):
        self.ppo, self.env = algo(env, seed, mode), env
        self.actions = torch.stack([torch.randint(n, (self.ppo.num_steps, env.num_agents)) for n in env.nvec], -1)
        for _ in range(2):  # warm up, and compile
            self.collect()
            self.update()

    def step(self) -> None:
        """Step the environment alone."""
        for action in self.actions:
            self.env.step(action)

    def collect(self) -> None:
        """Act, step, store, values and advantages."""
        self.rollout, _ = self.ppo.collect()
        self.batch = self.ppo.prepare(self.rollout)

    def update(self) -> None:
        """Learn from it."""
        self.ppo.update(self.rollout, self.batch)
