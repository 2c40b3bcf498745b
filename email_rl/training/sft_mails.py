"""The mails of supervised fine-tuning: which of them, with what weight, as tokens of fitting lengths."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from email_rl.data.dataset import MailDataset
from email_rl.data.mails import OUTCOMES, Mails
from email_rl.models.mail_lengths import MEASURED, fit_lengths
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.tokenized_mails import TokenizedMails


def all_contexts(dataset: MailDataset) -> list[str]:
    """Return the contexts of every split: a policy reads them all, in training or evaluation."""
    return [context for mails in dataset.splits.values() for context in mails.contexts]


def policy_settings(
    generation: dict[str, Any], network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: MailDataset
) -> dict[str, Any]:
    """Return the settings of a policy on a network for a dataset, with the lengths of its mails."""
    positions = network.config.to_dict().get("max_position_embeddings") or network.config.to_dict().get("n_positions")
    texts = dataset.sample(dataset.train, MEASURED).texts
    return fit_lengths(generation, tokenizer, all_contexts(dataset), texts, positions)


def outcome_weights(mails: Mails, outcomes: list[int], enough_mails: int, other_weight: float) -> list[float]:
    """Return the weight of each outcome's mails in the warm start [K].

    `outcomes` weigh 1; the others weigh `other_weight` where fewer than `enough_mails` mails have one of `outcomes`,
    else nothing.
    """
    counts = torch.bincount(mails.outcome, minlength=len(OUTCOMES))
    others = other_weight if counts[outcomes].sum() < enough_mails else 0.0
    return [1.0 if y in outcomes else others for y in range(len(OUTCOMES))]


def weighted_mails(
    policy: LanguageModelPolicy,
    mails: Mails,
    order: list[int],
    weight_of: list[float],
    max_mails: int | None,
    side: str,
    source: str,
) -> tuple[TokenizedMails, Tensor]:
    """Return the mails that have a weight and fit, at most `max_mails` of the heaviest, and their weights [N].

    Mails stay in the order of the file; among mails of one weight the first of `order` [N], the rows in some order, are
    taken. `weight_of` [K] has the weight of each outcome. Prints how many mails are not read and how many do not fit,
    and raises ValueError where none does; `side` and `source` name the mails in these messages.
    """
    weights = torch.tensor([weight_of[y] for y in mails.outcome.tolist()])
    rows_in_order = torch.tensor(order)
    heaviest = rows_in_order[weights[rows_in_order].argsort(descending=True, stable=True)]
    allowed = heaviest[weights[heaviest] > 0]
    used = sorted(allowed[:max_mails].tolist())
    if len(used) < len(allowed):
        print(
            f"the warm start reads {len(used):,} of the {len(allowed):,} {side} mails that it may use "
            "(algo.sft.max_mails)",
            file=sys.stderr,
        )
    mails, weights = mails.rows(used), weights[used]
    most = policy.response_tokens
    responses = policy.tokenize_responses(mails.texts)
    rows = [i for i, row in enumerate(responses) if len(row) <= most]
    if not rows:
        raise ValueError(
            f"algo.generation.response_tokens: no {side} mail of {source} that the warm start may use has "
            f"{most} tokens or fewer; expected more"
        )
    _report_left_out(policy, len(mails), len(mails) - len(rows), side)
    report_cut_prompts(policy, mails.contexts, side)
    padded = [responses[i] + [policy.stop_token] * (most - len(responses[i])) for i in rows]
    mask = torch.tensor([[k < len(responses[i]) for k in range(most)] for i in rows])
    prompt, prompt_mask = policy.tokenize_prompts([mails.contexts[i] for i in rows])
    device = policy.device
    tokens = TokenizedMails(prompt, prompt_mask, torch.tensor(padded, device=device), mask.to(device))
    return tokens, weights[rows].to(device)


def _report_left_out(policy: LanguageModelPolicy, n: int, left_out: int, side: str) -> None:
    """Print how many of a side's n mails are left out."""
    if left_out:
        print(
            f"warning: {left_out:,} of {n:,} {side} mails have more than {policy.response_tokens} tokens "
            "(algo.generation.response_tokens), and are left out of the warm start",
            file=sys.stderr,
        )


def report_cut_prompts(policy: LanguageModelPolicy, contexts: list[str], side: str) -> None:
    """Print how many prompts of a side's contexts lose their beginning."""
    cut = sum(len(row) > policy.prompt_tokens for row in policy.full_prompts(contexts))
    if cut:
        print(
            f"warning: {cut:,} of {len(contexts):,} contexts of {side} mails have more than {policy.prompt_tokens} "
            "tokens with their template (algo.generation.prompt_tokens), and lose their beginning",
            file=sys.stderr,
        )
