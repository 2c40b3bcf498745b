"""Sampling from a causal language model: fixed shapes, a static key-value cache, no question to the host."""
from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel, StaticCache
from transformers.pytorch_utils import Conv1D

from rlcore.distributions import draw
from rlcore.backends.cuda_graphs import capture


def positions(mask: Tensor) -> Tensor:
    """Number the tokens [B, L] under a mask from 0, so that padding on the left shifts nothing."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def sees(keys: Tensor, width: int) -> Tensor:
    """Mark what each of the first `width` tokens sees [B, width, L] of keys under a mask [B, L]: those up to its own.

    A row of padding would see nothing, and its softmax be NaN: it sees itself.
    """
    causal = torch.ones(width, keys.shape[1], dtype=torch.bool, device=keys.device).tril()
    return keys[:, None].bool() & causal | torch.eye(*causal.shape, dtype=torch.bool, device=keys.device)


def warp(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return logits [..., V] of the distribution sampled from; what is cut off gets −inf.

    Division by the temperature, then the `top_k` likeliest (0: all), then of these the fewest likeliest whose
    probability reaches `top_p` (Holtzman et al. 2020), always at least one.
    """
    logits = logits if temperature == 1 else logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        cut = probs.cumsum(-1) - probs >= top_p  # what comes before already reaches it
        logits = logits.masked_fill(cut.scatter(-1, index, cut), -torch.inf)
    return logits


class Steps:
    """Prompts [P, Q] read, and n mails for each written token by token, by one model in one way.

    What is read and written stays at its place: what was recorded with some prompts is replayed with others.
    """

    def __init__(self, lm: PreTrainedModel, device: torch.device, temperature: float, top_k: int, top_p: float):
        self.lm, self.warped, self.prompts, self.cache = lm, (temperature, top_k, top_p), None, None
        self.name = "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"
        # Autocast would cast weights for each token, or keep its casts no longer than to its end: steps have their own.
        low = torch.is_autocast_enabled(device.type)
        self.cast = casts(lm, torch.get_autocast_dtype(device.type)) if low else {}

    def begin(self, query: Tensor, mask: Tensor, uniform: Tensor, tokens: int) -> Tensor:
        """Read prompts, each once, expand what is known of them to mails, one a uniform, and choose their first tokens."""
        samples, width, length = len(uniform) // len(query), query.shape[1], query.shape[1] + tokens
        # Keys that are padding or not yet written are masked out: the cache has its full length from the start.
        seen = torch.zeros(len(query), length, dtype=torch.bool, device=query.device)
        seen[:, :width] = mask.bool()
        at = positions(mask)
        for kept, now in self.cast.values():
            kept.copy_(now)
        if self.prompts is None:
            self.prompts = StaticCache(config=self.lm.config, max_cache_len=length)
        else:
            self.prompts.reset()
        last = self.logits(query, sees(seen, width), at, self.prompts).repeat_interleave(samples, 0)
        state = [x.repeat_interleave(samples, 0) for x in (seen, at[:, -1:], *held(self.prompts))]
        state.append(torch.full((1,), width, device=query.device))
        if self.cache is None:
            self.cache, self.state = deepcopy(self.prompts), state
            for layer, keys, values in zip(self.cache.layers, state[2::2], state[3::2]):
                layer.keys, layer.values = keys, values
        else:
            for kept, now in zip(self.state, state):
                kept.copy_(now)
            for layer, read in zip(self.cache.layers, self.prompts.layers):  # some count what they hold
                if isinstance(count := getattr(layer, "cumulative_length", None), Tensor):
                    count.copy_(read.cumulative_length)
        return self.choose(last, uniform)

    def step(self, token: Tensor, uniform: Tensor) -> Tensor:
        """Read a token and choose the next; all else is moved on in place, so that this can be recorded."""
        seen, at, *_, place = self.state
        seen.index_fill_(1, place, True)
        place.add_(1)
        at.add_(1)
        return self.choose(self.logits(token[:, None], seen[:, None], at, self.cache), uniform)

    def logits(self, ids: Tensor, attention: Tensor, at: Tensor, cache: StaticCache) -> Tensor:
        """Logits [B, V] of what follows ids."""
        found = functional_call(self.lm, {name: kept for name, (kept, _) in self.cast.items()}, kwargs={
            "input_ids": ids, "attention_mask": attention[:, None], "position_ids": at, "use_cache": True, "logits_to_keep": 1,
            self.name: cache}, tie_weights=False)
        return found.logits[:, -1].float()

    def choose(self, last: Tensor, uniform: Tensor) -> Tensor:
        """Choose tokens [B] by uniforms [B]."""
        return draw(warp(last, *self.warped).softmax(-1), uniform)


def casts(lm: PreTrainedModel, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Return copies, by name and with their originals, of all that autocast would cast to `dtype`: what products take."""
    return {f"{name}.{part}": (x.to(dtype), x) for name, module in lm.named_modules() if isinstance(module, (nn.Linear, Conv1D))
            for part, x in module.named_parameters(recurse=False)}


def held(cache: StaticCache) -> list[Tensor]:
    """List the keys and values of all layers in turn."""
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


class Memory:
    """The last steps that were recorded of one model, to be replayed while shapes and settings stay; a copy remembers nothing."""

    def __init__(self):
        self.key = self.made = None

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def get(self, key: tuple, make: Callable):
        """Return what was made for this key, made anew where the last was for another."""
        if self.key != key:
            self.key = self.made = None  # before another takes as much room
            self.key, self.made = key, make()
        return self.made


@torch.no_grad()
def generate(lm: PreTrainedModel, query: Tensor, mask: Tensor, u: Tensor, *, temperature: float, top_k: int,
             top_p: float, mode: str = "eager", memory: Memory | None = None) -> Tensor:
    """Sample mails [B, R], int64, for prompts `query` [P, Q], padded on the left where `mask` is 0.

    u [R, B] are uniforms in [0, 1), one a token. B = P·n: each prompt is read once and its cache expanded to n mails,
    which stand together. Always R tokens: what follows a stop token means nothing (see `alive`). With `cudagraph` on a GPU
    the reading of prompts and a token's step are recorded and replayed, also in later calls with the same `memory`.
    """
    def make() -> tuple[Callable, Callable]:
        steps = Steps(lm, query.device, temperature, top_k, top_p)
        return tuple(capture(x, mode, query.device) for x in (steps.begin, steps.step))
    key = (query.shape, u.shape, temperature, top_k, top_p, torch.is_autocast_enabled(query.device.type))
    begin, step = memory.get(key, make) if memory and mode == "cudagraph" else make()
    tokens = [begin(query, mask, u[0], len(u)).clone()]
    for uniform in u[1:]:
        tokens.append(step(tokens[-1], uniform).clone())
    return torch.stack(tokens, 1)


def alive(response: Tensor, stop: int) -> Tensor:
    """Mark a mail's own tokens [B, R]: up to the first stop token, and that."""
    stopped = response == stop
    return stopped.long().cumsum(-1) - stopped.long() == 0
