"""Organic weekly trips of households: a zero-inflated negative binomial, given their past.

Weeks are counted from the first week of a past. A week's distribution depends on earlier weeks alone, so that the
product over weeks is the probability of a whole season, and a season is simulated week by week.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlcore.networks import mlp
from rlcore.normalization import Standardizer
from rlcore.ope.outcome_models import fit_sgd

SMALL = 0.05  # trips a week; lower rates count as equal
MIN_STD = 1e-3  # least standard deviation of a feature


def negative_binomial_log_prob(count: Tensor, mean: Tensor, shape: Tensor) -> Tensor:
    """Log-probability of counts under a negative binomial."""
    total = shape + mean
    return (
        torch.lgamma(count + shape)
        - torch.lgamma(shape)
        - torch.lgamma(count + 1)
        + shape * (shape / total).log()
        + count * (mean / total).log()
    )


def gamma_rate(mean: Tensor, shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the rate of the Poisson distribution that a negative binomial is a mixture of."""
    return torch._standard_gamma(shape, generator=generator) * mean / shape


def check_burn_in(key: str, burn_in: int, trips: Tensor) -> None:
    """Raise ValueError where no week of trips [H, W] is left to fit to."""
    if trips.shape[1] <= burn_in:
        raise ValueError(f"{key}.burn_in: expected fewer than the {trips.shape[1]} weeks to fit to, got {burn_in}")


class Past(NamedTuple):
    """Statistics of households' past weeks, [H] each."""

    weeks: int  # seen
    total: Tensor  # trips
    recent: Tensor  # trips a week, by half-life, [H, half-lives]
    active: Tensor  # share of active weeks, likewise
    last: Tensor  # trips of the last week
    since: Tensor  # weeks since the last trip


