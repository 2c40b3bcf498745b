"""The toy sequential world as usually written for Stable-Baselines3: one world, plain Python, a step at a time."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.sequential.env import SLACK, SequentialEnv


class ScalarToy(gymnasium.Env):
    """One world of a SequentialEnv on the toy world: the same tables, observation, budget and rewards."""

    def __init__(self, env: SequentialEnv):
        world = env.world
        self.customers, self.steps, self.weeks, self.penalty = env.customers, env.season_steps, world.weeks, env.penalty
        self.budget, self.trips, self.realised, self.features = (
            env.budget,
            world.trips,
            world.realised,
            world.num_features,
        )
        tables = (env.cost, world.profit, world.trip)
        self.cost, self.profit, self.trip = (x.view(env.nvec).tolist() for x in tables)
        self.observation_space = spaces.Box(-np.inf, np.inf, (env.obs_dim,), np.float32)
        self.action_space = spaces.MultiDiscrete(list(env.nvec))

    def observe(self) -> np.ndarray:
        """Observe the next customer."""
        obs = np.empty(self.features + 3, np.float32)
        obs[:-3] = self.np_random.standard_normal(self.features, dtype=np.float32)
        self.clock(obs)
        return obs

    def clock(self, obs: np.ndarray) -> None:
        """Write week, position and budget into an observation."""
        week, position = divmod(self.time, self.customers)
        obs[-3], obs[-2], obs[-1] = week / self.weeks, position / self.customers, self.left / self.budget

    def reset(self, *, seed=None, options=None):
        """Start a season."""
        super().reset(seed=seed)
        self.time, self.left = 0, self.budget
        return self.observe(), {}

    def step(self, action):
        """Send one customer a pair."""
        offer, channel = int(action[0]), int(action[1])
        reward = 0.0
        if self.cost[offer][channel] > self.left + SLACK:
            reward, offer, channel = self.penalty or 0.0, 0, 0
        self.left = max(self.left - self.cost[offer][channel], 0.0)
        trip = self.np_random.random() < self.trip[offer][channel] if self.realised else self.trip[offer][channel]
        reward += self.profit[offer][channel] + self.trips * trip
        self.time += 1
        ends = self.time == self.steps
        if self.time % self.customers == 0 and not ends:
            self.left = self.budget
        return self.observe(), reward, ends, False, {}
