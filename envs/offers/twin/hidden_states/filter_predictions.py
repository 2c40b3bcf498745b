"""A structural twin's predictions of a panel whose states nobody saw: each week from the weeks before it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.populations.base import theta_from_matrix
from envs.offers.twin.hidden_states.filter_fit import FilterFit
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, PanelWeek, opted_out_before, panel_weeks
from envs.offers.twin.predictions import ContactEffect, OutcomePrediction
from envs.offers.world.customers import UNSUBSCRIBED, World
from envs.offers.world.filtering import Belief, Predicted
from envs.offers.world.life_likelihood import margin_log_likelihood


class FilterPredictions:
    """PanelPredictions (envs/offers/twin/predictions.py) of the lives of customers with the parameters θ [N, K].

    `effect_sd` [K] are the sds of the random effects by θ's columns; `method` integrates over these effects.
    """

    def __init__(self, theta: Tensor, effect_sd: Tensor, world: World, panel: Panel, method: FilterFit):
        self.theta, self.effect_sd, self.world, self.panel, self.method = theta, effect_sd, world, panel, method
        self.customers = world.inhabit(theta_from_matrix(theta))

    def _chunks(self) -> Iterator[tuple[slice, MixtureFilter]]:
        """Yield chunks of customers, and the filter of each before the first week."""
        opted_out, size = opted_out_before(self.panel), self.method.chunk
        for first in range(0, len(self.panel), size):
            rows = slice(first, first + size)
            yield rows, self.method.mixture(self.world, self.theta[rows], self.effect_sd, opted_out[rows])

    @torch.no_grad()
    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood of what was seen of each week given the weeks before it, and of margins, [T, N]."""
        weeks = panel_weeks(self.panel)
        response = torch.cat(
            [torch.stack([mixture.observe(week.take(rows)) for week in weeks]) for rows, mixture in self._chunks()], 1
        )
        margin = torch.stack([margin_log_likelihood(self.customers, week.seen) for week in weeks])
        logged = self.panel.logged
        return {"response": torch.where(logged, response, 0.0), "margin": torch.where(logged, margin, 0.0)}

    @torch.no_grad()
    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""
        weeks, panel = panel_weeks(self.panel), self.panel
        parts = []
        for rows, mixture in self._chunks():
            predicted = []
            for week in (x.take(rows) for x in weeks):
                predicted.append(torch.stack(mixture.predict(week.number, week.seen.offer, week.seen.channel)))
                mixture.observe(week)
            parts.append(torch.stack(predicted, 1))
        bought, redeemed, opted_out, _ = torch.cat(parts, 2)
        contacted = panel.subscribed & (panel.offer > 0)
        left = panel.next_state.status == UNSUBSCRIBED
        return {
            "trips": OutcomePrediction(bought, panel.bought, panel.logged),
            "redeemed": OutcomePrediction(redeemed, panel.redeemed, contacted),
            "opt_out": OutcomePrediction(opted_out, left, contacted),
        }

    @torch.no_grad()
    def contact_effect(self) -> ContactEffect:
        """Return the effect of a contact on the probability of a trip, by what was seen before the week."""
        catalogue = self.world.catalogue
        offers, channels = catalogue.nvec
        contacts = [(offer, channel) for offer in range(1, offers) for channel in range(channels)]
        parts = []
        for rows, mixture in self._chunks():
            found = []
            for week in (x.take(rows) for x in panel_weeks(self.panel)):
                nothing = torch.zeros_like(week.seen.offer)
                alone = mixture.predict(week.number, nothing, nothing).bought
                trip, cost = torch.zeros(2, *alone.shape, dtype=alone.dtype, device=alone.device)
                for offer, channel in contacts:
                    sent, through = torch.full_like(nothing, offer), torch.full_like(nothing, channel)
                    predicted = mixture.predict(week.number, sent, through)
                    trip += predicted.bought / len(contacts)
                    cost += catalogue.spend(sent, through, predicted.redeemed) / len(contacts)
                found.append(torch.stack((trip - alone, alone, cost)))
                mixture.observe(week)
            parts.append(torch.stack(found, 1))
        return ContactEffect(*torch.cat(parts, 2))

    @torch.no_grad()
    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend by week of the season, [3, T], over all seasons of the panel.

        From the first free week of a season on purchases are drawn; the next season begins with what was seen before.
        """
        world, totals = self.world, torch.zeros(3, self.world.weeks, device=generator.device)
        for rows, free in self._chunks():
            margin, logged = self.customers.margin[rows], self.panel.logged[:, rows]
            known = copy(free)
            for t, week in enumerate(x.take(rows) for x in panel_weeks(self.panel)):
                of_season = week.number % world.weeks
                is_free = of_season >= first_free_week
                follow(free, known, ~is_free)
                predicted = free.predict(week.number, week.seen.offer, week.seen.channel)
                spend = world.catalogue.spend(week.seen.offer, week.seen.channel, predicted.redeemed)
                trips = predicted.bought * logged[t]
                totals.index_add_(1, of_season, torch.stack((trips, trips * margin, spend * logged[t])).to(totals))
                known.observe(week)
                free.observe(drawn(week, predicted, is_free, generator) if is_free.any() else week)
        return totals


def follow(free: MixtureFilter, known: MixtureFilter, which: Tensor) -> None:
    """Give a filter what another one knows of the customers `which`, bool [N]."""
    of_nodes = which.repeat(free.nodes)
    free.belief = Belief(*(torch.where(of_nodes, x, y) for x, y in zip(known.belief, free.belief)))
    free.log_weight = torch.where(which, known.log_weight, free.log_weight)


def drawn(week: PanelWeek, predicted: Predicted, is_free: Tensor, generator: torch.Generator) -> PanelWeek:
    """Return a week in which purchases and redemptions are drawn where `is_free`, and the rest is as logged."""
    seen = week.seen
    u = torch.rand(len(is_free), generator=generator, device=generator.device)
    bought, redeemed = (
        torch.where(is_free, u < p, x)
        for p, x in ((predicted.bought, seen.bought), (predicted.redeemed, seen.redeemed))
    )
    return week._replace(seen=seen._replace(bought=bought, redeemed=redeemed))
