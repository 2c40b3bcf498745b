"""Organic weeks of the offers world: the structural twin's filter of habit and churn, fitted to households.

Nobody is contacted, so fatigue and discount expectation stay 0, and a household is in one of six habits or churned
(envs/offers/README.md §2). The world's week is a purchase or none; how many trips a week with a purchase has is a
model of its own (scripts/benchmarks/forecasting/extra_trips.py). log P(trips) is the sum of both.
"""

from __future__ import annotations

from copy import copy
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.populations.base import LOGARITHMIC
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, PanelWeek
from envs.offers.twin.hidden_states.random_effects import hermite_nodes
from envs.offers.twin.structural_model import POSITIVE, SHARES
from envs.offers.world.customers import (
    CHURNED,
    FATIGUES,
    HABITS,
    SUBSCRIBED,
    UNIFORMS,
    Customers,
    CustomerState,
    World,
)
from envs.offers.world.filtering import CHUNK, NUM_MARGINALS
from envs.offers.world.history import SeenWeek
from envs.offers.world.transition import transition
from scripts.benchmarks.forecasting.extra_trips import ExtraPast, ExtraTrips
from scripts.benchmarks.forecasting.trip_model import check_burn_in

MIN_GAIN = 1e-8  # least gain of the log-likelihood a household-week that L-BFGS goes on for


def organic_week(bought: Tensor) -> PanelWeek:
    """Return a week in which nobody was contacted, and who `bought`, bool [N]."""
    no = torch.zeros_like(bought)
    nothing = no.long()
    return PanelWeek(nothing, SeenWeek(nothing, nothing, bought, no, no, no.float()), no)


def to_line(name: str, value: Tensor) -> Tensor:
    """Map a parameter's range to the line; shares are from 0 to 1, and positive or lognormal parameters above 0."""
    return value.logit() if name in SHARES else value.log() if name in (*POSITIVE, *LOGARITHMIC) else value


def from_line(name: str, value: Tensor) -> Tensor:
    """Invert `to_line`."""
    return value.sigmoid() if name in SHARES else value.exp() if name in (*POSITIVE, *LOGARITHMIC) else value


class HouseholdPast(NamedTuple):
    """What the past weeks of H households say of them."""

    filter: MixtureFilter  # P(habit or churned, α | past); log_prob and simulate work on a copy
    extra: ExtraPast


