"""Customers drawn from stated priors, and their features."""

from __future__ import annotations

import torch

from envs.offers.populations.base import NothingFitted, Priors, Sample, theta_to_matrix
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, HABITS, SUBSCRIBED, CustomerState


class SyntheticPopulation(NothingFitted):
    """Customers drawn from priors; their features are a fixed orthogonal mixing of the standardised θ plus noise.

    r2 is the share of a feature's variance that θ explains; at 1 the features reveal θ.
    """

    columns = None
    ids = None
    given = None
    starts_alike = True

    def __init__(self, catalogue: Catalogue, *, priors: dict, r2: float, reference_size: int, mixing_seed: int):
        if not 0 < r2 <= 1:
            raise ValueError(f"env.population.r2: expected a share in (0, 1], got {r2}")
        self.priors, self.r2 = Priors(catalogue, **priors), r2
        generator = torch.Generator().manual_seed(mixing_seed)
        reference = theta_to_matrix(self.priors.draw(reference_size, generator))
        self.mean, self.std = reference.mean(0), reference.std(0)
        size = reference.shape[1]
        self.mixing = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        self.num_features, self.feature_names = size, [f"feature {k}" for k in range(size)]

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n new customers at the start of a season; `split` is ignored, because every draw is new."""
        device = generator.device
        self.mean, self.std, self.mixing = (x.to(device) for x in (self.mean, self.std, self.mixing))
        c = self.priors.draw(n, generator)
        z = (theta_to_matrix(c) - self.mean) / self.std
        noise = torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype)
        x = self.r2**0.5 * z @ self.mixing + (1 - self.r2) ** 0.5 * noise
        zeros = torch.zeros(n, dtype=torch.long, device=device)
        habit = torch.randint(HABITS, (n,), generator=generator, device=device)
        expectation = torch.randint(EXPECTATIONS - 1, (n,), generator=generator, device=device)
        return Sample(c, x, CustomerState(habit, zeros, expectation, zeros + SUBSCRIBED))
