"""θ̂ of customers by a structural twin: the mean of its members' θ."""

from __future__ import annotations

from torch import Tensor

from envs.offers.policies.information import LOG
from envs.offers.populations.base import Sample, theta_from_matrix
from envs.offers.twin.structural_model import ParameterNetwork, fitted_networks, mean_theta, network_of
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.customers import Customers


class TwinTheta:
    """Estimates θ by the members of a twin; `path` is a checkpoint of algo=twin.

    A parameter that the twin left to the priors has their mean. Raises ValueError where the checkpoint is of another
    algorithm, or was fitted to other features or channels than those of `sample`. Without a sample, the members come by
    `load_state_dict`.
    """

    learned_from = LOG

    def __init__(self, sample: Sample | None, *, path: str):
        self.networks: list[ParameterNetwork] = []
        if sample is None:
            return
        key, features = "env.observation.theta.path", sample.features
        twin, channels = load_twin(path, key)["agent"], len(sample.customers.omega)
        networks = fitted_networks(twin, f"{key}={path}", num_features=features.shape[1], channels=channels)
        self.networks = [network.to(features.device) for network in networks]

    def __call__(self, features: Tensor) -> Customers:
        """Estimate the parameters of customers with features [N, F]."""
        return theta_from_matrix(mean_theta(self.networks, features))

    def state_dict(self) -> dict:
        """Return the members' weights."""
        return {str(k): network.state_dict() for k, network in enumerate(self.networks)}

    def load_state_dict(self, state: dict) -> None:
        """Restore the members' weights."""
        if not self.networks:
            self.networks = [network_of(state[str(k)]) for k in range(len(state))]
        for k, network in enumerate(self.networks):
            network.load_state_dict(state[str(k)])
