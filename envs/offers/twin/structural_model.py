"""The structural twin: θ = G(x), and a population whose customers have the θ of an ensemble of such maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import fields

import torch
from torch import Tensor, nn

from envs.offers.populations.base import GivenCustomers, Population, Sample, theta_from_matrix, theta_to_matrix
from envs.offers.twin.twin_checkpoint import load_twin
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import Customers
from rlcore.networks import mlp
from rlcore.normalization import Standardizer

SHARES = ("mu", "chi", "pi_plus", "pi_minus", "delta_f", "delta_d")  # parameters from 0 to 1
POSITIVE = ("phi", "gamma_f", "gamma_h", "rho", "nu")  # parameters that are not below 0
MIN_STD = 1e-3  # least standard deviation of an input
LOG_RANGE = 12.0  # all others, logarithms of money among them, are kept within ±


def parameter_columns(c: Customers) -> dict[str, list[int]]:
    """Return the columns of each parameter in the matrix of `theta_to_matrix`."""
    columns: dict[str, list[int]] = {}
    first = 0
    for f in fields(c):
        value = getattr(c, f.name)
        width = len(value) if value.dim() == 2 else 1
        columns[f.name] = list(range(first, first + width))
        first += width
    return columns


def parameter_bounds(columns: dict[str, list[int]]) -> Tensor:
    """Return the least and the greatest value of each column of θ's matrix, [2, K]."""
    bounds = torch.tensor([-LOG_RANGE, LOG_RANGE]).repeat(sum(map(len, columns.values())), 1).T.clone()
    bounds[0, [k for name in (*SHARES, *POSITIVE) for k in columns[name]]] = 0.0
    bounds[1, [k for name in SHARES for k in columns[name]]] = 1.0
    return bounds


