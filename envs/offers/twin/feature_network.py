"""The networks of a twin: standardised inputs, a linear map and, where wanted, a perceptron beside it."""

from __future__ import annotations

from torch import Tensor, nn

from rlcore.networks import mlp
from rlcore.normalization import Standardizer

MIN_STD = 1e-3  # least standard deviation of an input


class FeatureNetwork(nn.Module):
    """A linear map of standardised inputs [B, D] plus, with `hidden` layers, a network's output, → [B, size].

    An unfitted linear map is zero.
    """

    def __init__(self, inputs: int, size: int, hidden: list[int]):
        super().__init__()
        self.standardize = Standardizer(inputs, MIN_STD)
        self.linear = nn.Linear(inputs, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.body = mlp([inputs, *hidden, size], nn.Tanh, 0.01) if hidden else None

    def fit_scale(self, inputs: Tensor) -> None:
        """Standardise by the moments of inputs [N, D] from now on."""
        self.standardize.fit(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        z = self.standardize(inputs)
        return self.linear(z) if self.body is None else self.linear(z) + self.body(z)


def weight_decay_groups(network: nn.Module) -> list[dict]:
    """Return an optimiser's groups of parameters: weights decay, biases do not, so that rare outcomes stay rare."""
    return [
        {"params": [p for p in network.parameters() if p.dim() > 1]},
        {"params": [p for p in network.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
