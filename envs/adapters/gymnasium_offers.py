"""The sequential offers environment as a Gymnasium environment, one world or many.

env = gymnasium.make("envs.adapters.gymnasium_offers:crm/Offers-v0", overrides=["env/world=sequential"])
envs = OffersVectorEnv(sequential(64, 0, ["env.customers=200"]), flat=True)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from envs.configuration import make_env
from envs.offers.world.catalogue import ActionCodec
from envs.sequential.env import SequentialEnv

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ValueError("Gymnasium is not installed: pip install -e '.[gym]'") from error


def sequential(worlds: int, seed: int, overrides: Sequence[str] = (), device: str = "cpu") -> SequentialEnv:
    """Build env=offers_sequential from conf/ with overrides as on the command line, every world at a season's start."""
    env = make_env(
        "env=offers_sequential",
        "env.random_start=false",
        *overrides,
        f"env.num_agents={worlds}",
        device=device,
        seed=seed,
    )
    assert isinstance(env, SequentialEnv)  # what conf/env/offers_sequential.yaml names
    return env


def spaces_of(env: SequentialEnv, flat: bool) -> tuple[spaces.Box, spaces.Space]:
    """Return the observation and the action space of one world."""
    actions = spaces.Discrete(math.prod(env.nvec)) if flat else spaces.MultiDiscrete(list(env.nvec))
    return spaces.Box(-np.inf, np.inf, (env.obs_dim,), np.float32), actions


def to_actions(env: SequentialEnv, actions, flat: bool) -> Tensor:
    """Turn the actions of all worlds into the environment's, [W, 2]."""
    action = torch.as_tensor(np.asarray(actions, dtype=np.int64)).to(env.device)
    return ActionCodec(*env.nvec).decode_action(action.view(-1)) if flat else action.view(env.num_agents, 2)


class OffersEnv(gymnasium.Env):
    """One world. With `flat`, actions are Discrete: flat indices in place of pairs (offer, channel).

    info has the joint mask of valid pairs as `action_mask`; in the flat form `action_masks()` returns it as well.
    """

    metadata: dict = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, overrides: Sequence[str] = (), flat: bool = False):
        self.env, self.flat, self.at_start = sequential(1, 0, overrides), flat, False
        self.observation_space, self.action_space = spaces_of(self.env, flat)
        self.action_mask = self.env.reset()[1]
        if flat:
            self.action_masks = lambda: self.action_mask[0].flatten().numpy()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start a season; without a seed the random stream goes on."""
        unseeded = self._np_random is None
        super().reset(seed=seed)
        if seed is not None or unseeded:
            self.env.seed([int(self.np_random.integers(2**31)) if seed is None else seed])
        elif not self.at_start:
            self.env.restart()
        self.at_start = True
        obs, self.action_mask = self.env.reset()
        return obs[0].numpy(), {"action_mask": self.action_mask[0].numpy().copy()}

    def step(self, action):
        """Send one customer a pair; at the season's end the observation is that of the season's last state."""
        step = self.env.step(to_actions(self.env, action, self.flat))
        self.at_start, self.action_mask = bool(step.terminated[0]), step.action_mask
        return (
            step.final_obs[0].numpy(),
            step.reward[0].item(),
            self.at_start,
            False,
            {"action_mask": step.action_mask[0].numpy().copy()},
        )


class OffersVectorEnv(VectorEnv):
    """All worlds of an environment at once, reset in the step; world i equals an `OffersEnv` seeded seed + i."""

    metadata: dict = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as above

    def __init__(self, env: SequentialEnv, flat: bool):
        self.env, self.flat, self.num_envs = env, flat, env.num_agents
        self.single_observation_space, self.single_action_space = spaces_of(env, flat)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | list[int] | None = None, options: dict | None = None):
        """Start a season in every world; without a seed the random streams go on."""
        unseeded = self._np_random is None
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None and unseeded:
            seed = int(self.np_random.integers(2**31))
        if seed is not None:
            self.env.seed([seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed))
        else:
            self.env.restart()
        obs, action_mask = self.env.reset()
        return obs.cpu().numpy(), {"action_mask": action_mask.cpu().numpy().copy()}

    def step(self, actions):
        """Step all worlds; info has the last observation of a season as `final_obs` where `_final_obs` is true."""
        step = self.env.step(to_actions(self.env, actions, self.flat))
        terminated = step.terminated.cpu().numpy()
        info = {"action_mask": step.action_mask.cpu().numpy().copy()}
        if terminated.any():
            info |= {"final_obs": step.final_obs.cpu().numpy(), "_final_obs": terminated}
        return (
            step.obs.cpu().numpy(),
            step.reward.cpu().numpy().astype(np.float64),
            terminated,
            step.truncated.cpu().numpy(),
            info,
        )


gymnasium.register("crm/Offers-v0", entry_point=f"{__name__}:{OffersEnv.__name__}")
