"""Exploration of a contextual bandit: every explorer gives the probabilities from which actions are then drawn.

The probabilities are logged as propensities. Scores and probabilities are [B, A], an action_mask is bool [B, A]. An
invalid action has probability 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlcore.action_values import ActionValues

CHUNK = 8192  # decisions whose features are computed at once


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def greedy(score: Tensor, action_mask: Tensor) -> Tensor:
    """Put all probability on the valid action of the highest score."""
    valid_score = score.masked_fill(~action_mask, -torch.inf)
    best_action = valid_score.argmax(-1, keepdim=True)
    probs = torch.zeros_like(score)
    return probs.scatter_(-1, best_action, 1.0)


def floored(probs: Tensor, action_mask: Tensor, epsilon: float) -> Tensor:
    """Mix probabilities with a share ε of uniform ones over valid actions, so that each keeps a propensity."""
    num_valid = action_mask.sum(-1, keepdim=True)
    floor = epsilon * action_mask.to(probs) / num_valid
    return (1 - epsilon) * probs + floor


def inverse_gap(score: Tensor, action_mask: Tensor, gamma: float) -> Tensor:
    """Weight actions by their inverse gap to the best, as SquareCB does (Foster & Rakhlin 2020).

    Each of K valid actions has probability 1 / (K + γ·gap); the best action has the remaining probability.
    """
    valid_score = score.masked_fill(~action_mask, -torch.inf)
    gap = valid_score.amax(-1, keepdim=True) - valid_score
    num_valid = action_mask.sum(-1, keepdim=True)
    inverse_gap_weight = 1 / (num_valid + gamma * gap)
    is_best = greedy(score, action_mask)
    other_probs = torch.where(action_mask, inverse_gap_weight, 0.0) * (1 - is_best)
    best_prob = 1 - other_probs.sum(-1, keepdim=True)
    return other_probs + is_best * best_prob


def thompson(mean: Tensor, std: Tensor, action_mask: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Return the share of `samples` joint draws from N(mean, std²) in which an action is the best.

    Drawing an action from these shares is one posterior draw, whatever the number of samples; more samples make
    propensities less extreme. An estimate weighted by the shares is unbiased: the draws do not depend on the outcome.
    """
    shape = (samples, *mean.shape)
    noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
    draws = mean + std * noise
    valid_draws = draws.masked_fill(~action_mask, -torch.inf)
    best_actions = valid_draws.argmax(-1).T  # [B, samples]
    share = torch.full_like(best_actions, 1 / samples, dtype=mean.dtype)
    probs = torch.zeros_like(mean)
    return probs.scatter_add_(-1, best_actions, share)


# ── explorers ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Explorer(nn.Module):
    """A rule of exploration on a network of action values; what the explorer has learned is in its buffers."""

    def predict(self, network: ActionValues, context: Tensor) -> Tensor:
        """Return the expected reward of all actions [B, A] in contexts [B, D]."""
        return network(context)

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the probabilities of all actions [B, A]; the known cost [B, A] is subtracted from the prediction."""
        raise NotImplementedError

    def update_design(self, network: ActionValues, context: Tensor, action: Tensor) -> None:
        """Add decisions, contexts [B, D] and flat actions [B], to the design matrix."""

    def refit_posterior(
        self, network: ActionValues, iteration: int, context: Tensor, action: Tensor, reward: Tensor
    ) -> None:
        """Refit the posterior to all remembered decisions, after the network has changed in an iteration."""


class EpsilonGreedy(Explorer):
    """The best action, and with probability ε a uniformly random one."""

    def __init__(self, network, *, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def probs(self, network, context, cost, action_mask, generator):
        score = network(context) - cost
        greedy_probs = greedy(score, action_mask)
        return floored(greedy_probs, action_mask, self.epsilon)


class SquareCB(Explorer):
    """Any action, with a probability inverse to the gap between its score and the best."""

    def __init__(self, network, *, gamma: float):
        super().__init__()
        self.gamma = gamma

    def probs(self, network, context, cost, action_mask, generator):
        score = network(context) - cost
        return inverse_gap(score, action_mask, self.gamma)


class GradientUncertainty(Explorer):
    """σ_a = √(λν · gᵀU⁻¹g), g the network's gradient at action a, U = λ + Σ g² over decisions (its diagonal).

    Zhou, Li & Gu 2020 (NeuralUCB), with the diagonal in place of the matrix. Their g is divided by √width, since the
    gradient grows by √width under their initialisation; it does not under an orthogonal one.
    """

    def __init__(self, network, *, ridge: float, nu: float, epsilon: float):
        super().__init__()
        self.ridge = ridge
        self.nu = nu
        self.epsilon = epsilon
        linear_layers = [layer for layer in network.body if isinstance(layer, nn.Linear)]
        for i, layer in enumerate(linear_layers):
            size = (layer.out_features, layer.in_features + 1)  # weight and bias
            design = layer.weight.detach().new_full(size, ridge)
            self.register_buffer(f"design{i}", design)

    def std(self, network: ActionValues, context: Tensor) -> Tensor:
        """Return σ of every action [B, A]."""
        quadratic_form = torch.zeros((), device=context.device)  # gᵀU⁻¹g [B, A], layer by layer
        for i, gradient in enumerate(network.gradients(context)):
            inverse_design = 1 / self.get_buffer(f"design{i}")
            input_square = gradient.input.square()[:, None]
            layer_terms = gradient.delta.square() @ inverse_design * input_square
            quadratic_form = quadratic_form + layer_terms.sum(-1)
        return (self.ridge * self.nu * quadratic_form).sqrt()

    def update_design(self, network, context, action):
        rows = torch.arange(len(action), device=action.device)
        for i, gradient in enumerate(network.gradients(context)):
            design = self.get_buffer(f"design{i}")
            delta = gradient.delta[rows, action]
            gradient_square = delta.square().T @ gradient.input.square()
            design.add_(gradient_square)


class NeuralUCB(GradientUncertainty):
    """The action of the highest upper confidence bound, prediction plus σ (Zhou, Li & Gu 2020)."""

    def probs(self, network, context, cost, action_mask, generator):
        upper_bound = network(context) - cost + self.std(network, context)
        greedy_probs = greedy(upper_bound, action_mask)
        return floored(greedy_probs, action_mask, self.epsilon)


class NeuralTS(GradientUncertainty):
    """The best action of one draw from N(prediction, σ²) (Zhang et al. 2021)."""

    def __init__(self, network, *, ridge: float, nu: float, epsilon: float, samples: int):
        super().__init__(network, ridge=ridge, nu=nu, epsilon=epsilon)
        self.samples = samples

    def probs(self, network, context, cost, action_mask, generator):
        mean = network(context) - cost
        std = self.std(network, context)
        thompson_probs = thompson(mean, std, action_mask, self.samples, generator)
        return floored(thompson_probs, action_mask, self.epsilon)


# ── neural-linear ───────────────────────────────────────────────────────────────────────────────────────────────────
class RegressionStatistics(NamedTuple):
    """Sufficient statistics of each action's regression of rewards r on features φ [d], in float64."""

    gram: Tensor  #: Σφφᵀ [A, d, d]
    moment: Tensor  #: Σφr [A, d]
    reward_square: Tensor  #: Σr² [A]
    num_decisions: Tensor  #: [A]


