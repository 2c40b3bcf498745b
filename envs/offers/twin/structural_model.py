"""A twin of the customers: θ = G(x), and a population that responds as an ensemble of such maps says."""
from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from envs.offers.populations.base import Sample, theta_from_matrix, theta_to_matrix
from envs.offers.neural_twin.response_models import Inputs
from envs.offers.world.customers import Customers
from rlcore import checkpoint

SHARES = ("mu", "chi", "pi_plus", "pi_minus", "delta_f", "delta_d")  # parameters from 0 to 1
POSITIVE = ("phi", "gamma_f", "gamma_h", "rho", "nu")  # and those that are not below 0
LOG_RANGE = 12.0  # all else, logarithms of money among it, is kept within ±


def places(c: Customers) -> dict[str, list[int]]:
    """Where each parameter stands in `columns`."""
    found, at = {}, 0
    for f in fields(c):
        value = getattr(c, f.name)
        width = len(value) if value.dim() == 2 else 1
        found[f.name], at = list(range(at, at + width)), at + width
    return found


class Parameters(Inputs):
    """G: features [N, F] → θ as `columns` lays it out, [N, K]: `middle` and, in units of `spread`, a linear map and, with
    `hidden` layers, a network beside it. Where the spread is 0, θ is the middle."""

    def __init__(self, num_features: int, middle: Tensor, spread: Tensor, *, hidden: list[int]):
        super().__init__(num_features, len(middle), hidden)
        self.register_buffer("middle", middle.float())
        self.register_buffer("spread", spread.float())
        self.register_buffer("bounds", torch.tensor([-LOG_RANGE, LOG_RANGE]).repeat(len(middle), 1).T.clone())
        at = places(theta_from_matrix(middle[None]))
        self.bounds[0, [k for name in (*SHARES, *POSITIVE) for k in at[name]]] = 0.0
        self.bounds[1, [k for name in SHARES for k in at[name]]] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        return (self.middle + self.spread * super().forward(features)).clamp(*self.bounds)


class Twins:
    """A population whose customers are those of another, but respond as a twin says: each as one member of the ensemble,
    drawn for the season, so that no policy can live off one member's errors. `only` is the one that all are then."""

    def __init__(self, base, path: str, only: int | None = None):
        if not path:
            raise ValueError("env.twin: expected the path of a checkpoint of algo=twin, as in env.twin=outputs/…/checkpoint.pt")
        state = checkpoint.load(path)
        if state.get("name") != "twin":
            raise ValueError(f"env.twin={path}: expected a checkpoint of algo=twin, got {state.get('name')}")
        agent, self.path = state["agent"], path
        if "assumed" not in agent:
            raise ValueError(f"env.twin={path}: a neural twin, whose customers have no parameters: expected env=offers_twin "
                             "env/observation=history")
        self.base, self.only, self.num_features = base, only, base.num_features
        self.columns, self.ids = base.columns, base.ids
        seen, width = len(agent["members"][0]["standardize.mean"]), len(agent["members"][0]["middle"])
        if seen != base.num_features:
            raise ValueError(f"env.twin={path}: fitted to customers of {seen} features, here they have {base.num_features}")
        channels = len(theta_from_matrix(agent["members"][0]["middle"][None]).omega)
        if channels != (here := len(base.priors.catalogue.channels)):
            raise ValueError(f"env.twin={path}: fitted to a catalogue of {channels} channels, here it has {here}")
        self.assumed = agent["assumed"]
        self.members = [Parameters(seen, torch.zeros(width), torch.zeros(width), hidden=agent["hidden"])
                        for _ in range(agent["iteration"])]
        for member, held in zip(self.members, agent["members"]):
            member.load_state_dict(held)

    def under(self, member: int) -> Twins:
        """The same population, all customers as one member says."""
        return Twins(self.base, self.path, member)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split`."""
        sample = self.base.draw(n, generator, split)
        x, own = sample.features.float(), theta_to_matrix(sample.customers)
        theta = torch.stack([member.to(x.device)(x) for member in self.members]).to(own)
        drawn = torch.randint(len(self.members), (n,), generator=generator, device=x.device)
        drawn = drawn if self.only is None else torch.full_like(drawn, self.only)
        theta = theta[drawn, torch.arange(n, device=x.device)]
        theta[:, self.assumed] = own[:, self.assumed]
        return sample._replace(customers=theta_from_matrix(theta))

    def state_dict(self) -> dict:
        """What the other population fitted."""
        return self.base.state_dict() if hasattr(self.base, "state_dict") else {}

    def load_state_dict(self, state: dict) -> None:
        """See customers by the features that a policy was trained on."""
        if state:
            self.base.load_state_dict(state)
