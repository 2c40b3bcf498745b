"""What an action will cost: learned from what was redeemed, or told."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.backends import distributed as parallel
from rlcore.networks import mlp


class LearnedSpend(nn.Module):
    """P(redeem | context, offer, channel) = σ(a[offer]) · σ(b[channel]): redeemed if seen, times seen.

    Trained by cross-entropy on the realised redemptions of the policy's own contacts.
    """

    def __init__(self, context_dim: int, nvec: tuple[int, int], device: torch.device, *, hidden: list[int],
                 activation: Callable, lr: float):
        super().__init__()
        self.context_dim, self.nvec = context_dim, nvec
        self.net = mlp([context_dim, *hidden, sum(nvec)], activation, 0.01).to(device)
        self.first_lr, self.lr = lr, torch.tensor(lr, device=device)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True, capturable=True)

    def anneal(self, progress: float) -> None:
        """Lower the rate linearly: what the head says at the end is an average over much data."""
        self.lr.fill_(self.first_lr * (1 - progress))

    def log_redeem(self, obs: Tensor) -> Tensor:
        """Log-probabilities of redeeming, [B, offers, channels]."""
        offer, channel = functional.logsigmoid(self.net(obs[:, :self.context_dim])).split(self.nvec, -1)
        return offer[:, :, None] + channel[:, None, :]

    def redeem(self, obs: Tensor) -> Tensor:
        """Probabilities of redeeming, [B, offers, channels]."""
        return self.log_redeem(obs).exp()

    def fit(self, obs: Tensor, action: Tensor, redeemed: Tensor, minibatches: int, generator: torch.Generator) -> Tensor:
        """See each of B decisions once, in shuffled minibatches; return the mean loss."""
        order = torch.randperm(len(obs), generator=generator, device=obs.device)
        parts = zip(*(x[order].chunk(minibatches) for x in (obs, action, redeemed)))
        return torch.stack([self.learn(*part).clone() for part in parts]).mean()  # recorded, they lie where the last one did

    def learn(self, obs: Tensor, action: Tensor, redeemed: Tensor) -> Tensor:
        """Take one step on B decisions (those without an offer don't count); return the loss."""
        weight = (action[:, 0] > 0).to(obs.dtype)
        log_p = self.log_redeem(obs)[torch.arange(len(obs), device=obs.device), action[:, 0], action[:, 1]]
        log_p = log_p.clamp_max(-1e-6)
        likelihood = torch.where(redeemed, log_p, torch.log(-torch.expm1(log_p)))
        loss = -(likelihood * weight).sum() / parallel.mean(weight.sum()).clamp_min(1.0 / parallel.size())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parallel.average_gradients(self.parameters())
        self.optimizer.step()
        return loss.detach()
