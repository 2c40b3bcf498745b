"""How a bandit tries what it is not sure of: every explorer gives the probabilities by which actions are then drawn.

So each decision can be logged with its propensity. Score and probabilities are [B, A], invalid actions have none.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def best(score: Tensor, mask: Tensor) -> Tensor:
    """All probability on the valid action of the highest score."""
    top = score.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(score).scatter_(-1, top, 1.0)


def floored(probs: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """Give a share ε to all valid actions alike, so that each keeps a propensity."""
    return (1 - epsilon) * probs + epsilon * mask.to(probs) / mask.sum(-1, keepdim=True)


def inverse_gap(score: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """SquareCB (Foster & Rakhlin 2020): 1 / (K + γ·gap) for each of K valid actions, the rest on the best."""
    score = score.masked_fill(~mask, -torch.inf)
    gap = score.amax(-1, keepdim=True) - score
    probs = torch.where(mask, 1 / (mask.sum(-1, keepdim=True) + gamma * gap), 0.0)
    top = best(score, mask)
    probs = probs * (1 - top)
    return probs + top * (1 - probs.sum(-1, keepdim=True))


def thompson(mean: Tensor, std: Tensor, mask: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Share of `samples` joint draws from N(mean, std²) in which an action is the best.

    To draw an action from these shares is to draw once from the posterior, whatever their number; more of them only make
    propensities less extreme. An estimate weighted by them stays unbiased: the draws know nothing of the outcome.
    """
    noise = torch.randn(samples, *mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    tops = (mean + std * noise).masked_fill(~mask, -torch.inf).argmax(-1)  # [samples, B]
    return torch.zeros_like(mean).scatter_add_(-1, tops.T, torch.full_like(tops.T, 1 / samples, dtype=mean.dtype))


# ── explorers ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Explorer(nn.Module):
    """net is an ActionValues; `charge` [B, A] is known to be taken off what it predicts. State is in buffers."""

    def predict(self, net, context: Tensor) -> Tensor:
        """Expected reward of all actions, [B, A]."""
        return net(context)

    def probs(self, net, context: Tensor, charge: Tensor | float, mask: Tensor, generator: torch.Generator) -> Tensor:
        """Probabilities of all actions."""
        raise NotImplementedError

    def update_design(self, net, context: Tensor, action: Tensor) -> None:
        """Take note of decisions that were made: flat actions [B]."""

    def refit_posterior(self, net, iteration: int, context: Tensor, action: Tensor, reward: Tensor) -> None:
        """Learn anew from all that is remembered, after the network has changed in an iteration."""


class EpsilonGreedy(Explorer):
    """The best action, and with probability ε any."""

    def __init__(self, net, *, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def probs(self, net, context, charge, mask, generator):
        return floored(best(net(context) - charge, mask), mask, self.epsilon)


class SquareCB(Explorer):
    """Any action in inverse proportion to how much worse than the best it seems."""

    def __init__(self, net, *, gamma: float):
        super().__init__()
        self.gamma = gamma

    def probs(self, net, context, charge, mask, generator):
        return inverse_gap(net(context) - charge, mask, self.gamma)


class GradientUncertainty(Explorer):
    """σ_a = √(λν · gᵀU⁻¹g), g the network's gradient at action a, U = λ + Σ g² over decisions (its diagonal).

    Zhou, Li & Gu 2020 (NeuralUCB), with the diagonal in place of the matrix. Their g is divided by √width, since their
    layers are drawn such that it grows by that; after an orthogonal initialisation it does not.
    """

    def __init__(self, net, *, ridge: float, nu: float, epsilon: float):
        super().__init__()
        self.ridge, self.nu, self.epsilon = ridge, nu, epsilon
        for i, layer in enumerate(layer for layer in net.body if isinstance(layer, nn.Linear)):
            size = layer.out_features, layer.in_features + 1  # weight and bias
            self.register_buffer(f"design{i}", layer.weight.detach().new_full(size, ridge))

    def std(self, net, context: Tensor) -> Tensor:
        """σ of every action, [B, A]."""
        total = sum(((delta.square() @ (1 / getattr(self, f"design{i}"))) * x.square()[:, None]).sum(-1)
                    for i, (delta, x) in enumerate(net.gradients(context)))
        return (self.ridge * self.nu * total).sqrt()

    def update_design(self, net, context, action):
        rows = torch.arange(len(action), device=action.device)
        for i, (delta, x) in enumerate(net.gradients(context)):
            getattr(self, f"design{i}").add_(delta[rows, action].square().T @ x.square())


class NeuralUCB(GradientUncertainty):
    """The action whose prediction plus σ is highest."""

    def probs(self, net, context, charge, mask, generator):
        return floored(best(net(context) - charge + self.std(net, context), mask), mask, self.epsilon)


class NeuralTS(GradientUncertainty):
    """The best of one draw of N(prediction, σ²) an action (Zhang et al. 2021)."""

    def __init__(self, net, *, ridge: float, nu: float, epsilon: float, samples: int):
        super().__init__(net, ridge=ridge, nu=nu, epsilon=epsilon)
        self.samples = samples

    def probs(self, net, context, charge, mask, generator):
        draw = thompson(net(context) - charge, self.std(net, context), mask, self.samples, generator)
        return floored(draw, mask, self.epsilon)


class NeuralLinear(Explorer):
    """Bayesian linear regression of each action's reward on the network's last features, and Thompson draws from it.

    Riquelme, Tucker & Snoek 2018. Precision A = λI + Σφφᵀ is rebuilt from memory every so many iterations, since the
    features of old decisions change with the network. The noise has an inverse-gamma posterior, of which the mean is used.
    """

    def __init__(self, net, *, ridge: float, noise_shape: float, noise_scale: float, refit_every: int, epsilon: float,
                 samples: int):
        super().__init__()
        self.ridge, self.refit_every, self.epsilon, self.samples = ridge, refit_every, epsilon, samples
        self.noise_shape, self.noise_scale = noise_shape, noise_scale
        count, size = net.num_actions, net.width + 1
        device = net.body[0].weight.device
        self.register_buffer("mean", torch.zeros(count, size, device=device))
        self.register_buffer("factor", torch.eye(size, device=device).repeat(count, 1, 1) / ridge**0.5)  # A⁻¹ = factorᵀ·factor
        self.register_buffer("noise", torch.full((count,), noise_scale / (noise_shape - 1), device=device))

    def predict(self, net, context):
        return net.features(context) @ self.mean.T

    def probs(self, net, context, charge, mask, generator):
        features = net.features(context)
        spread = torch.einsum("bd,aed->bae", features, self.factor).square().sum(-1)
        draw = thompson(features @ self.mean.T - charge, (self.noise * spread).sqrt(), mask, self.samples, generator)
        return floored(draw, mask, self.epsilon)

    def refit_posterior(self, net, iteration, context, action, reward):
        if iteration % self.refit_every:
            return
        count, size = self.mean.shape
        gram = torch.zeros(count, size, size, device=context.device, dtype=torch.float64)
        moment, square, seen = gram.new_zeros(count, size), gram.new_zeros(count), gram.new_zeros(count)
        for c, a, r in zip(context.split(8192), action.split(8192), reward.split(8192)):  # bounds the memory
            features, r = net.features(c).double(), r.double()
            each = torch.nn.functional.one_hot(a, count).double()
            gram += torch.einsum("ba,bd,be->ade", each, features, features)
            moment += each.T @ (features * r[:, None])
            square += each.T @ r.square()
            seen += each.sum(0)
        precision = gram + self.ridge * torch.eye(size, device=context.device, dtype=torch.float64)
        root = torch.linalg.cholesky_ex(precision).L
        mean = torch.cholesky_solve(moment[..., None], root)[..., 0]
        scale = self.noise_scale + 0.5 * (square - (mean * moment).sum(-1)).clamp_min(0)
        self.mean.copy_(mean)
        self.noise.copy_(scale / (self.noise_shape + 0.5 * seen - 1))
        eye = torch.eye(size, device=context.device, dtype=torch.float64).expand_as(root)
        self.factor.copy_(torch.linalg.solve_triangular(root, eye, upper=False))
