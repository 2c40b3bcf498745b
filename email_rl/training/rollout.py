"""The data of PPO on mails: rollouts of generated mails, and batches of their tokens for updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.models.tokenized_mails import TokenizedMails
from rlcore.backends import distributed


@dataclass(frozen=True)
class MailRollout:
    """B mails of this process, padded to R tokens, with statistics by reward model, policy and reference."""

    contexts: list[str]  #: [B], the same context for all mails of a prompt, whose rows are consecutive
    texts: list[str]
    mails: TokenizedMails  #: `response_mask` [B, R] marks a mail's own tokens, up to and including its stop token
    has_ended: Tensor  #: bool [B], whether a mail has a stop token; a mail without one was cut at its maximal length
    proxy_reward: Tensor  #: [B], by the reward model, a proxy for the true outcome, in units of the outcomes' values
    #: [B], the maximised score: standardised reward, or `missing_eos_score` if the mail has no stop token
    score: Tensor
    log_prob: Tensor  #: [B, R], of each token under the policy that generated it
    reference_log_prob: Tensor  #: [B, R], of each token under the reference
    value: Tensor  #: [B, R], the value head's estimate before each token
    entropy: Tensor  #: [B, R], of the distribution that each token was drawn from

    @property
    def log_ratio(self) -> Tensor:
        """log π − log π_ref of each token [B, R], 0 on padding: k1, whose sum over a mail estimates its KL in nats."""
        return torch.where(self.mails.response_mask, self.log_prob - self.reference_log_prob, 0.0)

    def kl_to_reference(self) -> Tensor:
        """Return the mean over the mails of all processes of a mail's KL (k1), nats."""
        return distributed.all_reduce_mean(self.log_ratio.sum(1).mean())


class MailBatch(NamedTuple):
    """The data of an update: B mails, and tensors [B, R] with a number for each of their tokens."""

    mails: TokenizedMails
    log_prob: Tensor  #: under the policy that generated the mails
    reference_log_prob: Tensor
    value: Tensor  #: before the update; 0 without a critic
    advantage: Tensor
    target: Tensor  #: of the value head, a return estimate: unwhitened advantage + value; 0 without a critic

    def micro_batch(self, rows: Tensor, mails: TokenizedMails) -> MailBatch:
        """Return the rows `rows` with `mails` as their tokens, the other tensors cut to its response width."""

        def cut(x: Tensor) -> Tensor:
            return x[rows, : mails.response.shape[1]]

        return MailBatch(
            mails=mails,
            log_prob=cut(self.log_prob),
            reference_log_prob=cut(self.reference_log_prob),
            value=cut(self.value),
            advantage=cut(self.advantage),
            target=cut(self.target),
        )
