"""Sampling from a causal language model: fixed shapes, a static key-value cache, no question to the host."""
from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from rlcore.distributions import draw
from rlcore.fast import capture


def positions(mask: Tensor) -> Tensor:
    """Number the tokens [B, L] under a mask from 0, so that padding on the left shifts nothing."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def warp(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return logits [B, V] of the distribution sampled from; what is cut off gets −inf.

    Division by the temperature, then the `top_k` likeliest (0: all), then of these the fewest likeliest whose
    probability reaches `top_p` (Holtzman et al. 2020), always at least one.
    """
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        cut = probs.cumsum(-1) - probs >= top_p  # what comes before already reaches it
        logits = logits.masked_fill(cut.scatter(-1, index, cut), -torch.inf)
    return logits


@torch.no_grad()
def generate(lm: PreTrainedModel, query: Tensor, mask: Tensor, u: Tensor, *, temperature: float, top_k: int,
             top_p: float, mode: str = "eager") -> Tensor:
    """Sample mails [B, R], int64, for prompts `query` [P, Q], padded on the left where `mask` is 0.

    u [R, B] are uniforms in [0, 1), one a token. B = P·n: each prompt is read once and its cache expanded to n mails,
    which stand together. Always R tokens: what follows a stop token means nothing (see `alive`). With `cudagraph` on a GPU
    a token's step is recorded and replayed.
    """
    length, samples = query.shape[1] + len(u), u.shape[1] // len(query)
    # Keys that are padding or not yet written are masked out: the cache has its full length from the start.
    seen = torch.zeros(len(query), length, dtype=torch.bool, device=query.device)
    seen[:, :query.shape[1]] = mask.bool()
    causal = torch.ones(query.shape[1], length, dtype=torch.bool, device=query.device).tril()
    # A row of padding would see nothing, and its softmax be NaN: it sees itself.
    first = seen[:, None, :] & causal | torch.eye(query.shape[1], length, dtype=torch.bool, device=query.device)
    cache = StaticCache(config=lm.config, max_cache_len=length)
    name = "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"

    def logits(ids: Tensor, attention: Tensor, at: Tensor) -> Tensor:
        found = lm(input_ids=ids, attention_mask=attention[:, None], position_ids=at, use_cache=True, logits_to_keep=1,
                   **{name: cache})
        return found.logits[:, -1].float()

    at = positions(mask)
    last = logits(query, first, at).repeat_interleave(samples, 0)
    for layer in cache.layers:
        layer.keys, layer.values = (x.repeat_interleave(samples, 0) for x in (layer.keys, layer.values))
    seen, at = seen.repeat_interleave(samples, 0), at[:, -1:].repeat_interleave(samples, 0)
    place = torch.full((1,), query.shape[1], device=query.device)

    def choose(last: Tensor, uniform: Tensor) -> Tensor:
        return draw(warp(last, temperature, top_k, top_p).softmax(-1), uniform)

    def step(token: Tensor, uniform: Tensor) -> Tensor:
        """Read a token and choose the next; all else is moved on in place, so that this can be recorded."""
        seen.index_fill_(1, place, True)
        place.add_(1)
        at.add_(1)
        return choose(logits(token[:, None], seen[:, None], at), uniform)

    step = capture(step, mode, query.device)
    tokens = [choose(last, u[0])]
    for uniform in u[1:]:
        tokens.append(step(tokens[-1], uniform).clone())
    return torch.stack(tokens, 1)


def alive(response: Tensor, stop: int) -> Tensor:
    """Mark a mail's own tokens [B, R]: up to the first stop token, and that."""
    stopped = response == stop
    return stopped.long().cumsum(-1) - stopped.long() == 0