class ParameterNetwork(nn.Module):
    """G: features [N, F] → θ as a matrix [N, K] (`theta_to_matrix`).

    θ is `middle` [K] plus `spread` [K] times a linear map of the standardised features, kept within each parameter's
    range. With `hidden` layers a perceptron is added to the linear map, which is zero before a fit. Where the spread is
    0, θ is the middle.
    """

    middle: Tensor
    spread: Tensor
    effect_sd: Tensor  #: sd of what features leave open, in θ's units, [K]; 0 where it was not fitted
    bounds: Tensor  #: least and greatest of each parameter, [2, K]

    starts_warm = False  #: whether a fit goes on from the weights of another, and keeps the scale of its inputs

    def __init__(self, num_features: int, middle: Tensor, spread: Tensor, *, hidden: list[int]):
        super().__init__()
        size = len(middle)
        self.standardize = Standardizer(num_features, MIN_STD)
        self.linear = nn.Linear(num_features, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.body = mlp([num_features, *hidden, size], nn.Tanh, 0.01) if hidden else None
        self.register_buffer("middle", middle.float())
        self.register_buffer("spread", spread.float())
        self.register_buffer("effect_sd", torch.zeros(len(middle)))
        self.register_buffer("bounds", parameter_bounds(parameter_columns(theta_from_matrix(middle[None]))))

    def fit_scale(self, features: Tensor) -> None:
        """Standardise by the moments of features [N, F] from now on."""
        self.standardize.fit(features)

    def forward(self, features: Tensor) -> Tensor:
        z = self.standardize(features)
        apart = self.linear(z) if self.body is None else self.linear(z) + self.body(z)
        low, high = self.bounds
        return (self.middle + self.spread * apart).clamp(low, high)


def network_of(weights: dict[str, Tensor]) -> ParameterNetwork:
    """Return the network of stored weights, whose shapes tell its sizes."""
    num_features, size = len(weights["standardize.mean"]), len(weights["middle"])
    hidden = [len(x) for name, x in weights.items() if name.startswith("body.") and name.endswith(".bias")][:-1]
    network = ParameterNetwork(num_features, torch.zeros(size), torch.zeros(size), hidden=hidden)
    network.load_state_dict(weights)
    return network


def fitted_networks(twin: dict, where: str, *, num_features: int, channels: int) -> list[ParameterNetwork]:
    """Return the fitted members of a twin's stored state, for customers of so many features and channels.

    Raises ValueError, which begins with `where`, if the twin was fitted to other numbers of them.
    """
    members = twin["members"][: twin["iteration"]]
    features, omega = len(members[0]["standardize.mean"]), theta_from_matrix(members[0]["middle"][None]).omega
    if features != num_features:
        raise ValueError(f"{where}: fitted to customers of {features} features, here they have {num_features}")
    if len(omega) != channels:
        raise ValueError(f"{where}: fitted to a catalogue of {len(omega)} channels, here it has {channels}")
    return [network_of(weights) for weights in members]


@torch.no_grad()
def mean_theta(networks: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Return the members' mean θ of customers with features [N, F], float32 [N, K]."""
    return torch.stack([network(features.float()) for network in networks]).mean(0)


class TwinPopulation:
    """The customers of a `base` population, who respond by a structural twin.

    Each customer responds as one member of the twin's ensemble, drawn for the season, so that no policy can profit from
    the errors of one member. The twin's random effects are drawn, too. Parameters that the twin left to the priors
    are those of another customer of the base population, drawn anew, so that features tell nothing of them. `path` is a
    checkpoint of algo=twin; with null, customers respond by the base population. Raises ValueError where the
    checkpoint is of another algorithm, or was fitted to other features or channels.
    """

    def __init__(self, catalogue: Catalogue, *, base: Callable[[Catalogue], Population], path: str | None):
        self.base = base(catalogue)
        self.only: int | None = None  # the member of all customers; None: one member drawn for each customer
        self.networks: list[ParameterNetwork] = []
        self.fixed_columns: list[int] = []  # columns of θ that are the base population's
        if path is not None:
            self._load(path, catalogue)

    def _load(self, path: str, catalogue: Catalogue) -> None:
        key = "env.population.path"
        twin = load_twin(path, key)["agent"]
        if twin["env"]["population"]:
            self.base.load_state_dict(twin["env"]["population"])  # the networks' features, whatever table is here
        self.fixed_columns = twin["fixed_columns"]
        self.networks = fitted_networks(
            twin, f"{key}={path}", num_features=self.num_features, channels=len(catalogue.channels)
        )

    @property
    def num_features(self) -> int:
        """Number of features F."""
        return self.base.num_features

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""
        return self.base.feature_names

    @property
    def columns(self) -> dict | None:
        """Columns of the base population that contact rules read."""
        return self.base.columns

    @property
    def ids(self) -> list[str] | None:
        """Ids of the base population's customers."""
        return self.base.ids

    @property
    def given(self) -> GivenCustomers | None:
        """Customers of the base population that a file lists."""
        return self.base.given

    @property
    def starts_alike(self) -> bool:
        """Whether the base population's customers begin a season in states that are drawn alike."""
        return self.base.starts_alike

    def members(self) -> list[TwinPopulation]:
        """Return, for each member of the ensemble, the population in which all customers respond as that member."""
        alone = [copy(self) for _ in self.networks]
        for k, population in enumerate(alone):
            population.only = k
        return alone

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split` at the start of a season."""
        sample = self.base.draw(n, generator, split)
        if not self.networks:
            return sample
        x, base_theta = sample.features.float(), theta_to_matrix(sample.customers)
        theta = torch.stack([network.to(x.device)(x) for network in self.networks]).to(base_theta)  # [members, n, K]
        member = torch.randint(len(self.networks), (n,), generator=generator, device=x.device)
        if self.only is not None:
            member = torch.full_like(member, self.only)
        theta = theta[member, torch.arange(n, device=x.device)]
        effect_sd = torch.stack([network.effect_sd for network in self.networks]).to(theta)
        low, high = self.networks[0].bounds.to(theta)
        for columns in parameter_columns(sample.customers).values():
            if effect_sd[:, columns].any():
                draws = torch.randn(n, 1, generator=generator, device=x.device, dtype=theta.dtype)
                theta[:, columns] += effect_sd[:, columns][member] * draws
        theta = theta.clamp(low, high)
        if self.fixed_columns:
            others = theta_to_matrix(self.base.draw(n, generator, split).customers)
            theta[:, self.fixed_columns] = others[:, self.fixed_columns]
        return sample._replace(customers=theta_from_matrix(theta))

    def state_dict(self) -> dict:
        """Return what the base population has fitted."""
        return self.base.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Use the features that a policy was trained on."""
        self.base.load_state_dict(state)