class Weekly(NamedTuple):
    """The distribution of trips in a week, [...] each."""

    mean: Tensor  # of the negative binomial
    shape: Tensor
    idle: Tensor  # log odds of an idle week, beside the negative binomial

    def log_prob(self, trips: Tensor) -> Tensor:
        """Log-probability of trips [...]."""
        count = negative_binomial_log_prob(trips, self.mean, self.shape)
        logsigmoid = nn.functional.logsigmoid
        bought = logsigmoid(-self.idle) + count
        return torch.where(trips > 0, bought, torch.logaddexp(logsigmoid(self.idle), bought))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw trips [...]."""
        rate = gamma_rate(self.mean, self.shape, generator)
        idle = torch.rand(self.mean.shape, generator=generator, device=self.mean.device) < torch.sigmoid(self.idle)
        return torch.where(idle, 0.0, torch.poisson(rate, generator=generator))


class Organic(nn.Module):
    """A network of each household's past, which predicts how much a week differs from its shrunk rate.

    `half_lives` are the half-lives of the past's statistics, in weeks. `prior` is the number of weeks of the average
    household that a rate is shrunk by. `burn_in` weeks are not used in the fit, because there is little past yet and
    households still join.
    """

    keep: Tensor  # share of a past that a week leaves, by half-life
    average: Tensor  # trips and share of active weeks of the average household, [2]

    def __init__(
        self,
        *,
        hidden: list[int],
        activation: Callable,
        half_lives: list[float],
        prior: float,
        burn_in: int,
        lr: float,
        decay: float,
        steps: int,
        batch_size: int,
    ):
        super().__init__()
        self.prior, self.burn_in, self.lr, self.decay, self.steps, self.batch_size = (
            prior,
            burn_in,
            lr,
            decay,
            steps,
            batch_size,
        )
        features = 2 * len(half_lives) + 4
        self.net = mlp([features, *hidden, 3], activation, 0.01)
        self.register_buffer("keep", 0.5 ** (1 / torch.tensor(half_lives)))
        self.register_buffer("average", torch.ones(2))
        self.standardize = Standardizer(features, MIN_STD)

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def start(self, households: int) -> Past:
        """Return an empty past of households, who count as average."""
        zeros = torch.zeros(households, device=self.keep.device)
        recent, active = ((zeros + x)[:, None].expand(-1, len(self.keep)) for x in self.average)
        return Past(0, zeros, recent, active, zeros + self.average[0], zeros)

    def after(self, past: Past, trips: Tensor) -> Past:
        """Return the past with one more week of trips [H]."""
        bought = (trips > 0).float()
        recent, active = (
            self.keep * old + (1 - self.keep) * new[:, None]
            for old, new in ((past.recent, trips), (past.active, bought))
        )
        return Past(
            past.weeks + 1, past.total + trips, recent, active, trips, torch.where(trips > 0, 0.0, past.since + 1)
        )

    def remember(self, trips: Tensor) -> list[Past]:
        """Go through weeks of trips [H, W]; return the past before each week and after the last, W + 1."""
        pasts = [self.start(len(trips))]
        for week in trips.T:
            pasts.append(self.after(pasts[-1], week))
        return pasts

    def follow(self, trips: Tensor) -> Past:
        """Return the past after weeks of trips [H, W]."""
        return self.remember(trips)[-1]

    def rate(self, past: Past) -> Tensor:
        """Trips a week [H], shrunk to the average."""
        return (past.total + self.prior * self.average[0]) / (past.weeks + self.prior)

    def features(self, past: Past) -> Tensor:
        """The network's inputs, [H, F]."""
        columns = (
            (past.recent + SMALL).log(),
            past.active,
            torch.stack(
                (
                    (self.rate(past) + SMALL).log(),
                    past.last.log1p(),
                    past.since.log1p(),
                    (past.since == past.weeks).float(),
                ),
                1,
            ),
        )
        return torch.cat(columns, 1)

    # ── distribution ────────────────────────────────────────────────────────────────────────────────────────────────
    def outputs(self, features: Tensor, rate: Tensor) -> Weekly:
        """The week's distribution, given features [..., F] and shrunk rates [...]."""
        by, shape, idle = self.net(self.standardize(features)).unbind(-1)
        return Weekly(rate * by.clamp(-5, 5).exp(), (shape + 1).clamp(-5, 7).exp(), idle - 2)

    def forward(self, past: Past) -> Weekly:
        return self.outputs(self.features(past), self.rate(past))

    def fit(self, trips: Tensor, generator: torch.Generator) -> Organic:
        """Fit to weeks of trips [H, W], by maximum likelihood; raise ValueError without weeks after `burn_in`."""
        check_burn_in("organic", self.burn_in, trips)
        trips = trips.float()
        self.average = torch.stack((trips.mean(), (trips > 0).float().mean()))
        pasts = self.remember(trips)[self.burn_in : -1]
        x, rate, y = (
            torch.cat([self.features(p) for p in pasts]),
            torch.cat([self.rate(p) for p in pasts]),
            (trips[:, self.burn_in :].T.reshape(-1)),
        )
        self.standardize.fit(x)

        def loss() -> Tensor:
            rows = torch.randint(len(y), (self.batch_size,), generator=generator, device=y.device)
            return -self.outputs(x[rows], rate[rows]).log_prob(y[rows]).mean()

        fit_sgd(self.net.parameters(), loss, self.lr, self.decay, self.steps)
        return self

    @torch.no_grad()
    def log_prob(self, past: Past, trips: Tensor) -> Tensor:
        """Log-probability of each week's trips [H, W], given all weeks before; the sum is that of the season."""
        parts = []
        for week in trips.float().T:
            parts.append(self(past).log_prob(week))
            past = self.after(past, week)
        return torch.stack(parts, 1)

    @torch.no_grad()
    def bought_log_prob(self, past: Past, trips: Tensor) -> Tensor:
        """Log-probability of a trip or none in each week [H, W], whichever it was, given all weeks before."""
        parts = []
        for week in trips.float().T:
            none = self(past).log_prob(torch.zeros_like(week))
            parts.append(torch.where(week > 0, none.expm1().neg().log(), none))
            past = self.after(past, week)
        return torch.stack(parts, 1)

    @torch.no_grad()
    def simulate(self, past: Past, weeks: int, generator: torch.Generator) -> Tensor:
        """Draw future weeks, [H, weeks]."""
        drawn = []
        for _ in range(weeks):
            drawn.append(self(past).sample(generator))
            past = self.after(past, drawn[-1])
        return torch.stack(drawn, 1)