class HabitFilter:
    """The world's organic weeks of households that differ in their base utility α alone.

    α is normal, integrated over `nodes` Gauss–Hermite nodes; the filter tells a household's α and habit from its own
    past weeks. `parameters` are θ at the start of the fit, by name, which L-BFGS moves in at most `iterations`;
    `alpha_sd` is the sd of α there. The habit's distribution before the first week is fitted too. All other parameters
    play no part in weeks without a contact. `burn_in` weeks have no likelihood in the fit, but later weeks are
    predicted from them. `world` has the calendar.
    """

    def __init__(
        self,
        world: World,
        *,
        parameters: dict,
        alpha_sd: float,
        nodes: int,
        burn_in: int,
        iterations: int,
        extra: ExtraTrips,
    ):
        if unknown := set(parameters) - {f.name for f in fields(Customers) if f.name != "omega"}:
            raise ValueError(f"habit_filter.parameters: no such parameter: {', '.join(sorted(unknown))}")
        self.world, self.nodes, self.burn_in, self.iterations, self.extra = world, nodes, burn_in, iterations, extra
        at = {name: to_line(name, torch.tensor(value, dtype=torch.float64)) for name, value in parameters.items()}
        self.line = {
            **at,
            "alpha_sd": torch.tensor(alpha_sd, dtype=torch.float64).log(),
            "habit": torch.zeros(HABITS, dtype=torch.float64),
        }

    def to(self, device: torch.device) -> HabitFilter:
        """Move to a device."""
        self.world = self.world.to(device, torch.float32)
        self.line = {name: x.to(device) for name, x in self.line.items()}
        return self

    def fitted_parameters(self) -> dict:
        """Return the fitted θ, the sd of α, and the habit before the first week."""
        theta = {name: from_line(name, x).item() for name, x in self.line.items() if name not in ("alpha_sd", "habit")}
        return {
            **theta,
            "alpha_sd": self.line["alpha_sd"].exp().item(),
            "habit": self.line["habit"].softmax(0).tolist(),
        }

    # ── likelihood ──────────────────────────────────────────────────────────────────────────────────────────────────
    def customers(self, n: int) -> Customers:
        """Return n customers of the mean α."""
        like = self.world.season
        theta = {f.name: like.new_zeros(n) for f in fields(Customers)}
        theta["omega"] = like.new_zeros(len(self.world.catalogue.channels), n)
        given = {k: from_line(k, x).to(like).expand(n) for k, x in self.line.items() if k in theta}
        return Customers(**{**theta, **given})

    def begin(self, n: int) -> MixtureFilter:
        """Return the filter of n households before their first week."""
        start = self.world.season.new_zeros(NUM_MARGINALS + 1)
        start[[HABITS, HABITS + FATIGUES]] = 1.0  # fatigue 0, expectation 0
        start = torch.cat((self.line["habit"].softmax(0).to(start), start[HABITS:]))
        nobody = torch.zeros(n, dtype=torch.bool, device=start.device)
        at, weight = (x.to(start) for x in hermite_nodes(self.nodes))
        customers = self.customers(self.nodes * n)
        shift = (at * self.line["alpha_sd"].exp()).repeat_interleave(n)
        customers = replace(customers, alpha=customers.alpha + shift)
        return MixtureFilter(customers, self.world, start, nobody, weight.log())

    def fit(self, trips: Tensor, generator: torch.Generator) -> HabitFilter:
        """Fit to weeks of trips [H, W] by maximum likelihood; raise ValueError without weeks after `burn_in`.

        Nothing is drawn from `generator`.
        """
        check_burn_in("habit_filter", self.burn_in, trips)
        self.extra.fit(trips, self.burn_in)
        parts = (trips > 0).split(max(CHUNK // self.nodes, 1))
        counted = trips[:, self.burn_in :].numel()
        free = [x.requires_grad_() for x in self.line.values()]
        optimizer = torch.optim.LBFGS(
            free, max_iter=self.iterations, tolerance_change=MIN_GAIN, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64, device=trips.device)
            for bought in parts:
                mixture = self.begin(len(bought))
                weeks = torch.stack([mixture.observe(organic_week(week)) for week in bought.T])
                part = -weeks[self.burn_in :].sum(dtype=torch.float64) / counted
                part.backward()
                total += part.detach()
            return total

        optimizer.step(loss)
        self.line = {name: x.detach() for name, x in self.line.items()}
        return self

    # ── forecasts ───────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def follow(self, trips: Tensor) -> HouseholdPast:
        """Return the past after weeks of trips [H, W]."""
        mixture = self.begin(len(trips))
        for week in trips.T:
            mixture.observe(organic_week(week > 0))
        return HouseholdPast(mixture, self.extra.remember(trips)[-1])

    @torch.no_grad()
    def bought_log_prob(self, past: HouseholdPast, trips: Tensor) -> Tensor:
        """Return the log-probability of each week's purchase or none [H, W], given all weeks before."""
        mixture = copy(past.filter)
        return torch.stack([mixture.observe(organic_week(week > 0)) for week in trips.T], 1)

    @torch.no_grad()
    def log_prob(self, past: HouseholdPast, trips: Tensor) -> Tensor:
        """Return the log-probability of each week's trips [H, W], given all weeks before; float64."""
        found, extra = [], past.extra
        for week in trips.T:
            found.append(torch.where(week > 0, self.extra.log_prob(extra, week), 0.0))
            extra = self.extra.after(extra, week)
        return self.bought_log_prob(past, trips) + torch.stack(found, 1)

    @torch.no_grad()
    def simulate(self, past: HouseholdPast, weeks: int, generator: torch.Generator) -> Tensor:
        """Draw future weeks [H, weeks]: α and the state from what is believed, then the world's own transitions."""
        (mixture, extra), drawn = past, []
        n = len(extra.total)
        node = torch.multinomial(mixture.log_weight.exp().T, 1, generator=generator)[:, 0]
        column = node * n + torch.arange(n, device=node.device)
        believed = torch.cat((mixture.belief.subscribed.sum((1, 2)), mixture.belief.churned[None]))[:, column]
        level = torch.multinomial(believed.T, 1, generator=generator)[:, 0]
        nothing, gone = torch.zeros_like(level), level == HABITS
        state = CustomerState(torch.where(gone, 0, level), nothing, nothing, torch.where(gone, CHURNED, SUBSCRIBED))
        customers = mixture.customers[column]
        for _ in range(weeks):
            u = torch.rand(UNIFORMS, n, generator=generator, device=node.device)
            state, bought, _, _ = transition(customers, self.world, 0, state, nothing, nothing, u)
            drawn.append(torch.where(bought, self.extra.sample(extra, generator), 0.0))
            extra = self.extra.after(extra, drawn[-1])
        return torch.stack(drawn, 1)
