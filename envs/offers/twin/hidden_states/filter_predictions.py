"""A structural twin's predictions of a panel whose states nobody saw: each week from the weeks before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.hidden_states.mixture_filter import MixtureFilter, opted_out_before, seen_weeks
from envs.offers.twin.predictions import ContactEffect, OutcomePrediction
from envs.offers.world.customers import UNSUBSCRIBED, Customers, World
from envs.offers.world.filtering import CHUNK, margin_log_likelihood
from envs.offers.world.history import SeenWeek


class FilterPredictions:
    """PanelPredictions (envs/offers/twin/predictions.py) of a panel whose customers have the parameters `customers`.

    `alpha_sd` [] is the sd of α about its place in `customers`, integrated over `nodes` nodes, and `start` [14] are the
    marginals of the state at the start of a season.
    """

    def __init__(
        self, customers: Customers, world: World, panel: Panel, *, start: Tensor, alpha_sd: Tensor, nodes: int
    ):
        self.customers, self.world, self.panel = customers, world, panel
        self.start, self.alpha_sd, self.nodes = start, alpha_sd, nodes

    def _chunks(self) -> Iterator[tuple[slice, MixtureFilter]]:
        """Yield chunks of customers, and the filter of each at the start of a season."""
        size = max(CHUNK // self.nodes, 1)
        for first in range(0, len(self.panel), size):
            rows = slice(first, first + size)
            opted_out = opted_out_before(self.panel)[rows]
            yield (
                rows,
                MixtureFilter(self.customers[rows], self.world, self.start, opted_out, self.alpha_sd, self.nodes),
            )

    @torch.no_grad()
    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood of what was seen of each week given the weeks before it, and of margins, [T, N]."""
        weeks = seen_weeks(self.panel)
        response = torch.cat(
            [
                torch.stack([mixture.observe(t, week.take(rows)) for t, week in enumerate(weeks)])
                for rows, mixture in self._chunks()
            ],
            1,
        )
        margin = torch.stack([margin_log_likelihood(self.customers, week) for week in weeks])
        logged = self.panel.logged
        return {"response": torch.where(logged, response, 0.0), "margin": torch.where(logged, margin, 0.0)}

    @torch.no_grad()
    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""
        weeks, panel = seen_weeks(self.panel), self.panel
        parts = []
        for rows, mixture in self._chunks():
            predicted = []
            for t, week in enumerate(weeks):
                some = week.take(rows)
                predicted.append(torch.stack(mixture.predict(t, some.offer, some.channel)))
                mixture.observe(t, some)
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
            for t, week in enumerate(x.take(rows) for x in seen_weeks(self.panel)):
                nothing = torch.zeros_like(week.offer)
                alone = mixture.predict(t, nothing, nothing).bought
                trip, cost = torch.zeros(2, *alone.shape, dtype=alone.dtype, device=alone.device)
                for offer, channel in contacts:
                    sent, through = torch.full_like(nothing, offer), torch.full_like(nothing, channel)
                    predicted = mixture.predict(t, sent, through)
                    trip += predicted.bought / len(contacts)
                    cost += catalogue.spend(sent, through, predicted.redeemed) / len(contacts)
                found.append(torch.stack((trip - alone, alone, cost)))
                mixture.observe(t, week)
            parts.append(torch.stack(found, 1))
        return ContactEffect(*torch.cat(parts, 2))

    @torch.no_grad()
    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend by week, [3, T]; from the first free week on purchases are drawn."""
        catalogue, totals = self.world.catalogue, torch.zeros(3, len(self.panel.week), device=generator.device)
        for rows, mixture in self._chunks():
            margin, logged = self.customers.margin[rows], self.panel.logged[:, rows]
            for t, week in enumerate(x.take(rows) for x in seen_weeks(self.panel)):
                predicted = mixture.predict(t, week.offer, week.channel)
                spend = catalogue.spend(week.offer, week.channel, predicted.redeemed)
                trips = predicted.bought * logged[t]
                totals[:, t] += torch.stack((trips.sum(), (trips * margin).sum(), (spend * logged[t]).sum()))
                mixture.observe(t, week if t < first_free_week else self._drawn(week, predicted, generator))
        return totals

    @staticmethod
    def _drawn(week: SeenWeek, predicted, generator: torch.Generator) -> SeenWeek:
        """Return a week in which purchases and redemptions are drawn, and contacts and opt-outs are as logged."""
        u = torch.rand(len(week.offer), generator=generator, device=generator.device)
        return week._replace(bought=u < predicted.bought, redeemed=u < predicted.redeemed)
