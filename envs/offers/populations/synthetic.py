"""Customers drawn from stated priors, and the features by which a policy sees them."""
from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, Customers, State

LOGARITHMIC = ("margin", "beta", "c0", "opt_out")  # parameters whose logarithm is what features see


class Sample(NamedTuple):
    """N customers: parameters, features [N, F], the state that each starts the season in, and its row [N] in the columns
    and ids of a population that has them (envs/offers/constraints/contact_rules.py reads these)."""

    customers: Customers
    features: Tensor
    state: State
    row: Tensor | None = None


class Priors:
    """Draw customers θ from the priors of a YAML file: uniform ranges and lognormals (median, sd of the logarithm)."""

    def __init__(self, catalogue: Catalogue, *, rate: list, spend: list, margin_rate: list, attention_sd: float,
                 uniform: dict, lognormal: dict):
        self.catalogue = catalogue
        self.rate, self.spend, self.margin_rate = rate, spend, margin_rate
        self.attention_sd, self.uniform, self.lognormal = attention_sd, uniform, lognormal

    def draw(self, n: int, generator: torch.Generator) -> Customers:
        """Return n customers (float64 on the generator's device)."""
        options = {"generator": generator, "device": generator.device, "dtype": torch.float64}

        def uniform(low, high):
            return low + (high - low) * torch.rand(n, **options)

        def lognormal(median, sd):
            return median * torch.exp(sd * torch.randn(n, **options))

        theta = {name: uniform(*bounds) for name, bounds in self.uniform.items()}
        theta |= {name: lognormal(*bounds) for name, bounds in self.lognormal.items()}
        rate, margin = uniform(*self.rate), lognormal(*self.spend) * uniform(*self.margin_rate)
        self.catalogue = self.catalogue.to(generator.device, torch.float64)  # once, for a copy from the host would wait
        omega = torch.logit(self.catalogue.attention)[:, None]
        omega = omega + self.attention_sd * torch.randn(len(omega), n, **options)
        return Customers(alpha=torch.logit(rate) - theta["kappa"] / 2, margin=margin, omega=omega, **theta)


def columns(c: Customers) -> Tensor:
    """Lay θ out as a matrix [N, 24], logarithms where the prior is lognormal."""
    rows = []
    for f in fields(c):
        x = getattr(c, f.name)
        x = x.log() if f.name in LOGARITHMIC else x
        rows.extend(x if x.dim() == 2 else [x])
    return torch.stack(rows).T


def from_columns(theta: Tensor) -> Customers:
    """Invert `columns`."""
    named, rest = {}, theta.T
    for f in fields(Customers):
        if f.name == "omega":
            named["omega"] = rest
        else:
            named[f.name], rest = rest[0], rest[1:]
            if f.name in LOGARITHMIC:
                named[f.name] = named[f.name].exp()
    return Customers(**named)


class Structural:
    """The drawn population: features are a fixed orthogonal mixing of the standardised θ plus noise.

    r2 is the share of a feature's variance that θ explains; at 1 the features reveal θ.
    """

    def __init__(self, catalogue: Catalogue, *, priors: dict, r2: float, reference_size: int, mixing_seed: int):
        if not 0 < r2 <= 1:
            raise ValueError(f"env.population.r2: expected a share in (0, 1], got {r2}")
        self.priors, self.r2 = Priors(catalogue, **priors), r2
        generator = torch.Generator().manual_seed(mixing_seed)
        reference = columns(self.priors.draw(reference_size, generator))
        self.mean, self.std = reference.mean(0), reference.std(0)
        size = reference.shape[1]
        self.mixing = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        self.num_features = size

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n new customers at the start of a season; `split` means nothing where every draw is new."""
        device = generator.device
        self.mean, self.std, self.mixing = (x.to(device) for x in (self.mean, self.std, self.mixing))
        c = self.priors.draw(n, generator)
        z = (columns(c) - self.mean) / self.std
        noise = torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype)
        x = self.r2**0.5 * z @ self.mixing + (1 - self.r2) ** 0.5 * noise
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        habit = torch.randint(HABITS, (n,), generator=generator, device=device)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=generator, device=device)
        return Sample(c, x, State(habit, zeros, expectation, zeros + SUBSCRIBED))
