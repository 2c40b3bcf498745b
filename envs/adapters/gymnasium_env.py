"""Gymnasium both ways: its environments for our PPO, and the sequential offers environment for everyone else's.

    env = gymnasium.make("envs.adapters.gymnasium_env:crm/Offers-v0", overrides=["env/world=structural"])
    envs = OffersVector(sequential(64, 0, ["env.customers=200"]), flat=True)
"""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from torch import Tensor

from envs.base import BatchedEnv, Step
from envs.offers.world.catalogue import ActionCodec
from envs.sequential.env import SequentialEnv

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ValueError("Gymnasium is not installed: pip install -e '.[gym]'") from error

MOST_PAIRS = 2**16  # combinations of heads that a joint table is made for


# ── in: any Gymnasium environment as a BatchedEnv ───────────────────────────────────────────────────────────────────
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
    if math.prod(nvec) > MOST_PAIRS:
        raise ValueError(f"env.id: {id} has {math.prod(nvec):,} combinations of actions, more than {MOST_PAIRS:,}")
    return nvec


class GymnasiumEnv(BatchedEnv):
    """Copies of a Gymnasium environment, stepped on the host and reset in the step; observations are flattened.

    Masks are taken from `action_masks()` (a row of Σn entries, one a choice, or Πn, one a combination; the convention of
    sb3-contrib) or from `info["action_mask"]`. What is inside the environments can't be saved: a resumed run starts new
    episodes.
    """

    truncates, redeems = True, False

    def __init__(self, device: torch.device, seed: int, *, id: str, kwargs: dict, num_agents: int, evaluation):
        self.device, self.num_agents, self.evaluation, self.id, self.kwargs = device, num_agents, evaluation, id, kwargs
        self.envs = copies(id, kwargs, num_agents)
        self.nvec = combinations(id, self.envs.single_action_space)
        self.obs_dim = self.context_dim = math.prod(self.envs.single_observation_space.shape)
        self.start = np.asarray(self.envs.single_action_space.start)
        self.masks = all(env.has_wrapper_attr("action_masks") for env in self.envs.envs)
        self.seed, self.steps = seed, 0
        self.reset()

    def reset(self) -> tuple[Tensor, Tensor]:
        """Start new episodes in all copies, by a stream that follows from the seed and the steps so far."""
        seeds = np.random.SeedSequence((self.seed, self.steps)).generate_state(self.num_agents)
        self.last = self._observe(*self.envs.reset(seed=[int(s) for s in seeds]))
        return self.last

    def begin(self) -> tuple[Tensor, Tensor]:
        """Observe where the copies are; they carry on from rollout to rollout."""
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
        self.reset()


# ── out: the sequential environment as others know environments ─────────────────────────────────────────────────────
def sequential(worlds: int, seed: int, overrides: list[str] = (), device: str = "cpu") -> SequentialEnv:
    """Build env=offers_sequential from conf/ with overrides as on the command line, every world at a season's start."""
    said = ["env=offers_sequential", "env.stagger=false", *overrides, f"env.num_agents={worlds}"]
    conf = str(Path(__file__).resolve().parents[2] / "conf")
    before = GlobalHydra.instance().hydra  # a script may be in the middle of its own
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(conf, version_base="1.3"):
            config = compose("train", overrides=said)
    finally:
        GlobalHydra.instance().hydra = before
    return instantiate(config.env, _convert_="all")(torch.device(device), seed)


def spaces_of(env: SequentialEnv, flat: bool) -> tuple[spaces.Box, spaces.Space]:
    """Return the observation and the action space of one world."""
    actions = spaces.Discrete(math.prod(env.nvec)) if flat else spaces.MultiDiscrete(env.nvec)
    return spaces.Box(-np.inf, np.inf, (env.obs_dim,), np.float32), actions


def pairs(env: SequentialEnv, actions, flat: bool) -> Tensor:
    """Turn the actions of all worlds into the environment's, [W, 2]."""
    action = torch.as_tensor(np.asarray(actions, dtype=np.int64)).to(env.device)
    return ActionCodec(*env.nvec).decode_action(action.view(-1)) if flat else action.view(env.num_agents, 2)


class Offers(gymnasium.Env):
    """One world. With `flat`, actions are Discrete: flat indices in place of MultiDiscrete's pairs (offer, channel).

    info has the joint mask of what can be sent as `action_mask`; in the flat form `action_masks()` gives it as well.
    """

    metadata: dict = {"render_modes": []}

    def __init__(self, overrides: list[str] = (), flat: bool = False):
        self.env, self.flat, self.fresh = sequential(1, 0, overrides), flat, False
        self.observation_space, self.action_space = spaces_of(self.env, flat)
        self.mask = self.env.begin()[1]
        if flat:
            self.action_masks = lambda: self.mask[0].flatten().numpy()

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start a season; without a seed the random stream goes on."""
        unseeded = self._np_random is None
        super().reset(seed=seed)
        if seed is not None or unseeded:
            self.env.seed([int(self.np_random.integers(2**31)) if seed is None else seed])
        elif not self.fresh:
            self.env.restart()
        self.fresh = True
        obs, self.mask = self.env.begin()
        return obs[0].numpy(), {"action_mask": self.mask[0].numpy().copy()}

    def step(self, action):
        """Send one customer something; at the season's end the observation is what it led to."""
        step = self.env.step(pairs(self.env, action, self.flat))
        self.fresh, self.mask = bool(step.terminated[0]), step.mask
        return (step.final_obs[0].numpy(), step.reward[0].item(), self.fresh, False,
                {"action_mask": step.mask[0].numpy().copy()})


class OffersVector(VectorEnv):
    """All worlds of an environment at once, reset in the step; world i equals an `Offers` of its own seeded seed + i."""

    metadata: dict = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, env: SequentialEnv, flat: bool):
        self.env, self.flat, self.num_envs, self.fresh = env, flat, env.num_agents, False
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
        obs, mask = self.env.begin()
        return obs.cpu().numpy(), {"action_mask": mask.cpu().numpy().copy()}

    def step(self, actions):
        """Step all worlds; `final_obs` of info is what a step led to where `_final_obs` says that a season ended."""
        step = self.env.step(pairs(self.env, actions, self.flat))
        obs, mask, reward, terminated, truncated, final_obs = (x.cpu().numpy() for x in step[:6])
        info = {"action_mask": mask.copy()}
        if terminated.any():
            info |= {"final_obs": final_obs, "_final_obs": terminated}
        return obs, reward.astype(np.float64), terminated, truncated, info


gymnasium.register("crm/Offers-v0", entry_point=Offers)
