"""Any Gymnasium environment with discrete actions as a VectorEnv."""

from __future__ import annotations

import math
import sys

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

MAX_COMBINATIONS = 2**16  # most combinations of heads that a joint table may have


class MaskInInfo(gymnasium.Wrapper):
    """Puts an environment's `action_masks()` (the convention of sb3-contrib) into the info of each step and reset.

    So the mask of an episode's last observation is kept when the episode is reset within the step.
    """

    def reset(self, **how):
        """Reset, with the mask of the first observation."""
        obs, info = self.env.reset(**how)
        return obs, info | self._mask()

    def step(self, action):
        """Act, with the mask of the observation that the action led to."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, info | self._mask()

    def _mask(self) -> dict[str, np.ndarray]:
        return {"action_mask": np.asarray(self.env.get_wrapper_attr("action_masks")())}


def make_copies(id: str, kwargs: dict, count: int) -> SyncVectorEnv:
    """Make copies of a registered environment with flat observations; raise ValueError where it can't be used."""

    def make():
        env = gymnasium.make(id, **kwargs)
        env = MaskInInfo(env) if env.has_wrapper_attr("action_masks") else env
        return gymnasium.wrappers.FlattenObservation(env)

    try:
        return SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)
    except (gymnasium.error.Error, ImportError, TypeError, NotImplementedError) as error:
        raise ValueError(f"env.id, env.kwargs: {id} can't be made: {error}") from error


def head_sizes(id: str, space: spaces.Space) -> tuple[int, ...]:
    """Return the sizes of the heads of an action space; raise ValueError where it is not discrete or too large."""
    if isinstance(space, spaces.Discrete):
        nvec: tuple[int, ...] = (int(space.n),)
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        nvec = tuple(int(n) for n in space.nvec)
    else:
        raise ValueError(f"env.id: expected Discrete or MultiDiscrete actions, {id} has {space}")
    if math.prod(nvec) > MAX_COMBINATIONS:
        raise ValueError(
            f"env.id: {id} has {math.prod(nvec):,} combinations of actions, more than {MAX_COMBINATIONS:,}"
        )
    return nvec


def image_shapes(space: spaces.Space) -> list[tuple[int, ...]]:
    """Return the shapes of the images in an observation space: boxes of bytes with two or more dimensions."""
    if isinstance(space, spaces.Dict):
        return [shape for part in space.values() for shape in image_shapes(part)]
    if isinstance(space, spaces.Tuple):
        return [shape for part in space for shape in image_shapes(part)]
    is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 1
    return [space.shape] if is_image and space.shape is not None else []


class GymnasiumEnv(VectorEnv):
    """Copies of a Gymnasium environment, stepped on the host and reset in the step; observations are flattened.

    Masks are taken from `action_masks()` or from `info["action_mask"]`. A mask is a row of Σn entries, one a choice, or
    of Πn entries, one a combination (the convention of sb3-contrib). The state inside the environments can't be saved:
    a resumed run starts new episodes.
    """

    can_truncate = True
    info_keys = ("reward", "ended")

    def __init__(self, device: torch.device, seed: int, *, id: str, kwargs: dict, num_agents: int, evaluation):
        self.device, self.num_agents, self.evaluation, self.id, self.kwargs = device, num_agents, evaluation, id, kwargs
        self.envs = make_copies(id, kwargs, num_agents)
        action_space, shape = self.envs.single_action_space, self.envs.single_observation_space.shape
        self.nvec = head_sizes(id, action_space)
        assert isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete))  # head_sizes refuses others
        flattened = self.envs.envs[0]
        assert isinstance(flattened, gymnasium.Wrapper)  # make_copies wraps each copy
        observed = flattened.env.observation_space
        if shape is None:
            raise ValueError(f"env.id: expected observations of a fixed size, {id} has {observed}")
        for size in image_shapes(observed):
            print(
                f"warning: env.id: {id} observes images of {size}: they become {math.prod(size):,} numbers of an MLP, "
                "which does not know which pixels are neighbours",
                file=sys.stderr,
            )
        self.obs_dim = math.prod(shape)
        self.first_action = np.asarray(action_space.start)
        self.seed, self.steps = seed, 0
        self._restart()

    def _restart(self) -> None:
        """Start new episodes in all copies, by a random stream that depends on the seed and the steps so far."""
        seeds = np.random.SeedSequence((self.seed, self.steps)).generate_state(self.num_agents)
        self.current = self._observe(*self.envs.reset(seed=[int(s) for s in seeds]))

    def reset(self) -> tuple[Tensor, Tensor]:
        """Return the copies' current observations; their episodes go on from rollout to rollout."""
        return self.current

    def _observe(self, obs: np.ndarray, info: dict) -> tuple[Tensor, Tensor]:
        return self._to_device(obs), self._joint_mask(info, np.arange(self.num_agents))

    def _joint_mask(self, info: dict, copies: np.ndarray) -> Tensor:
        """Return the joint mask [B, *nvec] of B copies, from rows with Σn entries, one a choice, or Πn."""
        if "action_mask" not in info:
            return torch.ones(len(copies), *self.nvec, dtype=torch.bool, device=self.device)
        given = torch.as_tensor(info["action_mask"][copies].astype(bool)).flatten(1)
        if given.shape[1] == sum(self.nvec):
            action_mask = torch.ones(len(given), *self.nvec, dtype=torch.bool)
            for dim, head in enumerate(given.split(self.nvec, -1)):
                action_mask = action_mask & head.view(-1, *(n if d == dim else 1 for d, n in enumerate(self.nvec)))
        elif given.shape[1] == math.prod(self.nvec):
            action_mask = given.view(-1, *self.nvec)
        else:
            raise ValueError(
                f"env.id: {self.id} masks {given.shape[1]} actions, expected {sum(self.nvec)} or {math.prod(self.nvec)}"
            )
        if not action_mask.flatten(1).any(1).all():
            raise ValueError(f"env.id: {self.id} masks every action")
        return action_mask.to(self.device)

    def _to_device(self, x: np.ndarray) -> Tensor:
        return torch.as_tensor(x.astype(np.float32)).to(self.device)

    def step(self, action: Tensor) -> Step:
        """Act [B, K], one copy after the other."""
        chosen = action.cpu().numpy() + self.first_action
        chosen = chosen[:, 0] if self.first_action.ndim == 0 else chosen
        obs, rewards, ended, cut, info = self.envs.step(chosen)
        final_obs = obs.copy()
        for i in np.flatnonzero(ended | cut):
            final_obs[i] = info["final_obs"][i]
        self.steps += 1
        self.current = self._observe(obs, info)
        final_action_mask = self.current[1].clone()
        if (cut_short := np.flatnonzero(cut & ~ended)).size:
            final_action_mask[cut_short] = self._joint_mask(info["final_info"], cut_short)
        reward = self._to_device(rewards)
        terminated = torch.as_tensor(ended).to(self.device)
        truncated = torch.as_tensor(cut & ~ended).to(self.device)
        return Step(
            obs=self.current[0],
            action_mask=self.current[1],
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=self._to_device(final_obs),
            info={"reward": reward, "ended": terminated | truncated},
            final_action_mask=final_action_mask,
        )

    def state_dict(self) -> dict:
        """Return the position in the stream of seeds."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Start new episodes from the stored position in the stream of seeds."""
        self.steps = state["steps"]
        self._restart()
