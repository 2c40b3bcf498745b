"""A contextual bandit that is known and not linear: where explorers are compared."""
from __future__ import annotations

import torch
from torch import Tensor

from envs.base import BatchedEnv, Step


class SyntheticBandit(BatchedEnv):
    """Contexts x uniform on the unit sphere; action a earns cos(3·θ_aᵀx) and noise, θ_a drawn once on the sphere.

    The third reward of Zhou, Li & Gu 2020, one parameter an action. Every step is an episode.
    """

    truncates = False

    def __init__(self, device: torch.device, seed: int, *, num_agents: int, dim: int, actions: int, noise: float):
        self.device, self.num_agents, self.noise = torch.device(device), num_agents, noise
        self.obs_dim = self.context_dim = dim
        self.nvec = (actions,)
        self.generator = torch.Generator(self.device).manual_seed(2 * seed)
        self.theta = self._sphere(actions)
        self.context = self._sphere(num_agents)
        self.everything = torch.ones(num_agents, actions, dtype=torch.bool, device=self.device)

    def _sphere(self, n: int) -> Tensor:
        x = torch.randn(n, self.obs_dim, generator=self.generator, device=self.device)
        return x / x.norm(dim=1, keepdim=True)

    def begin(self) -> tuple[Tensor, Tensor]:
        """Carry on with the contexts at hand."""
        return self.context, self.everything

    def expected_reward(self) -> Tensor:
        """cos(3·θᵀx), [B, actions]."""
        return torch.cos(3 * self.context @ self.theta.T)

    def step(self, action: Tensor) -> Step:
        """Take [B, 1] actions; the next contexts are new."""
        mean = self.expected_reward().gather(1, action)[:, 0]
        reward = mean + self.noise * torch.randn(self.num_agents, generator=self.generator, device=self.device)
        self.context = self._sphere(self.num_agents)
        ends = torch.ones_like(reward, dtype=torch.bool)
        return Step(self.context, self.everything, reward, ends, ~ends, self.context, {"reward": reward})

    def state_dict(self) -> dict:
        """Contexts, parameters and the random stream."""
        return {"context": self.context, "theta": self.theta, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        self.context, self.theta = state["context"].to(self.device), state["theta"].to(self.device)
        self.generator.set_state(state["generator"].cpu())