def regression_statistics(
    network: ActionValues, context: Tensor, action: Tensor, reward: Tensor
) -> RegressionStatistics:
    """Add up the statistics of decisions: contexts [N, D], flat actions [N], rewards [N]."""
    num_actions = network.num_actions
    size = network.width + 1
    gram = torch.zeros(num_actions, size, size, device=context.device, dtype=torch.float64)
    moment = gram.new_zeros(num_actions, size)
    reward_square = gram.new_zeros(num_actions)
    num_decisions = gram.new_zeros(num_actions)
    chunks = zip(context.split(CHUNK), action.split(CHUNK), reward.split(CHUNK))
    for chunk_context, chunk_action, chunk_reward in chunks:
        features = network.features(chunk_context).double()
        chunk_reward = chunk_reward.double()
        taken = functional.one_hot(chunk_action, num_actions).double()  # [chunk, A]
        gram += torch.einsum("ba,bd,be->ade", taken, features, features)
        moment += taken.T @ (features * chunk_reward[:, None])
        reward_square += taken.T @ chunk_reward.square()
        num_decisions += taken.sum(0)
    return RegressionStatistics(gram, moment, reward_square, num_decisions)


class NeuralLinear(Explorer):
    """Thompson draws from a Bayesian linear regression of each action's reward on the network's last features.

    Riquelme, Tucker & Snoek 2018. The precision A = λI + Σφφᵀ is rebuilt from memory every `refit_every` iterations,
    since the features of old decisions change with the network. The noise is the mean of its inverse-gamma posterior.
    """

    def __init__(
        self,
        network,
        *,
        ridge: float,
        noise_shape: float,
        noise_scale: float,
        refit_every: int,
        epsilon: float,
        samples: int,
    ):
        super().__init__()
        self.ridge = ridge
        self.noise_shape = noise_shape
        self.noise_scale = noise_scale
        self.refit_every = refit_every
        self.epsilon = epsilon
        self.samples = samples
        num_actions = network.num_actions
        size = network.width + 1
        device = network.body[0].weight.device
        mean = torch.zeros(num_actions, size, device=device)
        identity = torch.eye(size, device=device).repeat(num_actions, 1, 1)
        prior_noise = noise_scale / (noise_shape - 1)
        noise = torch.full((num_actions,), prior_noise, device=device)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", identity / ridge**0.5)  # A⁻¹ = factorᵀ·factor
        self.register_buffer("noise", noise)

    def predict(self, network, context):
        return network.features(context) @ self.mean.T

    def probs(self, network, context, cost, action_mask, generator):
        features = network.features(context)
        mean = features @ self.mean.T - cost
        scaled_features = torch.einsum("bd,aed->bae", features, self.factor)
        quadratic_form = scaled_features.square().sum(-1)  # φᵀA⁻¹φ [B, A]
        std = (self.noise * quadratic_form).sqrt()
        thompson_probs = thompson(mean, std, action_mask, self.samples, generator)
        return floored(thompson_probs, action_mask, self.epsilon)

    def refit_posterior(self, network, iteration, context, action, reward):
        if iteration % self.refit_every:
            return
        statistics = regression_statistics(network, context, action, reward)
        moment = statistics.moment
        identity = torch.eye(moment.shape[-1], device=context.device, dtype=torch.float64)
        precision = statistics.gram + self.ridge * identity
        cholesky = torch.linalg.cholesky_ex(precision).L
        mean = torch.cholesky_solve(moment[..., None], cholesky)[..., 0]
        explained = (mean * moment).sum(-1)
        residual = (statistics.reward_square - explained).clamp_min(0)
        noise_scale = self.noise_scale + 0.5 * residual
        noise_shape = self.noise_shape + 0.5 * statistics.num_decisions
        factor = torch.linalg.solve_triangular(cholesky, identity.expand_as(cholesky), upper=False)
        self.mean.copy_(mean)
        self.noise.copy_(noise_scale / (noise_shape - 1))
        self.factor.copy_(factor)
