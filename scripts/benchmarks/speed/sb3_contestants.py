"""Stable-Baselines3 and our PPO under the same settings, each stage a function without arguments, to be timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from envs.sequential.env import SequentialEnv
from rlcore.backends.accelerate import accelerate
from scripts.benchmarks.common.timing import Stage, ppo_stages
from scripts.benchmarks.speed.scalar_env import ScalarToy

try:
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
except ImportError as error:
    raise ValueError("Stable-Baselines3 is not installed: pip install -e '.[bench]'") from error


def scalars(env: SequentialEnv) -> DummyVecEnv:
    """Return as many scalar environments as `env` has worlds."""
    return DummyVecEnv([partial(ScalarToy, env)] * env.num_agents)


def peer(kind: type, env: VecEnv, seed: int, algo: dict):
    """Build Stable-Baselines3's algorithm with the settings of our PPO."""
    batch = env.num_envs * algo["num_steps"]
    net = algo["network"].keywords
    return kind(
        "MlpPolicy",
        env,
        seed=seed,
        device="cpu",
        learning_rate=algo["optimizer"].keywords["lr"],
        n_steps=algo["num_steps"],
        batch_size=batch // algo["minibatches"],
        n_epochs=algo["epochs"],
        gamma=algo["gamma"],
        gae_lambda=algo["gae_lambda"],
        clip_range=algo["clip"],
        ent_coef=algo["ent_coef"],
        vf_coef=algo["vf_coef"] / 2,
        max_grad_norm=algo["max_grad_norm"],
        policy_kwargs={"net_arch": {"pi": net["hidden"], "vf": net["hidden"]}, "activation_fn": nn.Tanh},
    )


def peer_stages(env: VecEnv, seed: int, algo: dict) -> dict[str, Stage]:
    """The stages of Stable-Baselines3's PPO on a VecEnv.

    `collect` fills a rollout buffer (acts, steps, stores, values, advantages), `update` learns from it, `environment`
    steps alone.
    """
    model = peer(stable_baselines3.PPO, env, seed, algo)
    model.learn(1)  # sets up, and warms up with one iteration
    callback = model._init_callback(None)
    steps = algo["num_steps"]
    rollout = [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps)]

    def environment() -> None:
        for actions in rollout:
            env.step(actions)

    return {
        "environment": environment,
        "collect": lambda: model.collect_rollouts(model.env, callback, model.rollout_buffer, steps),
        "update": model.train,
    }


def our_stages(env: SequentialEnv, seed: int, mode: str, algo: Callable) -> dict[str, Stage]:
    """The same stages of our PPO on a VectorEnv."""
    stages = ppo_stages(accelerate(algo(env, seed), mode))

    def collect() -> None:
        stages["collect"]()
        stages["advantages"]()

    for _ in range(2):  # warm up, and compile
        collect()
        stages["update"]()
    return {"environment": stages["environment"], "collect": collect, "update": stages["update"]}
