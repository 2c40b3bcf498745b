"""Running scales as buffers: they travel in the state_dict and move only when told to."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcore.backends import distributed as parallel
from rlcore.returns import discounted_sum


class RunningNorm(nn.Module):
    """Shift and scale observations [B, D] by running mean and variance (Chan et al. 1979), clipped.

    Frozen but for `update`, so that acting and updating see the same numbers.
    """

    def __init__(self, size: int, clip: float):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * torch.rsqrt(self.var + 1e-8)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge a batch [..., D], or all processes' batches, into the moments."""
        rows, mean, var = parallel.moments(x.flatten(0, -2))
        count = self.count + rows
        share = rows / count
        delta = mean - self.mean
        self.var.mul_(1 - share).add_(var * share + delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(count)


class ReturnScale(nn.Module):
    """Divide rewards by the running standard deviation of the discounted return.

    The mean stays where it is; or with `center` their running mean is taken off first (Naik et al. 2024, "Reward
    Centering"). Where all episodes are of one length that is the same for every policy, and what it leaves a value to
    learn is what actions can change, not how much of the episode is left.
    """

    def __init__(self, num_agents: int, gamma: float, center: bool):
        super().__init__()
        self.gamma = gamma
        self.norm = RunningNorm(1, clip=torch.inf)
        self.reward = RunningNorm(1, clip=torch.inf) if center else None
        self.register_buffer("carried", torch.zeros(num_agents))

    def forward(self, reward: Tensor) -> Tensor:
        return self._centered(reward) * torch.rsqrt(self.norm.var + 1e-8)

    def _centered(self, reward: Tensor) -> Tensor:
        return reward if self.reward is None else reward - self.reward.mean

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Merge a rollout's rewards and ends, [T, N] each."""
        if self.reward is not None:
            self.reward.update(reward[..., None])
        # What came so far is what follows, told backwards.
        kept = self.gamma * (~done).to(reward.dtype)
        x = self._centered(reward)
        x = torch.cat((x[:1] + self.gamma * self.carried, x[1:]))
        returns = discounted_sum(x.flip(0), kept.roll(1, 0).flip(0)).flip(0)
        self.carried.copy_(torch.where(done[-1], 0.0, returns[-1]))
        self.norm.update(returns[..., None])
