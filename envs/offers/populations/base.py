"""Shared parts of all populations: samples, priors of θ, θ as a matrix, draws that depend on an id alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, CustomerState

LEVELS = (HABITS, FATIGUES, EXPECTATIONS)  # of a subscribed customer's state
DIGEST = 6  # bytes of a hash: what float64 holds exactly
LOGARITHMIC = ("margin", "beta", "c0", "opt_out")  # parameters that enter features as logarithms


class Sample(NamedTuple):
    """N customers at the start of a season."""

    customers: Customers
    features: Tensor  # [N, F]
    state: CustomerState
    row: Tensor | None = None  # [N], in the columns and ids of a population of given customers


class Population(Protocol):
    """A source of the customers of a season."""

    @property
    def starts_alike(self) -> bool:
        """Whether states at a season's start are drawn alike, by `start_belief` (envs/offers/world/filtering.py)."""

    @property
    def num_features(self) -> int:
        """Number of features F."""

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""

    @property
    def columns(self) -> dict[str, np.ndarray] | None:
        """Columns of H given customers, [H] each, for contact rules; None for drawn ones."""

    @property
    def ids(self) -> list[str] | None:
        """Ids of the given customers; None for drawn ones."""

    @property
    def given(self) -> GivenCustomers | None:
        """The customers that a file lists; None for drawn ones."""

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split` ("train" or "test") at the start of a season."""

    def state_dict(self) -> dict:
        """Return what was fitted to the customers, to be saved with a policy; empty where nothing was fitted."""

    def load_state_dict(self, state: dict) -> None:
        """Use what was fitted when a policy was trained."""


class NothingFitted:
    """Base of populations that fit nothing to their customers."""

    def state_dict(self) -> dict:
        """Return an empty dictionary."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Do nothing."""


class GivenCustomers(ABC):
    """Customers that a file lists, as rows of its columns, split into train and test."""

    starts_alike = True
    customers: dict[str, Tensor]  #: {"train": rows, "test": rows}, int64
    ids: list[str]
    columns: dict[str, np.ndarray]  #: of the H customers, [H] each
    dates: dict[str, np.ndarray]  #: columns of dates, datetime64[D] [H] each

    @property
    def given(self) -> GivenCustomers:
        """These customers."""
        return self

    @abstractmethod
    def sample(self, row: Tensor, generator: torch.Generator) -> Sample:
        """Return the customers of some rows, int64 [n], at the start of a season; what no file says is drawn."""

    def draw(self, n: int, generator: torch.Generator, split: str) -> Sample:
        """Return n customers of `split` ("train" or "test") at the start of a season, with their rows."""
        return self.sample(self.choose(n, generator, split), generator)

    def choose(self, n: int, generator: torch.Generator, split: str) -> Tensor:
        """Return n rows of customers of `split`, int64 [n]; no row repeats before all rows have come."""
        rows, device = self.customers[split].to(generator.device), generator.device
        rounds = -(-n // len(rows))
        drawn = [rows[torch.randperm(len(rows), generator=generator, device=device)] for _ in range(rounds)]
        return torch.cat(drawn)[:n]


class Priors:
    """Priors of θ: uniform ranges [low, high] and lognormals [median, sd of the logarithm]."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        rate: list,
        spend: list,
        margin_rate: list,
        attention_sd: float,
        uniform: dict,
        lognormal: dict,
    ):
        self.catalogue = catalogue
        self.rate, self.spend, self.margin_rate = rate, spend, margin_rate
        self.attention_sd, self.uniform, self.lognormal = attention_sd, uniform, lognormal

    def draw(self, n: int, generator: torch.Generator) -> Customers:
        """Return n customers (float64 on the generator's device)."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float64}

        def uniform(low, high):
            return low + (high - low) * torch.rand(n, **options)

        def lognormal(median, sd):
            return median * torch.exp(sd * torch.randn(n, **options))

        theta = {name: uniform(*bounds) for name, bounds in self.uniform.items()}
        theta |= {name: lognormal(*bounds) for name, bounds in self.lognormal.items()}
        rate, margin = uniform(*self.rate), lognormal(*self.spend) * uniform(*self.margin_rate)
        # once, because a copy from the host waits
        self.catalogue = self.catalogue.to(generator.device, torch.float64)
        omega = torch.logit(self.catalogue.attention)[:, None]
        omega = omega + self.attention_sd * torch.randn(len(omega), n, **options)
        return Customers(alpha=torch.logit(rate) - theta["kappa"] / 2, margin=margin, omega=omega, **theta)


def theta_to_matrix(c: Customers) -> Tensor:
    """θ as a matrix [N, K], logarithms where the prior is lognormal; K = 19 + number of channels."""
    rows: list[Tensor] = []
    for f in fields(c):
        x = getattr(c, f.name)
        x = x.log() if f.name in LOGARITHMIC else x
        rows.extend(x if x.dim() == 2 else [x])
    return torch.stack(rows).T


def theta_from_matrix(theta: Tensor) -> Customers:
    """Invert `theta_to_matrix`."""
    named, rest = {}, theta.T
    for f in fields(Customers):
        if f.name == "omega":
            named["omega"] = rest
        else:
            named[f.name], rest = rest[0], rest[1:]
            if f.name in LOGARITHMIC:
                named[f.name] = named[f.name].exp()
    return Customers(**named)


def hash_uniform(ids: Iterable[str], salt: int) -> Tensor:
    """A uniform number in [0, 1) for each id, [H], which depends on id and salt alone."""
    prefix = f"{salt}:".encode()
    digests = b"".join([blake2b(prefix + name.encode(), digest_size=DIGEST).digest() for name in ids])
    of_bytes = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST).astype(np.float64)
    place_values = 256.0 ** np.arange(DIGEST - 1, -1, -1)
    return torch.from_numpy(of_bytes @ place_values / 256.0**DIGEST)
