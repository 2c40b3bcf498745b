"""The neural-linear explorer: Bayesian linear regression on the features that a network has learned."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.action_values import ActionValues
from rlcore.exploration.explorers import Explorer
from rlcore.exploration.rules import floored, thompson
from rlcore.networks import output_layer

CHUNK = 8192  # decisions whose features are computed at once


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
    from the first one on, since the features of old decisions change with the network; the end of a training rebuilds
    it once more. The noise is the mean of its inverse-gamma posterior.
    """

    mean: Tensor  #: posterior mean, [A, d]
    factor: Tensor  #: of A⁻¹ = factorᵀ·factor, [A, d, d]
    noise: Tensor  #: variance of the reward, [A]

    def __init__(
        self,
        network: ActionValues,
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
        device = output_layer(network.body).weight.device
        mean = torch.zeros(num_actions, size, device=device)
        identity = torch.eye(size, device=device).repeat(num_actions, 1, 1)
        prior_noise = noise_scale / (noise_shape - 1)
        noise = torch.full((num_actions,), prior_noise, device=device)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", identity / ridge**0.5)
        self.register_buffer("noise", noise)

    def predict(self, network: ActionValues, context: Tensor) -> Tensor:
        return network.features(context) @ self.mean.T

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        features = network.features(context)
        mean = features @ self.mean.T - cost
        scaled_features = torch.einsum("bd,aed->bae", features, self.factor)
        quadratic_form = scaled_features.square().sum(-1)  # φᵀA⁻¹φ [B, A]
        std = (self.noise * quadratic_form).sqrt()
        thompson_probs = thompson(mean, std, action_mask, self.samples, generator)
        return floored(thompson_probs, action_mask, self.epsilon)

    def is_refit_due(self, iteration: int) -> bool:
        return iteration % self.refit_every == 0

    def refit_posterior(self, network: ActionValues, context: Tensor, action: Tensor, reward: Tensor) -> None:
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
