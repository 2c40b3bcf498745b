"""From scores of mails to advantages of their tokens: one signature, five estimators.

Each is called with score [B] (samples of a prompt together), log_ratio [B, R] = log π − log π_ref of the sampled tokens,
alive [B, R] (a mail's own tokens), value [B, R] and the KL weight, and returns advantages and value targets [B, R], zero
after a mail's end. `samples`: mails a prompt. `critic`: whether values are learnt. `kl_in_loss`: whether the KL penalty is
a term of the loss (k3) and not of the reward (k1).
"""
from __future__ import annotations

import torch
from torch import Tensor

from rlcore.backends import distributed as parallel
from rlcore.returns import gae, whiten


def token_rewards(score: Tensor, log_ratio: Tensor, alive: Tensor, coef: Tensor) -> Tensor:
    """Return −coef · log_ratio of each token, plus the score on the last one that was generated."""
    return torch.where(alive, -coef * log_ratio, 0.0) + score[:, None] * last(alive)


def last(alive: Tensor) -> Tensor:
    """Mark each mail's last token, the stop or, in a mail that was cut, whatever came last [B, R]."""
    after = torch.cat((alive[:, 1:], torch.zeros_like(alive[:, :1])), 1)
    return alive & ~after


def grouped(x: Tensor, samples: int) -> Tensor:
    """Lay a number a mail out by prompt [P, samples]."""
    return x.view(-1, samples)


def spread(x: Tensor, alive: Tensor) -> Tensor:
    """Give each of a mail's tokens the mail's number [B, R]."""
    return x.reshape(-1)[:, None] * alive


class Estimator:
    """What the loop asks of every estimator."""

    critic = False
    kl_in_loss = False

    def __init__(self, samples: int):
        if samples < 1:
            raise ValueError(f"algo.advantage.samples: expected at least 1, got {samples}")
        self.samples = samples


class GAE(Estimator):
    """Token-level generalised advantages with a value head, as in PPO for control (rlcore.returns.gae)."""

    critic = True

    def __init__(self, *, samples: int, gamma: float, lam: float, whiten: bool):
        super().__init__(samples)
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    def __call__(self, score: Tensor, log_ratio: Tensor, alive: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward, end = token_rewards(score, log_ratio, alive, coef), last(alive)
        value = torch.where(alive, value, 0.0)
        following = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), 1)
        advantage = gae(reward.T, value.T, following.T, end.T, end.T, self.gamma, self.lam).T
        target = advantage + value
        return whiten(advantage, alive, parallel.total) if self.whiten else advantage * alive, target


class RLOO(Estimator):
    """REINFORCE with the mean of a prompt's other mails as baseline; the mail's KL is in its reward (Ahmadian et al. 2024)."""

    def __init__(self, *, samples: int):
        super().__init__(samples)
        if samples < 2:
            raise ValueError(f"algo.advantage.samples: expected at least 2 to leave one out, got {samples}")

    def __call__(self, score: Tensor, log_ratio: Tensor, alive: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward = grouped(token_rewards(score, log_ratio, alive, coef).sum(1), self.samples)
        others = (reward.sum(1, keepdim=True) - reward) / (self.samples - 1)
        return spread(reward - others, alive), torch.zeros_like(value)


class GRPO(Estimator):
    """A mail's score in standard deviations of its prompt's mails (Shao et al. 2024); the KL penalty is in the loss."""

    kl_in_loss = True

    def __init__(self, *, samples: int, eps: float):
        super().__init__(samples)
        if samples < 2:
            raise ValueError(f"algo.advantage.samples: expected at least 2 to compare, got {samples}")
        self.eps = eps

    def __call__(self, score: Tensor, log_ratio: Tensor, alive: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        group = grouped(score, self.samples)
        return spread((group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + self.eps), alive), torch.zeros_like(value)


class ReinforcePP(Estimator):
    """Discounted rewards to go, KL in the token rewards, whitened over the batch (REINFORCE++, Hu et al. 2025).

    With several samples a prompt, the mean score of the prompt is taken off first (its baseline variant).
    """

    def __init__(self, *, samples: int, gamma: float):
        super().__init__(samples)
        self.gamma = gamma

    def __call__(self, score: Tensor, log_ratio: Tensor, alive: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        if self.samples > 1:
            group = grouped(score, self.samples)
            score = (group - group.mean(1, keepdim=True)).view(-1)
        reward, nothing, end = token_rewards(score, log_ratio, alive, coef), torch.zeros_like(value), last(alive)
        to_go = gae(reward.T, nothing.T, nothing.T, end.T, end.T, self.gamma, 1.0).T
        return whiten(to_go, alive, parallel.total), nothing


class RewardWeighted(Estimator):
    """Every token weighs with its mail's score: no baseline, no critic, no KL. The simplest scheme, to compare with."""

    def __init__(self, *, samples: int):
        super().__init__(samples)

    def __call__(self, score: Tensor, log_ratio: Tensor, alive: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        return spread(score, alive), torch.zeros_like(value)
