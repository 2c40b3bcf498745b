"""The sequential offers environment as a Stable-Baselines3 VecEnv: one step for all worlds, without a loop."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.adapters.gymnasium_offers import spaces_of, to_actions
from envs.sequential.env import SequentialEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ValueError("Stable-Baselines3 is not installed: pip install -e '.[bench]'") from error


class OffersVecEnv(VecEnv):
    """All worlds of an environment; with `flat`, pairs are Discrete and MaskablePPO's `action_masks` is answered."""

    def __init__(self, env: SequentialEnv, flat: bool):
        self.env, self.flat = env, flat
        # infos of a step that ends no season
        self.empty_infos: list[dict[str, Any]] = [{} for _ in range(env.num_agents)]
        super().__init__(env.num_agents, *spaces_of(env, flat))

    def reset(self) -> np.ndarray:
        """Start a season in every world; without seeds (`seed` sets them) the random streams go on."""
        seeds = [seed for seed in self._seeds if seed is not None]  # all worlds have one, or none has
        if seeds:
            self.env.seed(seeds)
            self._reset_seeds()
        else:
            self.env.restart()
        obs, self.action_mask = self.env.reset()
        return obs.cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of all worlds."""
        self.actions = to_actions(self.env, actions, self.flat)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Step all worlds; infos hold the last observation where a season ended."""
        step = self.env.step(self.actions)
        self.action_mask = step.action_mask
        done, infos = step.terminated.cpu().numpy(), list(self.empty_infos)
        if done.any():
            final_obs = step.final_obs.cpu().numpy()
            for i in np.flatnonzero(done):
                infos[i] = {"terminal_observation": final_obs[i], "TimeLimit.truncated": False}
        return step.obs.cpu().numpy(), step.reward.cpu().numpy(), done, infos

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        """Return an attribute, the same for all worlds."""
        if attr_name == "action_masks" and self.flat:
            return [None] * len(list(self._get_indices(indices)))  # Stable-Baselines3 asks whether there is one
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        """Refuse: worlds can't differ."""
        raise AttributeError(f"the worlds of one environment share their attributes, {attr_name} can't be set for one")

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list[Any]:
        """Answer `action_masks`, a row [Πn] a world."""
        if method_name != "action_masks" or not self.flat:
            raise AttributeError(f"the worlds have no method {method_name}")
        action_mask = self.action_mask.flatten(1).cpu().numpy()
        return [action_mask[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        """Say that no world is wrapped."""
        return [False for _ in self._get_indices(indices)]
