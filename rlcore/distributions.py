"""A categorical over all combinations of several discrete heads, under a mask of what is allowed."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

WIDE = 4096  # longer rows are drawn from in two steps
BELOW_ONE = 1 - 2**-24  # the largest uniform in float32


def outer_sum(logits: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Add independent heads' logits [B, Σn] into a table of all combinations [B, Πn].

    Normalised under a joint mask this is exact; unmasked it equals independent categoricals.
    """
    table = logits[:, :nvec[0]]
    for head in logits.split(nvec, -1)[1:]:
        table = (table[:, :, None] + head[:, None, :]).flatten(1)
    return table


class MaskedCategorical:
    """Distribution over the combinations of heads `nvec` with logits [B, Πn] and mask [B, *nvec], True where allowed.

    Masked combinations have probability 0 and get no gradient. At least one must be allowed. The mask can also be what
    `barrier` makes of it.
    """

    def __init__(self, logits: Tensor, mask: Tensor, nvec: tuple[int, ...]):
        self.nvec, mask = nvec, mask.flatten(1)
        masked = logits + mask if mask.is_floating_point() else torch.where(mask, logits, -torch.inf)
        self.log_probs = torch.log_softmax(masked, -1)

    @property
    def probs(self) -> Tensor:
        """Probabilities [B, Πn]."""
        return self.log_probs.exp()

    def sample(self, u: Tensor) -> Tensor:
        """Draw actions [B, K] from uniforms u [B] in [0, 1)."""
        return self.sample_with_log_prob(u)[0]

    def sample_with_log_prob(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions [B, K] from uniforms u [B] in [0, 1) and return their log-probabilities [B] with them."""
        index = draw(self.probs, u)
        return unflatten(index, self.nvec), self.log_probs.gather(-1, index[:, None])[:, 0]

    def mode(self) -> Tensor:
        """Most probable actions [B, K]."""
        return unflatten(self.log_probs.argmax(-1), self.nvec)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability [B] of actions [B, K]."""
        return self.log_probs.gather(-1, flatten(action, self.nvec)[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """Entropy [B], over what is allowed."""
        # Bounded before the product: −inf · 0 would be NaN, in the gradient too.
        return -(self.probs * self.log_probs.clamp_min(torch.finfo(self.log_probs.dtype).min)).sum(-1)


def barrier(mask: Tensor) -> Tensor:
    """What a mask adds to logits: 0 where True, else −inf; made once, it is faster to learn under than bits are."""
    return torch.where(mask, 0.0, -torch.inf)


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """Draw flat actions [B] from probabilities [B, Πn] and uniforms u [B] in [0, 1), by inversion: one number each."""
    n = probs.shape[-1]
    if n > WIDE:
        return draw_wide(probs, u)
    compiled = torch.compiler.is_compiling()
    # For a compiler sums and the first of them above u by whole vectors: cumsum and argmax go through a row entry by entry.
    cdf = probs @ torch.ones(n, n, dtype=probs.dtype, device=probs.device).triu() if compiled else probs.cumsum(-1)
    cdf = cdf * (probs > 0)  # what has probability 0 must not be drawn, even where a parallel sum rounds it up
    above = cdf > u[:, None] * cdf.amax(-1, keepdim=True)
    if compiled:
        return torch.where(above, torch.arange(n, device=probs.device), n - 1).amin(-1)
    return above.to(torch.uint8).argmax(-1)


def draw_wide(probs: Tensor, u: Tensor) -> Tensor:
    """Draw from long rows, such as a vocabulary's: first a stretch of √n, then in it. A scan of a whole row is slow on a GPU."""
    width = math.isqrt(probs.shape[-1] - 1) + 1
    table = functional.pad(probs, (0, width * width - probs.shape[-1])).unflatten(-1, (width, width))
    sums = table.sum(-1)
    stretch = draw(sums, u)[:, None]
    before, own = (x.gather(1, stretch)[:, 0] for x in (sums.cumsum(-1) - sums, sums))
    within = ((u * sums.sum(-1) - before) / own).clamp(0, BELOW_ONE)
    return stretch[:, 0] * width + draw(table.gather(1, stretch[..., None].expand(-1, -1, width))[:, 0], within)


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
    for k, n in enumerate(nvec[1:], 1):
        index = index * n + action[:, k]
    return index
