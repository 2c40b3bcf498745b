"""Mails as tokens, and what a policy says of each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class TokenizedMails(NamedTuple):
    """B mails as tokens: left-padded prompts [B, Q] with their mask, mails [B, R] with the mask of their own tokens."""

    prompt: Tensor
    prompt_mask: Tensor
    response: Tensor
    response_mask: Tensor

    def select(self, rows: Tensor) -> TokenizedMails:
        """Take some mails."""
        return TokenizedMails(*(x[rows] for x in self))

    def cut(self, response_tokens: int) -> TokenizedMails:
        """Keep the first `response_tokens` tokens of each mail."""
        return self._replace(
            response=self.response[:, :response_tokens], response_mask=self.response_mask[:, :response_tokens]
        )

    def length_buckets(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, TokenizedMails]]:
        """Split the mails `rows` into batches of like length, each cut to its longest prompt and mail.

        Lengths are rounded up to eights, so that few shapes occur. Yields row numbers of this batch and their mails;
        asks the host once.
        """
        lengths = torch.stack((self.prompt_mask.sum(1), self.response_mask.sum(1)))[:, rows]
        order = lengths.sum(0).argsort(stable=True)
        longest = [(-(-bucket.amax(1) // 8) * 8).tolist() for bucket in lengths[:, order].cpu().split(size, 1)]
        for bucket, (prompt_tokens, response_tokens) in zip(rows[order].split(size), longest):
            yield (
                bucket,
                TokenizedMails(
                    self.prompt[bucket, -prompt_tokens:],
                    self.prompt_mask[bucket, -prompt_tokens:],
                    self.response[bucket, :response_tokens],
                    self.response_mask[bucket, :response_tokens],
                ),
            )


class TokenStatistics(NamedTuple):
    """A policy's statistics of each response token, [B, R]."""

    log_prob: Tensor
    value: Tensor  #: the value head's estimate before the token
    entropy: Tensor  #: of the distribution over the token, or 0
