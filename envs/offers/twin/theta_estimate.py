"""θ̂ of customers by a structural twin: the mean of its members' θ."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.populations.base import Sample, theta_from_matrix
from envs.offers.twin.structural_model import KIND, ParameterNetwork
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.customers import Customers


class TwinTheta:
    """Estimates θ by the members of a twin; `path` is a checkpoint of algo=twin.

    A parameter that the twin left to the priors has their mean. Raises ValueError where the checkpoint is of another
    kind, or was fitted to other features than those of `sample`.
    """

    def __init__(self, sample: Sample, *, path: str):
        where = "env.observation.theta.path"
        twin = load_twin(path, where, KIND, "which has no parameters")["agent"]
        first = twin["members"][0]
        num_features, size = len(first["standardize.mean"]), len(first["middle"])
        if num_features != sample.features.shape[1]:
            raise ValueError(
                f"{where}={path}: fitted to customers of {num_features} features, here they have "
                f"{sample.features.shape[1]}"
            )
        self.networks = []
        for weights in twin["members"][: twin["iteration"]]:
            network = ParameterNetwork(num_features, torch.zeros(size), torch.zeros(size), hidden=twin["hidden"])
            network.load_state_dict(weights)
            self.networks.append(network.to(sample.features.device))

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Customers:
        """Estimate the parameters of customers with features [N, F]."""
        x = features.float()
        return theta_from_matrix(torch.stack([network(x) for network in self.networks]).mean(0))

    def state_dict(self) -> dict:
        """Return the members' weights."""
        return {str(k): network.state_dict() for k, network in enumerate(self.networks)}

    def load_state_dict(self, state: dict) -> None:
        """Restore the members' weights."""
        for k, network in enumerate(self.networks):
            network.load_state_dict(state[str(k)])
