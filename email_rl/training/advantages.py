"""From scores of mails to advantages of their tokens: one signature, five estimators.

Each is called with score [B] (samples of a prompt together), log_ratio [B, R] = log π − log π_ref of the sampled
tokens, response_mask [B, R] (a mail's own tokens), value [B, R] and the KL weight, and returns advantages and value
targets [B, R], zero after a mail's end. `samples_per_prompt`: mails of each prompt. `critic`: whether values are
learnt. `kl_in_loss`: whether the KL penalty is a term of the loss (k3) and not of the reward (k1).
"""
from __future__ import annotations

import torch
from torch import Tensor

from rlcore.backends import distributed
from rlcore.returns import gae, whiten


def token_rewards(score: Tensor, log_ratio: Tensor, response_mask: Tensor, coef: Tensor) -> Tensor:
    """Return −coef · log_ratio of each token, plus the score on the last one that was generated."""
    return torch.where(response_mask, -coef * log_ratio, 0.0) + score[:, None] * last_token(response_mask)


def last_token(response_mask: Tensor) -> Tensor:
    """Mark each mail's last token, the stop or, in a mail that was cut, whatever came last [B, R]."""
    after = torch.cat((response_mask[:, 1:], torch.zeros_like(response_mask[:, :1])), 1)
    return response_mask & ~after


def by_prompt(x: Tensor, samples_per_prompt: int) -> Tensor:
    """Lay a number a mail out by prompt [P, samples_per_prompt]."""
    return x.view(-1, samples_per_prompt)


def to_tokens(x: Tensor, response_mask: Tensor) -> Tensor:
    """Give each of a mail's tokens the mail's number [B, R]."""
    return x.reshape(-1)[:, None] * response_mask


class AdvantageEstimator:
    """What the loop asks of every estimator."""

    critic = False
    kl_in_loss = False

    def __init__(self, samples_per_prompt: int):
        if samples_per_prompt < 1:
            raise ValueError(f"algo.advantage.samples_per_prompt: expected at least 1, got {samples_per_prompt}")
        self.samples_per_prompt = samples_per_prompt


class GAE(AdvantageEstimator):
    """Token-level generalised advantages with a value head, as in PPO for control (rlcore.returns.gae)."""

    critic = True

    def __init__(self, *, samples_per_prompt: int, gamma: float, lam: float, whiten: bool):
        super().__init__(samples_per_prompt)
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    def __call__(self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward, end = token_rewards(score, log_ratio, response_mask, coef), last_token(response_mask)
        value = torch.where(response_mask, value, 0.0)
        following = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), 1)
        advantage = gae(reward.T, value.T, following.T, end.T, end.T, self.gamma, self.lam).T
        target = advantage + value
        return whiten(
            advantage, response_mask, distributed.all_reduce_sum
        ) if self.whiten else advantage * response_mask, target


class RLOO(AdvantageEstimator):
    """REINFORCE with the mean of a prompt's other mails as baseline; the mail's KL is in its reward (Ahmadian et al.
    2024).
    """

    def __init__(self, *, samples_per_prompt: int):
        super().__init__(samples_per_prompt)
        if samples_per_prompt < 2:
            raise ValueError(
                f"algo.advantage.samples_per_prompt: expected at least 2 to leave one out, got {samples_per_prompt}"
            )

    def __call__(self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward = by_prompt(token_rewards(score, log_ratio, response_mask, coef).sum(1), self.samples_per_prompt)
        others = (reward.sum(1, keepdim=True) - reward) / (self.samples_per_prompt - 1)
        return to_tokens(reward - others, response_mask), torch.zeros_like(value)


class GRPO(AdvantageEstimator):
    """A mail's score in standard deviations of its prompt's mails (Shao et al. 2024); the KL penalty is in the loss."""

    kl_in_loss = True

    def __init__(self, *, samples_per_prompt: int, eps: float):
        super().__init__(samples_per_prompt)
        if samples_per_prompt < 2:
            raise ValueError(
                f"algo.advantage.samples_per_prompt: expected at least 2 to compare, got {samples_per_prompt}"
            )
        self.eps = eps

    def __call__(self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        group = by_prompt(score, self.samples_per_prompt)
        return to_tokens(
            (group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + self.eps), response_mask
        ), torch.zeros_like(value)


class ReinforcePP(AdvantageEstimator):
    """Discounted rewards to go, KL in the token rewards, whitened over the batch (REINFORCE++, Hu et al. 2025).

    With several mails a prompt, the mean score of the prompt is taken off first (its baseline variant).
    """

    def __init__(self, *, samples_per_prompt: int, gamma: float):
        super().__init__(samples_per_prompt)
        self.gamma = gamma

    def __call__(self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        if self.samples_per_prompt > 1:
            group = by_prompt(score, self.samples_per_prompt)
            score = (group - group.mean(1, keepdim=True)).view(-1)
        reward, nothing, end = (
            token_rewards(score, log_ratio, response_mask, coef),
            torch.zeros_like(value),
            last_token(response_mask),
        )
        to_go = gae(reward.T, nothing.T, nothing.T, end.T, end.T, self.gamma, 1.0).T
        return whiten(to_go, response_mask, distributed.all_reduce_sum), nothing


class RewardWeighted(AdvantageEstimator):
    """Every token weighs with its mail's score: no baseline, no critic, no KL. The simplest scheme, to compare with."""

    def __init__(self, *, samples_per_prompt: int):
        super().__init__(samples_per_prompt)

    def __call__(self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor,
                 coef: Tensor) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        return to_tokens(score, response_mask), torch.zeros_like(value)
