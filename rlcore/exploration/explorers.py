"""Explorers of a network of action values: ε-greedy, SquareCB, NeuralUCB and NeuralTS.

The probabilities that an explorer gives are logged as propensities. Scores and probabilities are [B, A], an action_mask
is bool [B, A]. An invalid action has probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlcore.action_values import ActionValues
from rlcore.exploration.rules import floored, greedy, inverse_gap, thompson


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

    def is_refit_due(self, iteration: int) -> bool:
        """Tell whether the posterior is refitted at the end of an iteration, counted from 0."""
        return False

    def refit_posterior(self, network: ActionValues, context: Tensor, action: Tensor, reward: Tensor) -> None:
        """Refit the posterior to all remembered decisions, after the network has changed."""


class EpsilonGreedy(Explorer):
    """The best action, and with probability ε a uniformly random one."""

    def __init__(self, network: ActionValues, *, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        score = network(context) - cost
        greedy_probs = greedy(score, action_mask)
        return floored(greedy_probs, action_mask, self.epsilon)


class SquareCB(Explorer):
    """Any action, with a probability inverse to the gap between its score and the best."""

    def __init__(self, network: ActionValues, *, gamma: float):
        super().__init__()
        self.gamma = gamma

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        score = network(context) - cost
        return inverse_gap(score, action_mask, self.gamma)


class GradientUncertainty(Explorer):
    """σ_a = √(λν · gᵀU⁻¹g), g the network's gradient at action a, U = λ + Σ g² over decisions (its diagonal).

    Zhou, Li & Gu 2020 (NeuralUCB), with the diagonal in place of the matrix. Their g is divided by √width, since the
    gradient grows by √width under their initialisation; it does not under an orthogonal one.
    """

    def __init__(self, network: ActionValues, *, ridge: float, nu: float, epsilon: float):
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

    def update_design(self, network: ActionValues, context: Tensor, action: Tensor) -> None:
        rows = torch.arange(len(action), device=action.device)
        for i, gradient in enumerate(network.gradients(context)):
            design = self.get_buffer(f"design{i}")
            delta = gradient.delta[rows, action]
            gradient_square = delta.square().T @ gradient.input.square()
            design.add_(gradient_square)


class NeuralUCB(GradientUncertainty):
    """The action of the highest upper confidence bound, prediction plus σ (Zhou, Li & Gu 2020)."""

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        upper_bound = network(context) - cost + self.std(network, context)
        greedy_probs = greedy(upper_bound, action_mask)
        return floored(greedy_probs, action_mask, self.epsilon)


class NeuralTS(GradientUncertainty):
    """The best action of one draw from N(prediction, σ²) (Zhang et al. 2021)."""

    def __init__(self, network: ActionValues, *, ridge: float, nu: float, epsilon: float, samples: int):
        super().__init__(network, ridge=ridge, nu=nu, epsilon=epsilon)
        self.samples = samples

    def probs(
        self,
        network: ActionValues,
        context: Tensor,
        cost: Tensor | float,
        action_mask: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        mean = network(context) - cost
        std = self.std(network, context)
        thompson_probs = thompson(mean, std, action_mask, self.samples, generator)
        return floored(thompson_probs, action_mask, self.epsilon)
