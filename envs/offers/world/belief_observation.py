"""Write and read observations whose hidden state is replaced by its filtered distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, CustomerState, one_hot
from envs.offers.world.filtering import CHUNK, NUM_MARGINALS, Belief, filter_week
from envs.offers.world.hidden_observation import HidingCodec
from envs.offers.world.history import PassedWeek
from envs.offers.world.observation import DYNAMICS, ViewSetting

if TYPE_CHECKING:
    from envs.offers.populations.base import Sample


class ThetaEstimate(Protocol):
    """An estimate of customers' parameters from their features."""

    learned_from: str  #: what the estimate was fitted to, in words of a table

    def __call__(self, features: Tensor) -> Customers:
        """Estimate the parameters of customers with features [N, F]."""

    def state_dict(self) -> dict:
        """Return what was fitted."""

    def load_state_dict(self, state: dict) -> None:
        """Restore what was fitted."""


def start_marginals(state: CustomerState) -> Tensor:
    """Return the shares of levels among customers at the start of a season, and 0 for churned, [14]."""
    levels = (HABITS, FATIGUES, EXPECTATIONS)
    shares = [torch.bincount(x, minlength=n).double() / len(x) for x, n in zip(state, levels)]
    return torch.cat((*shares, torch.zeros_like(shares[0][:1])))


class BeliefCodec(HidingCodec):
    """A HidingCodec with the filtered distribution of the hidden state, under estimated parameters θ̂ of each customer.

    The columns are the marginals P(habit), P(fatigue), P(expectation), given that the customer did not churn, and
    P(churned). They are also the memory: each week the belief that they make as independent marginals is filtered by
    what was seen (envs/offers/world/filtering.py). `theta` is called with a sample of `reference_size` customers, drawn
    by `reference_seed`, and estimates θ from features; the states of the same sample are the belief at the start.
    Without a population, θ̂ and the belief at the start are those of `load_state_dict`.
    """

    shows = ("beliefs", "counts")
    uses_equations = True  # the filter's
    num_writable = FATIGUES * EXPECTATIONS  # habit stays: a belief about habit comes from purchases
    own_outlives_seasons = True  # a distribution stays one, however many weeks it was filtered by

    def __init__(
        self,
        setting: ViewSetting,
        *,
        theta: Callable[[Sample | None], ThetaEstimate],
        reference_size: int,
        reference_seed: int,
        count_scale: float,
    ):
        super().__init__(setting, count_scale=count_scale)
        self.world = setting.world
        if setting.population is None:
            self.theta, self.start = theta(None), torch.zeros(NUM_MARGINALS + 1, dtype=torch.float64)
            return
        generator = torch.Generator(self.world.season.device).manual_seed(reference_seed)
        sample = setting.population.draw(reference_size, generator, "train")
        self.theta, self.start = theta(sample), start_marginals(sample.state)

    @property
    def learned_from(self) -> tuple[str, ...]:
        """What θ̂ was fitted to, in words."""
        return (self.theta.learned_from,)

    @property
    def own_names(self) -> list[str]:
        """Names of the columns of the belief."""
        return [
            *(f"P({name} {level})" for name, levels in DYNAMICS.items() for level in range(levels)),
            "P(churned)",
        ]

    def start_own(self, features: Tensor) -> Tensor:
        """Return the marginals at the start of a season, [N, 14]."""
        return self.start.to(features).expand(len(features), -1)

    @torch.no_grad()
    def remember_own(self, own: Tensor, features: Tensor, passed: PassedWeek, opted_out: Tensor) -> Tensor:
        """Return the marginals [N, 14] after a week."""
        customers = self.world.inhabit(self.theta(features))
        found = []
        for first in range(0, len(own), CHUNK):
            rows = slice(first, first + CHUNK)
            belief = Belief.from_marginals(own[rows].T.to(customers.alpha), opted_out[rows] > 0)
            belief, _ = filter_week(customers[rows], self.world, passed.number, belief, passed.seen.take(rows))
            found.append(belief.marginals().T)
        return torch.cat(found).to(own)

    def with_dynamics(self, obs: Tensor, state: CustomerState) -> Tensor:
        """Return observations [B, D] that show fatigue and expectation of other states as known; the rest stays."""
        obs = obs.clone()
        first = self.dynamics.start
        known = torch.cat((one_hot(state.fatigue, FATIGUES), one_hot(state.expectation, EXPECTATIONS)), -1)
        obs[:, first + HABITS : first + NUM_MARGINALS] = known.to(obs)
        return obs

    def own_without_contacts(self, columns: Tensor) -> Tensor:
        """Return the marginals as if nothing had been sent or redeemed: neither fatigue nor expectation."""
        rested = columns.clone()
        rested[:, HABITS:NUM_MARGINALS] = 0.0
        rested[:, [HABITS, HABITS + FATIGUES]] = 1.0
        return rested

    def state_dict(self) -> dict:
        """Return what was fitted to the population: θ̂ and the belief at the start."""
        return {"theta": self.theta.state_dict(), "start": self.start}

    def load_state_dict(self, state: dict) -> None:
        """Use what was fitted when a policy was trained."""
        self.theta.load_state_dict(state["theta"])
        self.start = state["start"].to(self.start)
