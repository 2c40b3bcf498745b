"""θ̂ of customers by a structural twin: the mean of its members' θ."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.policies.information import LOG
from envs.offers.populations.base import Sample, theta_from_matrix
from envs.offers.twin.structural_model import ParameterNetwork
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.customers import Customers


class TwinTheta:
    """Estimates θ by the members of a twin; `path` is a checkpoint of algo=twin.

    A parameter that the twin left to the priors has their mean. Raises ValueError where the checkpoint is of another
    algorithm, or was fitted to other features than those of `sample`. Without a sample, the members come by
    `load_state_dict`.
    """

    learned_from = LOG

    def __init__(self, sample: Sample | None, *, path: str):
        self.networks: list[ParameterNetwork] = []
        if sample is None:
            return
        where = "env.observation.theta.path"
        twin = load_twin(path, where)["agent"]
        first = twin["members"][0]
        num_features, size = len(first["standardize.mean"]), len(first["middle"])
        if num_features != sample.features.shape[1]:
            raise ValueError(
                f"{where}={path}: fitted to customers of {num_features} features, here they have "
                f"{sample.features.shape[1]}"
            )
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
        if not self.networks:
            self.networks = [network_of(state[str(k)]) for k in range(len(state))]
        for k, network in enumerate(self.networks):
            network.load_state_dict(state[str(k)])


def network_of(weights: dict[str, Tensor]) -> ParameterNetwork:
    """Return an unfitted network of the sizes of its `state_dict`'s weights."""
    num_features, size = len(weights["standardize.mean"]), len(weights["middle"])
    hidden = [len(x) for name, x in weights.items() if name.startswith("body.") and name.endswith(".bias")][:-1]
    return ParameterNetwork(num_features, torch.zeros(size), torch.zeros(size), hidden=hidden)
