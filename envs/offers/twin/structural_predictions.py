"""A structural twin's predictions of a panel: the world's equations under the customers' fitted parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.likelihood import log_likelihood, predicted_probabilities
from envs.offers.twin.predictions import ContactEffect, OutcomePrediction
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, Customers, CustomerState, World
from envs.offers.world.response import outcome
from envs.offers.world.transition import transition


class StructuralPredictions:
    """PanelPredictions (envs/offers/twin/predictions.py) of a panel whose customers have the parameters `customers`."""

    def __init__(self, customers: Customers, world: World, panel: Panel):
        self.customers = customers
        self.world = world
        self.panel = panel

    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood by kind of outcome, [T, N] each."""
        return log_likelihood(self.customers, self.world, self.panel)

    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""
        return predicted_probabilities(self.customers, self.world, self.panel)

    def contact_effect(self) -> ContactEffect:
        """Return the effect of a contact on the probability of a trip."""
        c, world, panel = self.customers, self.world, self.panel
        h, f, d = (x.to(c.alpha.dtype) for x in panel.state[:3])
        offers, channels = world.catalogue.nvec

        def response(offer: int, channel: int):
            return outcome(
                c,
                world,
                panel.week,
                h,
                f,
                d,
                torch.full_like(panel.offer, offer),
                torch.full_like(panel.channel, channel),
            )

        no_contact = response(0, 0)
        contacts = [response(offer, channel) for offer in range(1, offers) for channel in range(channels)]
        trip = torch.stack([x.redeem + x.buy for x in contacts]).mean(0)
        cost = torch.stack([x.spend for x in contacts]).mean(0)
        return ContactEffect(uplift=trip - no_contact.buy, no_contact=no_contact.buy, cost=cost)

    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend by week, [3, T]; habit, fatigue and expectation are simulated."""
        c, world, panel = self.customers, self.world, self.panel
        state = CustomerState(*(x[0] for x in panel.state))  # in the first week nothing is simulated yet
        was_logged = torch.zeros_like(panel.logged[0])
        totals = []
        for t in range(world.weeks):
            in_week = panel.logged & (panel.week == t)
            logged, row = in_week.any(0), in_week.long().argmax(0)
            *known, offer, channel = (x.gather(0, row[None])[0] for x in (*panel.state, panel.offer, panel.channel))
            if t > first_free_week:
                known[:3] = (torch.where(was_logged, x, y) for x, y in zip(state[:3], known))
            state = CustomerState(*known)
            offer = torch.where(logged & (state.status == SUBSCRIBED), offer, 0)
            h, f, d = (x.to(c.alpha.dtype) for x in state[:3])
            response = outcome(c, world, t, h, f, d, offer, channel)
            active = logged & (state.status != CHURNED)
            trips = (response.redeem + response.buy) * active
            totals.append(torch.stack((trips.sum(), (trips * c.margin).sum(), (response.spend * active).sum())))
            u = torch.rand(UNIFORMS, len(c), generator=generator, device=h.device, dtype=h.dtype)
            u[4:] = 1.0  # nobody leaves: opt-outs and churn are as logged
            state, was_logged = transition(c, world, t, state, offer, channel, u)[0], logged
        return torch.stack(totals, 1)
