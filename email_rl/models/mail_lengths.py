"""How many tokens prompts and mails have, measured on the mails of a dataset."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedTokenizerBase

LONGEST = 200  # contexts by characters, among which the longest prompt is looked for
MEASURED = 5000  # mails by whose lengths a share of them is fitted


def fit_lengths(
    generation: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[str],
    texts: list[str],
    positions: int | None = None,
) -> dict[str, Any]:
    """Return the settings of a policy (LanguageModelPolicy) with lengths that fit these mails.

    `prompt_tokens` grows until every prompt fits, and `response_tokens` until a share `fitted_share` of the mails does,
    with their stop token. Neither grows beyond `positions`, those of the network. A share of 0 leaves both as they are.
    """
    settings = {key: value for key, value in generation.items() if key != "fitted_share"}
    share = generation["fitted_share"]
    if share == 0:
        return settings
    template = generation["prompt_template"]
    longest = sorted(set(contexts), key=len)[-LONGEST:]
    prompts = [template.replace("{context}", context) for context in longest]
    prompt_tokens = max(generation["prompt_tokens"], *token_counts(tokenizer, prompts))
    lengths = sorted(token_counts(tokenizer, texts))
    response_tokens = max(generation["response_tokens"], 1 + lengths[math.ceil(share * len(lengths)) - 1])
    grown = prompt_tokens > generation["prompt_tokens"] or response_tokens > generation["response_tokens"]
    if grown and positions is not None and prompt_tokens + response_tokens > positions:
        response_tokens = max(generation["response_tokens"], positions - prompt_tokens)
        prompt_tokens = max(generation["prompt_tokens"], positions - response_tokens)
    return {**settings, "prompt_tokens": prompt_tokens, "response_tokens": response_tokens}


def positions_needed(
    generation: dict[str, Any], tokenizer: PreTrainedTokenizerBase, contexts: list[str], texts: list[str]
) -> int:
    """Return the positions of a network that holds these mails; 0 where they fit into the lengths of the settings."""
    fitted = fit_lengths(generation, tokenizer, contexts, texts)
    keys = ("prompt_tokens", "response_tokens")
    if all(fitted[key] == generation[key] for key in keys):
        return 0
    return sum(fitted[key] for key in keys)


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    """Return each text's number of tokens."""
    return [len(row) for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
