"""The posterior of customers' θ given features and what their lives have shown: weighted draws, resampled on collapse.

A draw's weight is the likelihood of the weeks so far under it, by the filter of the hidden state
(envs/offers/world/filtering.py), margins of purchases included. Draws are resampled where few keep the weight, and
moved by the kernel of Liu & West (2001), which keeps mean and covariance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.populations.base import Sample, theta_from_matrix, theta_to_matrix
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.world.customers import Customers, World
from envs.offers.world.filtering import CHUNK, Belief
from envs.offers.world.history import SeenWeek
from envs.offers.world.life_likelihood import margin_log_likelihood, observe_week


def prior_draws(sample: Sample, features: Tensor, draws: int, generator: torch.Generator, *, ridge: float) -> Tensor:
    """Draw θ given features [N, F], [K, N, P] (`theta_to_matrix`): regression on a sample, plus its residuals.

    The residuals of one customer of the sample stay together, so that their correlations are kept.
    """
    regression = ParameterRegression(sample, ridge=ridge)
    predicted = regression.matrix(features)
    residual = theta_to_matrix(sample.customers) - regression.matrix(sample.features)
    row = torch.randint(len(residual), (draws, len(features)), generator=generator, device=features.device)
    return (predicted + residual[row]).clamp(regression.low, regression.high)


class PosteriorWeek(NamedTuple):
    """A week of N customers."""

    seen: SeenWeek
    joined: Tensor  # bool [N]: present now or in an earlier week
    missed: Tensor  # bool [N]: joined, but not present now

    def take(self, rows) -> PosteriorWeek:
        """Take some of the customers."""
        return PosteriorWeek(self.seen.take(rows), self.joined[rows], self.missed[rows])


class ThetaPosterior:
    """K draws of θ for each of N customers of a world, and their weights after the weeks seen so far.

    `theta` [K, N, P] are draws of the prior, `start` [14] the marginals of the state when a customer joins.
    `margin_shape` is the shape of the Gamma distribution of what a purchase brings, whose mean is g: 1 stands for
    purchases as varied as exponential ones, more for more alike. A customer's draws are resampled where their
    effective number falls below a share `resample_below` of K. `kernel` in [0, 1) is the spread of the kernel that
    moves resampled draws, as a share of the posterior's.
    """

    def __init__(
        self,
        theta: Tensor,
        world: World,
        start: Tensor,
        *,
        margin_shape: float,
        resample_below: float,
        kernel: float,
    ):
        self.theta, self.world, self.start = theta, world, start
        self.margin_shape, self.resample_below, self.kernel = margin_shape, resample_below, kernel
        self.low, self.high = theta.amin((0, 1)), theta.amax((0, 1))
        self.log_weight = theta.new_full(theta.shape[:2], -math.log(len(theta)))
        self.weeks: list[PosteriorWeek] = []
        self.joined = torch.zeros(theta.shape[1], dtype=torch.bool, device=theta.device)
        self.belief = self._filtered(theta, [])

    # ── what is known ───────────────────────────────────────────────────────────────────────────────────────────────
    @property
    def weight(self) -> Tensor:
        """Weights of the draws, [K, N], which sum to 1 for each customer."""
        return self.log_weight.exp()

    @property
    def effective_size(self) -> Tensor:
        """Effective number of draws, 1 / Σ w², [N]."""
        return 1 / self.weight.square().sum(0)

    def mean(self) -> Customers:
        """Return the posterior mean of each customer's θ (of log θ where the prior is lognormal)."""
        return theta_from_matrix((self.weight[..., None] * self.theta).sum(0))

    def state(self) -> Belief:
        """Return P(state | what was seen) of the N customers, over all draws."""
        k, n = self.theta.shape[:2]
        return Belief(*((x.unflatten(-1, (k, n)) * self.weight).sum(-2) for x in self.belief))

    # ── a week ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def observe(self, seen: SeenWeek, generator: torch.Generator, *, present: Tensor | None = None) -> None:
        """Take in the next week, through the seasons; resample where the weights have collapsed.

        `present`, bool [N], says whom the log has in this week; None: all. Nothing happens to a customer before the
        first such week; in a later week that the log lacks the state moves on, and nothing is learned.
        """
        draws = len(self.theta)
        present = torch.ones_like(self.joined) if present is None else present
        self.joined = self.joined | present
        week = PosteriorWeek(seen, self.joined, self.joined & ~present)
        self.belief, log_probability = self._filter(self.theta, self.belief, len(self.weeks), week)
        self.log_weight = (self.log_weight + log_probability).log_softmax(0)
        self.weeks.append(week)
        collapsed = (self.effective_size < self.resample_below * draws).nonzero()[:, 0]
        if len(collapsed):
            self._resample(collapsed, generator)

    def _resample(self, rows: Tensor, generator: torch.Generator) -> None:
        """Draw anew from the weighted draws of some customers, and filter their weeks again under the new draws."""
        draws, n = self.log_weight.shape
        theta, weight = self.theta[:, rows], self.weight[:, rows]
        mean = (weight[..., None] * theta).sum(0)
        first, second = (theta.gather(0, chosen(weight, generator)[..., None].expand_as(theta)) for _ in range(2))
        # Two independent draws, mixed by a and h with a² + h² = 1, keep mean and covariance.
        moved = mean + (1 - self.kernel**2) ** 0.5 * (first - mean) + self.kernel * (second - mean)
        moved = moved.clamp(self.low, self.high)
        belief = self._filtered(moved, [week.take(rows) for week in self.weeks])
        self.theta, self.log_weight = self.theta.clone(), self.log_weight.clone()
        self.theta[:, rows] = moved
        self.log_weight[:, rows] = -math.log(draws)
        for whole, part in zip(self.belief, belief):
            whole.unflatten(-1, (draws, n))[..., rows] = part.unflatten(-1, (draws, len(rows)))

    # ── the filter of all draws ─────────────────────────────────────────────────────────────────────────────────────
    def _filtered(self, theta: Tensor, weeks: list[PosteriorWeek]) -> Belief:
        """Filter weeks from the first under draws [K, n, P]."""
        k, n = theta.shape[:2]
        marginals = self.start.to(theta)[:, None].expand(-1, k * n)
        belief = Belief.from_marginals(marginals, torch.zeros(k * n, dtype=torch.bool, device=theta.device))
        for number, week in enumerate(weeks):
            belief, _ = self._filter(theta, belief, number, week)
        return belief

    def _filter(self, theta: Tensor, belief: Belief, number: int, week: PosteriorWeek) -> tuple[Belief, Tensor]:
        """Filter a week under draws [K, n, P]; return the belief and the log-probability of the week, [K, n]."""
        k, n = theta.shape[:2]
        customers = self.world.inhabit(theta_from_matrix(theta.flatten(0, 1)))
        of_draws = PosteriorWeek(
            SeenWeek(*(x.repeat(k) for x in week.seen)), week.joined.repeat(k), week.missed.repeat(k)
        )
        beliefs, log_probability = [], []
        for first in range(0, k * n, CHUNK):
            rows = slice(first, first + CHUNK)
            some, before, (seen, joined, missed) = customers[rows], belief.take(rows), of_draws.take(rows)
            after, log_p = observe_week(some, self.world, number, before, seen, missed)
            beliefs.append(Belief(*(torch.where(joined, x, y) for x, y in zip(after, before))))
            log_p = log_p + torch.where(missed, 0.0, self.margin_shape * margin_log_likelihood(some, seen))
            log_probability.append(torch.where(joined, log_p, 0.0))
        whole = Belief(*(torch.cat(x, -1) for x in zip(*beliefs)))
        return whole, torch.cat(log_probability).view(k, n).to(theta)


def chosen(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Choose K draws with replacement by weights [K, N], systematically and in random order, int64 [K, N]."""
    draws, n = weight.shape
    u = torch.rand(1, n, generator=generator, device=weight.device, dtype=weight.dtype)
    place = (torch.arange(draws, device=weight.device)[:, None] + u) / draws
    index = torch.searchsorted(weight.cumsum(0).T.contiguous(), place.T.contiguous()).clamp_max(draws - 1).T
    order = torch.rand(draws, n, generator=generator, device=weight.device).argsort(0)
    return index.gather(0, order)
