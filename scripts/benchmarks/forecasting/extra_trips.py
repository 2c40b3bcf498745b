"""Trips of a household in a week with a trip: one, and a negative binomial whose mean follows the household's past.

The mean is linear in what the household did before, an integer-valued GARCH model (Zhu 2011, of the negative binomial)
with the household's own level beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scripts.benchmarks.forecasting.trip_model import gamma_rate, negative_binomial_log_prob


class ExtraPast(NamedTuple):
    """Trips of H households beyond the first of a week, in their past weeks; [H] each."""

    weeks: Tensor  # with a trip
    total: Tensor  # extra trips in them
    recent: Tensor  # extra trips a week, of which a half-life forgets half


class ExtraTrips:
    """The distribution of a week's trips, given that there is one.

    The mean of the extra trips is a weighted sum, of weights that are not below 0, of a constant, of the household's
    extra trips in a week with a trip (shrunk by `prior` such weeks of the average household), and of its recent extra
    trips a week, of `half_life` weeks. The shape is a power of the mean, times a constant. Maximum likelihood, by at
    most `iterations` of L-BFGS.
    """

    def __init__(self, *, half_life: float, prior: float, iterations: int):
        self.keep, self.prior, self.iterations = 0.5 ** (1 / half_life), prior, iterations
        self.average = torch.ones(2)  #: extra trips of the average household, in a week with a trip and in any
        self.log_weights = torch.zeros(3, dtype=torch.float64)  #: of the constant, the level, the recent weeks
        self.shape = torch.zeros(2, dtype=torch.float64)  #: logarithm of the constant; power of the mean

    # ── past ────────────────────────────────────────────────────────────────────────────────────────────────────────
    def start(self, households: int) -> ExtraPast:
        """Return an empty past of households, who count as average."""
        zeros = self.average.new_zeros(households)
        return ExtraPast(zeros, zeros, zeros + self.average[1])

    def after(self, past: ExtraPast, trips: Tensor) -> ExtraPast:
        """Return the past with one more week of trips [H]."""
        bought, extra = (trips > 0).to(past.total), (trips - 1).clamp_min(0)
        recent = self.keep * past.recent + (1 - self.keep) * extra
        return ExtraPast(past.weeks + bought, past.total + extra, recent)

    def remember(self, trips: Tensor) -> list[ExtraPast]:
        """Go through weeks of trips [H, W]; return the past before each week and after the last, W + 1."""
        pasts = [self.start(len(trips))]
        for week in trips.T:
            pasts.append(self.after(pasts[-1], week))
        return pasts

    # ── distribution ────────────────────────────────────────────────────────────────────────────────────────────────
    def moments(self, past: ExtraPast) -> tuple[Tensor, Tensor]:
        """Return mean and shape of the extra trips in a week with a trip, float64 [H] each."""
        level = (past.total + self.prior * self.average[0]) / (past.weeks + self.prior)
        mean = torch.stack((torch.ones_like(level), level, past.recent), -1).double() @ self.log_weights.exp()
        return mean, (self.shape[0] + self.shape[1] * mean.log()).exp()

    def log_prob(self, past: ExtraPast, trips: Tensor) -> Tensor:
        """Return log P(trips | a trip), float64 [H]; −∞ of no trip."""
        found = negative_binomial_log_prob((trips - 1).clamp_min(0).double(), *self.moments(past))
        return torch.where(trips > 0, found, -torch.inf)

    def sample(self, past: ExtraPast, generator: torch.Generator) -> Tensor:
        """Draw trips of a week with a trip, [H]."""
        return 1 + torch.poisson(gamma_rate(*self.moments(past), generator), generator=generator).to(past.total)

    def fit(self, trips: Tensor, burn_in: int) -> ExtraTrips:
        """Fit to weeks of trips [H, W] from week `burn_in` on, by what was before each."""
        bought, extra = trips > 0, (trips - 1).clamp_min(0)
        self.average = torch.stack((extra.sum() / bought.sum().clamp_min(1), extra.mean()))
        weeks = zip(self.remember(trips)[burn_in:-1], trips.T[burn_in:])
        rows = [(*(x[week > 0] for x in past), week[week > 0]) for past, week in weeks]
        *columns, count = (torch.cat(x) for x in zip(*rows))
        past = ExtraPast(*columns)
        free = [x.to(trips.device).requires_grad_() for x in (self.log_weights, self.shape)]
        self.log_weights, self.shape = free
        optimizer = torch.optim.LBFGS(free, max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = -self.log_prob(past, count).mean()
            found.backward()
            return found

        optimizer.step(loss)
        self.log_weights, self.shape = (x.detach() for x in free)
        return self
