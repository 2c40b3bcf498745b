"""Parts of the reward model's loss, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from email_rl.data.mails import OUTCOMES
from email_rl.models.encoders import token_overlap


def class_weights(outcome: Tensor, power: float) -> Tensor:
    """Return class weights [K] for outcomes [N]: inverse shares to the power, with mean 1 over the mails."""
    counts = torch.bincount(outcome, minlength=len(OUTCOMES)).double()
    weight = (counts.sum() / counts.clamp_min(1)) ** power
    return (weight * counts.sum() / (weight * counts).sum()).float()


def overlap_loss(logits: Tensor, ids: Tensor, attention_mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return the cross-entropy of logits [B, L] of which tokens context and text share, nats a word's token."""
    shared, is_word = token_overlap(ids, attention_mask, tokenizer.cls_token_id, tokenizer.sep_token_id)
    each = nn.functional.binary_cross_entropy_with_logits(logits, shared.float(), reduction="none")
    return (each * is_word).sum() / is_word.sum().clamp_min(1)
