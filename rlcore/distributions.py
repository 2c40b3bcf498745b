"""A categorical over all combinations of several discrete heads, under a mask of valid combinations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

LONG_ROW = 4096  # longer rows are drawn from in two steps
BELOW_ONE = 1 - 2**-24  # the largest uniform in float32


def outer_sum(logits: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Add the logits of independent heads [B, Σn] into a table of all combinations [B, Πn].

    Normalised under a joint mask the table is exact; unmasked it equals independent categoricals.
    """
    first, *others = logits.split(nvec, -1)
    table = first
    for head in others:
        pairs = table[:, :, None] + head[:, None, :]
        table = pairs.flatten(1)
    return table


class MaskedMultiDiscrete:
    """Distribution over the combinations of heads `nvec`, from logits [B, Πn] and a mask bool [B, *nvec] of valid ones.

    Masked combinations have probability 0 and get no gradient. At least one combination of each row must be valid.
    """

    def __init__(self, logits: Tensor, action_mask: Tensor, nvec: tuple[int, ...]):
        self.nvec = nvec
        # a sum takes no time in the backward pass
        additive_mask = torch.where(action_mask.flatten(1), 0.0, -torch.inf)
        self.logits = logits + additive_mask.to(logits.dtype)
        self.log_probs = torch.log_softmax(self.logits, -1)

    @property
    def probs(self) -> Tensor:
        """Probabilities [B, Πn]."""
        return self.log_probs.exp()

    def sample(self, u: Tensor) -> Tensor:
        """Draw actions [B, K] by uniforms u [B] in [0, 1)."""
        return self.sample_with_log_prob(u)[0]

    def sample_with_log_prob(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions [B, K] by uniforms u [B] in [0, 1); return them and their log-probabilities [B]."""
        index = draw(self.probs, u)
        return self._with_log_prob(index)

    def mode(self) -> Tensor:
        """Return the most probable actions [B, K]."""
        return self.mode_with_log_prob()[0]

    def mode_with_log_prob(self) -> tuple[Tensor, Tensor]:
        """Return the most probable actions [B, K] and their log-probabilities [B]."""
        index = self.log_probs.argmax(-1)
        return self._with_log_prob(index)

    def _with_log_prob(self, index: Tensor) -> tuple[Tensor, Tensor]:
        action = unflatten(index, self.nvec)
        log_prob = self._flat_log_prob(index)
        return action, log_prob

    def _flat_log_prob(self, index: Tensor) -> Tensor:
        return self.log_probs.gather(-1, index[:, None])[:, 0]

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probabilities [B] of actions [B, K]."""
        index = flatten(action, self.nvec)
        return self._flat_log_prob(index)

    def entropy(self) -> Tensor:
        """Return the entropy [B] over the valid combinations."""
        # Bounded before the product: −inf · 0 would be NaN, in the gradient too.
        lowest = torch.finfo(self.log_probs.dtype).min
        finite_log_probs = self.log_probs.clamp_min(lowest)
        return -(self.probs * finite_log_probs).sum(-1)


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Draw flat actions [B] from probabilities [B, Πn] by uniforms u [B] in [0, 1), by inversion."""
    if probs.shape[-1] > LONG_ROW:
        return draw_long_rows(probs, u, invert)
    return invert(probs, u)


def invert(probs: Tensor, u: Tensor) -> Tensor:
    """Return the first index at which the distribution function of each row exceeds u."""
    cdf = probs.cumsum(-1)
    # an entry of probability 0 must not be drawn, even where a parallel sum rounds its cdf up
    cdf = cdf * (probs > 0)
    total = cdf.amax(-1, keepdim=True)
    exceeds = cdf > u[:, None] * total
    return exceeds.to(torch.uint8).argmax(-1)


def draw_long_rows(probs: Tensor, u: Tensor, invert: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Draw from long rows, such as a vocabulary's: first a block of √n entries, then an entry of the block.

    A cumulative sum over a whole row is slow on a GPU.
    """
    length = probs.shape[-1]
    width = math.isqrt(length - 1) + 1
    padded = functional.pad(probs, (0, width * width - length))
    blocks = padded.unflatten(-1, (width, width))
    # The block.
    block_probs = blocks.sum(-1)
    block = invert(block_probs, u)[:, None]
    block_prob = block_probs.gather(1, block)[:, 0]
    # The entry of the block, by the part of u that belongs to the block.
    probs_before = block_probs.cumsum(-1) - block_probs
    prob_before = probs_before.gather(1, block)[:, 0]
    excess = u * block_probs.sum(-1) - prob_before
    u_within = (excess / block_prob).clamp(0, BELOW_ONE)
    entry_index = block[..., None].expand(-1, -1, width)
    entry_probs = blocks.gather(1, entry_index)[:, 0]
    entry = invert(entry_probs, u_within)
    return block[:, 0] * width + entry


def unflatten(index: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Turn flat combinations [B] into actions [B, K]."""
    heads = []
    for n in reversed(nvec[1:]):
        heads.append(index % n)
        index = index // n
    return torch.stack([index, *heads[::-1]], -1)


def flatten(action: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Turn actions [B, K] into flat combinations [B], the last head running fastest."""
    index = action[:, 0]
    for head, n in enumerate(nvec[1:], start=1):
        index = index * n + action[:, head]
    return index
