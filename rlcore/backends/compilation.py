"""torch.compile, and the form of a draw that a compiler makes faster; it equals the plain form to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.distributions import MaskedMultiDiscrete
from rlcore.networks import ActorCritic


def compile_function(function: Callable, **options: Any) -> Callable:
    """Compile a function for fixed shapes, unless `options` of torch.compile say otherwise."""
    torch._dynamo.config.trace_autograd_ops = True  # a backward pass belongs to the graph of its loss
    return torch.compile(function, **({"dynamic": False} | options))


def invert_by_product(probs: Tensor, u: Tensor) -> Tensor:
    """Invert the distribution function as `distributions.invert` does, by whole vectors instead of entry by entry.

    The cumulative sum is a product with a triangular matrix, and the first index above u is a minimum.
    """
    n = probs.shape[-1]
    cdf = probs @ torch.ones(n, n, dtype=probs.dtype, device=probs.device).triu()
    cdf = cdf * (probs > 0)
    exceeds = cdf > u[:, None] * cdf.amax(-1, keepdim=True)
    return torch.where(exceeds, torch.arange(n, device=probs.device), n - 1).amin(-1)


class CompiledMultiDiscrete(MaskedMultiDiscrete):
    """The same distribution, drawn from by `invert_by_product`."""

    def sample_with_log_prob(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._with_log_prob(invert_by_product(self.probs, u))


class CompiledActorCritic(ActorCritic):
    """An actor-critic on the layers of a plain one, under the same names, whose actions `invert_by_product` draws."""

    def __init__(self, plain: ActorCritic):
        nn.Module.__init__(self)
        self.nvec, self.heads = plain.nvec, plain.heads
        self.normalize = plain.normalize
        self.actor = plain.actor
        self.critic = plain.critic
        self.register_buffer("combination", plain.combination, persistent=False)

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        return CompiledMultiDiscrete(self.logits(obs), action_mask, self.nvec)
