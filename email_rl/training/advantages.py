"""From scores of mails to advantages of their tokens: one signature, five estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rlcore.backends import distributed
from rlcore.returns import gae, whiten


def token_rewards(score: Tensor, log_ratio: Tensor, response_mask: Tensor, kl_coef: Tensor) -> Tensor:
    """Return −kl_coef · log_ratio of each token, plus the score on the last generated token [B, R]."""
    return torch.where(response_mask, -kl_coef * log_ratio, 0.0) + score[:, None] * last_token(response_mask)


def last_token(response_mask: Tensor) -> Tensor:
    """Mark each mail's last token [B, R]: the stop token or, in a mail that was cut, the last token."""
    after = torch.cat((response_mask[:, 1:], torch.zeros_like(response_mask[:, :1])), 1)
    return response_mask & ~after


def by_prompt(x: Tensor, samples_per_prompt: int) -> Tensor:
    """Arrange one number for each mail by prompt [P, samples_per_prompt]."""
    return x.view(-1, samples_per_prompt)


def to_tokens(x: Tensor, response_mask: Tensor) -> Tensor:
    """Give each of a mail's tokens the mail's number [B, R]."""
    return x.reshape(-1)[:, None] * response_mask


class AdvantageEstimator(ABC):
    """The contract of an estimator; `samples_per_prompt` is the number of mails of each prompt."""

    critic = False  #: whether a value head is learnt; else `value` is 0
    #: whether the KL penalty is in the loss (k3); the estimator then ignores log_ratio and kl_coef
    kl_in_loss = False

    def __init__(self, samples_per_prompt: int):
        self.samples_per_prompt = samples_per_prompt

    @abstractmethod
    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and value targets [B, R]; advantages are 0 on padding.

        score [B] has the mails of a prompt in consecutive rows. log_ratio [B, R] = log π − log π_ref of the sampled
        tokens (k1). response_mask bool [B, R] marks a mail's own tokens, the stop token included. value [B, R] is the
        value head's estimate before each token. kl_coef is the coefficient of the KL penalty. A value target is an
        unwhitened advantage plus the value, or 0 without a critic.
        """


class GAE(AdvantageEstimator):
    """Token-level generalised advantages with a value head, as in PPO for control (rlcore.returns.gae)."""

    critic = True

    def __init__(self, *, samples_per_prompt: int, gamma: float, lam: float, whiten: bool):
        super().__init__(samples_per_prompt)
        self.gamma, self.lam, self.whiten = gamma, lam, whiten

    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward, end = token_rewards(score, log_ratio, response_mask, kl_coef), last_token(response_mask)
        value = torch.where(response_mask, value, 0.0)
        following = torch.cat((value[:, 1:], torch.zeros_like(value[:, :1])), 1)
        advantage = gae(reward.T, value.T, following.T, end.T, end.T, self.gamma, self.lam).T
        target = advantage + value
        if self.whiten:
            return whiten(advantage, response_mask, distributed.all_reduce_sum), target
        return advantage * response_mask, target


class RLOO(AdvantageEstimator):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): the baseline is the mean reward of a prompt's other mails.

    A mail's reward is its score less its KL penalty. The paper takes one step of REINFORCE on a mail's whole
    probability; here PPO clips the ratio of each token.
    """

    def __init__(self, *, samples_per_prompt: int):
        super().__init__(samples_per_prompt)

    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        reward = by_prompt(token_rewards(score, log_ratio, response_mask, kl_coef).sum(1), self.samples_per_prompt)
        others = (reward.sum(1, keepdim=True) - reward) / (self.samples_per_prompt - 1)
        return to_tokens(reward - others, response_mask), torch.zeros_like(value)


class GRPO(AdvantageEstimator):
    """A mail's score in standard deviations of its prompt's mails (Shao et al. 2024); the KL penalty is in the loss.

    The paper's loss is a mean over mails of a mail's mean over tokens; here it is the mean over a minibatch's tokens.
    """

    kl_in_loss = True

    def __init__(self, *, samples_per_prompt: int, eps: float):
        super().__init__(samples_per_prompt)
        self.eps = eps

    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        group = by_prompt(score, self.samples_per_prompt)
        return to_tokens(
            (group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + self.eps), response_mask
        ), torch.zeros_like(value)


class ReinforcePP(AdvantageEstimator):
    """Discounted rewards to go, KL in the token rewards, whitened over the batch (REINFORCE++, Hu et al. 2025).

    With several mails a prompt, the mean score of the prompt is subtracted first (the paper's baseline variant).
    """

    def __init__(self, *, samples_per_prompt: int, gamma: float):
        super().__init__(samples_per_prompt)
        self.gamma = gamma

    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        if self.samples_per_prompt > 1:
            group = by_prompt(score, self.samples_per_prompt)
            score = (group - group.mean(1, keepdim=True)).view(-1)
        reward = token_rewards(score, log_ratio, response_mask, kl_coef)
        nothing = torch.zeros_like(value)
        end = last_token(response_mask)
        to_go = gae(reward.T, nothing.T, nothing.T, end.T, end.T, self.gamma, 1.0).T
        return whiten(to_go, response_mask, distributed.all_reduce_sum), nothing


class RewardWeighted(AdvantageEstimator):
    """Every token has its mail's score as weight: no baseline, critic or KL. The simplest scheme, for comparison."""

    def __init__(self, *, samples_per_prompt: int):
        super().__init__(samples_per_prompt)

    def __call__(
        self, score: Tensor, log_ratio: Tensor, response_mask: Tensor, value: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return advantages and targets [B, R]."""
        return to_tokens(score, response_mask), torch.zeros_like(value)
