"""Running moments of observations and rewards.

The moments are buffers: a checkpoint has them, and only `update` and `fit` change them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcore.backends import distributed
from rlcore.returns import discounted_sum


class RunningNormalizer(nn.Module):
    """Shift and scale observations [..., D] by their running mean and variance (Chan et al. 1979), clipped at ±`clip`.

    The moments change only by `update`, so that acting and updating see the same numbers.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int, clip: float):
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, slice(None))

    def part(self, x: Tensor, columns: slice) -> Tensor:
        """Return the columns of the result that belong to some columns of observations, given those alone."""
        return ((x - self.mean[columns]) * torch.rsqrt(self.var[columns] + 1e-8)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the moments of a batch [..., D], joined over all processes, into the running moments."""
        batch_count, batch_mean, batch_var = distributed.all_reduce_moments(x.flatten(0, -2))
        count = self.count + batch_count
        share = batch_count / count
        delta = batch_mean - self.mean
        self.var.mul_(1 - share).add_(batch_var * share + delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(count)


class RewardNormalizer(nn.Module):
    """Divide rewards by the running standard deviation of the discounted return.

    With `center` the running mean of rewards is subtracted first (Naik et al. 2024, "Reward Centering"); without it,
    rewards keep their mean. Where all episodes have one length, the subtraction changes the return of every policy
    alike, and the value function learns what actions change instead of how much of the episode is left. Where actions
    decide the length, the subtraction changes which policy is best.
    """

    return_so_far: Tensor

    def __init__(self, num_agents: int, gamma: float, center: bool):
        super().__init__()
        self.gamma = gamma
        self.returns = RunningNormalizer(1, clip=torch.inf)
        self.rewards = RunningNormalizer(1, clip=torch.inf) if center else None
        self.register_buffer("return_so_far", torch.zeros(num_agents))

    def forward(self, reward: Tensor) -> Tensor:
        return self._centered(reward) * torch.rsqrt(self.returns.var + 1e-8)

    def _centered(self, reward: Tensor) -> Tensor:
        return reward if self.rewards is None else reward - self.rewards.mean

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Merge the rewards [T, N] of a rollout, whose episodes end where `done`, into the running moments."""
        if self.rewards is not None:
            self.rewards.update(reward[..., None])
        # The return so far is a discounted sum backwards in time.
        first_step = self._centered(reward[:1]) + self.gamma * self.return_so_far
        x = torch.cat((first_step, self._centered(reward[1:])))
        decay = self.gamma * (~done).to(reward.dtype)
        returns = discounted_sum(x.flip(0), decay.roll(1, 0).flip(0)).flip(0)
        self.return_so_far.copy_(torch.where(done[-1], 0.0, returns[-1]))
        self.returns.update(returns[..., None])


class Standardizer(nn.Module):
    """(x − mean) / std of x [..., D], with the moments of the data that it was fitted to; the identity before `fit`.

    `min_std` is the smallest standard deviation that x is divided by. Of one row, whose spread is unknown, it is 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, min_std: float):
        super().__init__()
        self.min_std = min_std
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor) -> Standardizer:
        """Take mean and standard deviation from data [N, D]."""
        self.mean = x.mean(0)
        self.std = torch.ones_like(self.mean) if len(x) == 1 else x.std(0).clamp_min(self.min_std)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        """Undo the standardisation."""
        return z * self.std + self.mean
