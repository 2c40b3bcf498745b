"""torch.compile, and forms of the networks that a compiler makes faster; each equals the plain form to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.distributions import MaskedMultiDiscrete, outer_sum
from rlcore.networks import Actor, ActorCritic, SigmoidTanh, Tanh, output_layer


def compile_function(function: Callable, **options: Any) -> Callable:
    """Compile a function for fixed shapes, unless `options` of torch.compile say otherwise."""
    torch._dynamo.config.trace_autograd_ops = True  # a backward pass belongs to the graph of its loss
    return torch.compile(function, **({"dynamic": False} | options))


# ── forms for a compiler ────────────────────────────────────────────────────────────────────────────────────────────
# tanh x ≈ x·P(x²) / Q(x²) for |x| ≤ 8, fitted to the relative error (Lawson's weights): 6e-9, in float32 3.4e-7.
TANH_NUMERATOR = (1.523037937e-08, 2.189463458e-05, 0.003571596368, 0.1344449659, 0.9999999936)
TANH_DENOMINATOR = (8.522431029e-07, 0.0003411289305, 0.02616443664, 0.467778239, 1.0)


def horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Evaluate a polynomial, the coefficient of the highest power first."""
    total = coefficients[0] * x + coefficients[1]
    for c in coefficients[2:]:
        total = total * x + c
    return total


def rational_tanh(x: Tensor) -> Tensor:
    """tanh to float32's precision as a rational function, which a compiler vectorises."""
    x = x.clamp(-8, 8)
    return x * horner(x * x, TANH_NUMERATOR) / horner(x * x, TANH_DENOMINATOR)


class RationalTanhFunction(SigmoidTanh):
    """`rational_tanh` with the derivative 1 − tanh² of SigmoidTanh."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = rational_tanh(x)
        ctx.save_for_backward(y)
        return y


class RationalTanh(nn.Module):
    """The hyperbolic tangent as a rational function."""

    def forward(self, x: Tensor) -> Tensor:
        return RationalTanhFunction.apply(x) if torch.is_grad_enabled() else rational_tanh(x)


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


class CompiledActor(Actor):
    """An actor on the parameters of a plain one, under the same names, in the forms above."""

    def __init__(self, plain: Actor):
        nn.Module.__init__(self)
        self.nvec, self.heads = plain.nvec, plain.heads
        self.normalize = plain.normalize
        self.actor = with_rational_tanh(plain.actor)

    def logits(self, obs: Tensor) -> Tensor:
        """Return the logits of all combinations.

        The batch is the last dimension, so that the softmax's passes add the heads.
        """
        hidden = self.actor[:-1](self.normalize(obs))
        last = output_layer(self.actor)
        heads = torch.addmm(last.bias[:, None], last.weight, hidden.T).T
        return outer_sum(heads, self.nvec) if self.heads == "independent" else heads

    def distribution(self, obs: Tensor, action_mask: Tensor) -> MaskedMultiDiscrete:
        return CompiledMultiDiscrete(self.logits(obs), action_mask, self.nvec)


class CompiledActorCritic(CompiledActor, ActorCritic):
    """The same of an actor-critic."""

    def __init__(self, plain: ActorCritic):
        CompiledActor.__init__(self, plain)
        self.critic = with_rational_tanh(plain.critic)


def with_rational_tanh(layers: nn.Sequential) -> nn.Sequential:
    """Return the same layers with rational functions for hyperbolic tangents."""
    return nn.Sequential(*(RationalTanh() if isinstance(layer, Tanh) else layer for layer in layers))
