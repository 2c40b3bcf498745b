"""Any Gymnasium environment with discrete actions as a VectorEnv."""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from envs.base import Step, VectorEnv

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
except ImportError as error:
    raise ValueError("Gymnasium is not installed: pip install -e '.[gym]'") from error

MAX_COMBINATIONS = 2**16  # combinations of heads that a joint table is made for


def copies(id: str, kwargs: dict, count: int) -> SyncVectorEnv:
    """Make `count` copies of a registered environment with flat observations; raise ValueError where it can't be used."""
    def make():
        return gymnasium.wrappers.FlattenObservation(gymnasium.make(id, **kwargs))
    try:
        return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gymnasium.error.Error, ImportError, TypeError, NotImplementedError) as error:
        raise ValueError(f"env.id, env.kwargs: {id} can't be made: {error}") from error


def combinations(id: str, space: spaces.Space) -> tuple[int, ...]:
    """Sizes of the heads of an action space; raise ValueError where it has none."""
    if isinstance(space, spaces.Discrete):
        nvec = (int(space.n),)
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        nvec = tuple(int(n) for n in space.nvec)
    else:
        raise ValueError(f"env.id: expected Discrete or MultiDiscrete actions, {id} has {space}")
    if math.prod(nvec) > MAX_COMBINATIONS:
        raise ValueError(f"env.id: {id} has {math.prod(nvec):,} combinations of actions, more than {MAX_COMBINATIONS:,}")
    return nvec


class GymnasiumEnv(VectorEnv):
    """Copies of a Gymnasium environment, stepped on the host and reset in the step; observations are flattened.

    Masks are taken from `action_masks()` (a row of Σn entries, one a choice, or Πn, one a combination; the convention of
    sb3-contrib) or from `info["action_mask"]`. What is inside the environments can't be saved: a resumed run starts new
    episodes.
    """

    can_truncate = True
    info_keys = ("reward", "ended")

    def __init__(self, device: torch.device, seed: int, *, id: str, kwargs: dict, num_agents: int, evaluation):
        self.device, self.num_agents, self.evaluation, self.id, self.kwargs = device, num_agents, evaluation, id, kwargs
        self.envs = copies(id, kwargs, num_agents)
        self.nvec = combinations(id, self.envs.single_action_space)
        self.obs_dim = math.prod(self.envs.single_observation_space.shape)
        self.start = np.asarray(self.envs.single_action_space.start)
        self.masks = all(env.has_wrapper_attr("action_masks") for env in self.envs.envs)
        self.seed, self.steps = seed, 0
        self._restart()

    def _restart(self) -> None:
        """Start new episodes in all copies, by a stream that follows from the seed and the steps so far."""
        seeds = np.random.SeedSequence((self.seed, self.steps)).generate_state(self.num_agents)
        self.last = self._observe(*self.envs.reset(seed=[int(s) for s in seeds]))

    def reset(self) -> tuple[Tensor, Tensor]:
        """Return where the copies are; they go on from rollout to rollout."""
        return self.last

    def _observe(self, obs: np.ndarray, info: dict) -> tuple[Tensor, Tensor]:
        if self.masks:
            mask = np.stack([env.get_wrapper_attr("action_masks")() for env in self.envs.envs])
        else:
            mask = info.get("action_mask")
        if mask is None:
            mask = torch.ones(self.num_agents, *self.nvec, dtype=torch.bool)
        else:
            mask = self._joint(torch.as_tensor(mask.astype(bool)))
        return self._floats(obs), mask.to(self.device)

    def _joint(self, mask: Tensor) -> Tensor:
        mask = mask.flatten(1)
        if mask.shape[1] == sum(self.nvec):
            table = torch.ones(len(mask), *self.nvec, dtype=torch.bool)
            for dim, head in enumerate(mask.split(self.nvec, -1)):
                table = table & head.view(-1, *(n if d == dim else 1 for d, n in enumerate(self.nvec)))
        elif mask.shape[1] == math.prod(self.nvec):
            table = mask.view(-1, *self.nvec)
        else:
            raise ValueError(f"env.id: {self.id} masks {mask.shape[1]} actions, expected {sum(self.nvec)} or "
                             f"{math.prod(self.nvec)}")
        if not table.flatten(1).any(1).all():
            raise ValueError(f"env.id: {self.id} masks every action")
        return table

    def _floats(self, x: np.ndarray) -> Tensor:
        return torch.as_tensor(x.astype(np.float32)).to(self.device)

    def step(self, action: Tensor) -> Step:
        """Act [B, K], one copy after the other."""
        chosen = action.cpu().numpy() + self.start
        obs, reward, terminated, truncated, info = self.envs.step(chosen[:, 0] if self.start.ndim == 0 else chosen)
        final = obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            final[i] = info["final_obs"][i]
        self.steps += 1
        self.last = self._observe(obs, info)
        terminated, truncated = (torch.as_tensor(x).to(self.device) for x in (terminated, truncated & ~terminated))
        reward = self._floats(reward)
        return Step(*self.last, reward, terminated, truncated, self._floats(final),
                    {"reward": reward, "ended": terminated | truncated})

    def state_dict(self) -> dict:
        """How far the stream of seeds has gone."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Start new episodes where the stream of seeds went on."""
        self.steps = state["steps"]
        self._restart()
