"""Sampling from a causal language model: fixed shapes, a static key-value cache, no wait for the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import CacheLayerMixin
from transformers.pytorch_utils import Conv1D

from rlcore.distributions import draw


def position_ids(mask: Tensor) -> Tensor:
    """Number the tokens [B, L] under a mask from 0, so that padding on the left shifts nothing."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def causal_mask(key_mask: Tensor, width: int) -> Tensor:
    """Return the attention mask [B, width, L] of the first `width` tokens over keys under a mask [B, L].

    A token attends to the keys up to itself. A padding token attends to itself, because the softmax of a row without
    keys would be NaN.
    """
    causal = torch.ones(width, key_mask.shape[1], dtype=torch.bool, device=key_mask.device).tril()
    diagonal = torch.eye(*causal.shape, dtype=torch.bool, device=key_mask.device)
    return key_mask[:, None].bool() & causal | diagonal


def attention_mask(mask: Tensor, language_model: PreTrainedModel) -> Tensor:
    """Return a mask [B, W, L], true where a token attends, in the form that a model's attention takes, [B, 1, W, L].

    Eager attention adds its mask to the scores: 0 where a token attends, and the least number elsewhere.
    """
    mask = mask[:, None]
    if language_model.config._attn_implementation != "eager":
        return mask
    dtype = language_model.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def warp_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return logits [..., V] of the sampling distribution; tokens that are cut off get −inf.

    Logits are divided by the temperature. Then the `top_k` likeliest tokens stay (0: all), and of these the fewest
    likeliest tokens whose probability reaches `top_p` (Holtzman et al. 2020), always at least one.
    """
    logits = logits if temperature == 1 else logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        cut = probs.cumsum(-1) - probs >= top_p  # the tokens before already reach `top_p`
        logits = logits.masked_fill(cut.scatter(-1, index, cut), -torch.inf)
    return logits


class CachedDecoder:
    """A key-value cache over prompts [P, Q] and the n mails of each prompt, which one model writes token by token.

    Prompts, cache and sampled tokens keep their addresses, so that a recording made with some prompts can be replayed
    with others.
    """

    def __init__(
        self, language_model: PreTrainedModel, device: torch.device, temperature: float, top_k: int, top_p: float
    ):
        self.language_model, self.warping = language_model, (temperature, top_k, top_p)
        self.prompt_cache: StaticCache | None = None
        self.mail_cache: StaticCache | None = None
        parameters = inspect.signature(language_model.forward).parameters
        self.cache_argument = "cache" if "cache" in parameters else "past_key_values"
        # Autocast would cast the weights for each token, or drop its casts when it ends: the decoder has its own casts.
        autocast = torch.is_autocast_enabled(device.type)
        self.casts = low_precision_weights(language_model, torch.get_autocast_dtype(device.type)) if autocast else {}

    def prefill(self, prompt: Tensor, prompt_mask: Tensor, uniform: Tensor, response_tokens: int) -> Tensor:
        """Read each prompt once, expand its cache to its mails (one a uniform), and sample their first tokens [B]."""
        samples, width = len(uniform) // len(prompt), prompt.shape[1]
        # Keys that are padding or not yet written are masked out: the cache has its full length from the start.
        key_mask = torch.zeros(len(prompt), width + response_tokens, dtype=torch.bool, device=prompt.device)
        key_mask[:, :width] = prompt_mask.bool()
        position = position_ids(prompt_mask)
        for cast, weight in self.casts.values():
            cast.copy_(weight)
        if self.prompt_cache is None:
            self.prompt_cache = StaticCache(config=self.language_model.config, max_cache_len=width + response_tokens)
        else:
            self.prompt_cache.reset()
        logits = self.next_logits(prompt, causal_mask(key_mask, width), position, self.prompt_cache)
        state = [
            x.repeat_interleave(samples, 0) for x in (key_mask, position[:, -1:], *cache_tensors(self.prompt_cache))
        ]
        state.append(torch.full((1,), width, device=prompt.device))
        self._expand(state, self.prompt_cache)
        return self.sample_token(logits.repeat_interleave(samples, 0), uniform)

    def _expand(self, state: list[Tensor], prompt_cache: StaticCache) -> None:
        """Take over the prompts' state, repeated for their mails.

        The state is a list: key mask, position, keys and values of every layer, index of the next key.
        """
        if self.mail_cache is None:
            self.mail_cache, self.state = deepcopy(prompt_cache), state
            for layer, keys, values in zip(attention_layers(self.mail_cache), state[2::2], state[3::2]):
                layer.keys, layer.values = keys, values
            return
        for old, new in zip(self.state, state):
            old.copy_(new)
        for layer, prompt_layer in zip(attention_layers(self.mail_cache), attention_layers(prompt_cache)):
            count = getattr(layer, "cumulative_length", None)  # some layers have a count of their tokens
            prompt_count = getattr(prompt_layer, "cumulative_length", None)
            if isinstance(count, Tensor) and isinstance(prompt_count, Tensor):
                count.copy_(prompt_count)

    def decode_step(self, token: Tensor, uniform: Tensor) -> Tensor:
        """Read tokens [B] and sample the next ones [B]; the state changes in place, so that a step can be recorded."""
        assert self.mail_cache is not None  # `prefill` comes first
        key_mask, position, *_, next_key = self.state
        key_mask.index_fill_(1, next_key, True)
        next_key.add_(1)
        position.add_(1)
        logits = self.next_logits(token[:, None], key_mask[:, None], position, self.mail_cache)
        return self.sample_token(logits, uniform)

    def next_logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: StaticCache) -> Tensor:
        """Return the logits [B, V] of the token after `ids` [B, W], under a mask of the keys [B, W, L]."""
        arguments = {
            "input_ids": ids,
            "attention_mask": attention_mask(mask, self.language_model),
            "position_ids": position,
            "use_cache": True,
            "logits_to_keep": 1,
            self.cache_argument: cache,
        }
        weights = {name: cast for name, (cast, _) in self.casts.items()}
        return functional_call(self.language_model, weights, kwargs=arguments, tie_weights=False).logits[:, -1].float()

    def sample_token(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Sample tokens [B] from logits [B, V] by inversion of uniforms [B]."""
        return draw(warp_logits(logits, *self.warping).softmax(-1), uniform)


