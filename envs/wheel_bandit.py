"""The wheel bandit, a test of explorers: its rewards are known, far from linear, and hard to find."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import Step, VectorEnv


class Wheel(VectorEnv):
    """Contexts uniform on the unit disk, five actions (Riquelme, Tucker & Snoek 2018, §5.4); every step is an episode.

    The first action earns `safe` everywhere, the others `plain`. Beyond radius `delta`, however, the one action that
    belongs to the quadrant earns `prize`. Noise is normal. An explorer that settles for the safe action never finds the
    prizes.
    """

    obs_dim = 2
    info_keys = ("reward",)
    nvec = (5,)

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        num_agents: int,
        delta: float,
        safe: float,
        plain: float,
        prize: float,
        noise: float,
    ):
        self.device, self.num_agents = torch.device(device), num_agents
        self.delta, self.noise = delta, noise
        self.rewards = torch.tensor([safe, plain, prize], device=self.device)
        self.generator = torch.Generator(self.device).manual_seed(2 * seed)
        self.everything = torch.ones(num_agents, *self.nvec, dtype=torch.bool, device=self.device)
        self.context = self._draw()

    def _draw(self) -> Tensor:
        u = torch.rand(2, self.num_agents, generator=self.generator, device=self.device)
        radius, angle = u[0].sqrt(), 2 * torch.pi * u[1]
        return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Return the current contexts, which go on."""
        return self.context, self.everything

    def expected_reward(self) -> Tensor:
        """Mean reward of all actions, [B, 5]."""
        safe, plain, prize = self.rewards
        x, y = self.context.unbind(-1)
        quadrant = 1 + (x < 0).long() + 2 * (y < 0).long()
        pays = (self.context.norm(dim=-1) > self.delta)[:, None] & (
            torch.arange(5, device=self.device) == quadrant[:, None]
        )
        mean = torch.where(pays, prize, plain)
        mean[:, 0] = safe
        return mean

    def step(self, action: Tensor) -> Step:
        """Take [B, 1] actions; the next contexts are new."""
        mean = self.expected_reward().gather(1, action)[:, 0]
        reward = mean + self.noise * torch.randn(self.num_agents, generator=self.generator, device=self.device)
        self.context = self._draw()
        ends = torch.ones_like(reward, dtype=torch.bool)
        return Step(self.context, self.everything, reward, ends, ~ends, self.context, {"reward": reward})

    def state_dict(self) -> dict:
        """Contexts and the random stream."""
        return {"context": self.context, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""
        self.context = state["context"].to(self.device)
        self.generator.set_state(state["generator"].cpu())