def low_precision_weights(language_model: PreTrainedModel, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the weights that autocast would cast to `dtype`, those of products, by name: (cast, original)."""
    return {
        f"{name}.{part}": (x.to(dtype), x)
        for name, module in language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        for part, x in module.named_parameters(recurse=False)
    }


def attention_layers(cache: StaticCache) -> list[CacheLayerMixin]:
    """Return the layers of a cache, each of which has keys and values."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin)
        layers.append(layer)
    return layers


def cache_tensors(cache: StaticCache) -> list[Tensor]:
    """List the keys and values of all layers in turn, of a cache that a model has written to."""
    tensors = []
    for layer in attention_layers(cache):
        assert layer.keys is not None and layer.values is not None
        tensors += [layer.keys, layer.values]
    return tensors


def new_decoder(
    language_model: PreTrainedModel, prompt: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float
) -> CachedDecoder:
    """Make a decoder for prompts [P, Q] and uniforms [R, B]."""
    return CachedDecoder(language_model, prompt.device, temperature, top_k, top_p)


@torch.no_grad()
def generate(
    language_model: PreTrainedModel,
    prompt: Tensor,
    prompt_mask: Tensor,
    u: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    make_decoder: Callable[..., CachedDecoder] = new_decoder,
) -> Tensor:
    """Sample mails [B, R], int64, for prompts [P, Q], padded on the left where `prompt_mask` is 0.

    u [R, B] are uniforms in [0, 1), one a token. B = P·n: each prompt is read once and its cache expanded to n mails,
    which are consecutive. Every mail has R tokens; tokens after a stop token mean nothing (see `response_mask`).
    """
    decoder = make_decoder(language_model, prompt, u, temperature, top_k, top_p)
    tokens = [decoder.prefill(prompt, prompt_mask, u[0], len(u)).clone()]
    for uniform in u[1:]:
        tokens.append(decoder.decode_step(tokens[-1], uniform).clone())
    return torch.stack(tokens, 1)


def response_mask(response: Tensor, stop_token: int) -> Tensor:
    """Mark a mail's own tokens, bool [B, R]: those up to and including the first stop token."""
    stopped = (response == stop_token).long()
    return stopped.cumsum(-1) - stopped == 0
