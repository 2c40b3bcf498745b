"""A neural twin's predictions of a panel, with the interface of envs/offers/twin/predictions.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.neural_twin.customers import NeuralCustomers, NeuralMember
from envs.offers.neural_twin.response_models import OutcomeRows, other_outcomes_log_prob, response_log_prob
from envs.offers.twin.predictions import ContactEffect, OutcomePrediction
from envs.offers.world.catalogue import ActionCodec
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, UNSUBSCRIBED, World
from envs.offers.world.history import History
from rlcore.ope.outcome_models import CHUNK


def outcome_rows(panel: Panel, week: Tensor, customer: Tensor, codec: ActionCodec) -> OutcomeRows:
    """Take the decisions and outcomes of customers [B] of a panel in weeks [B]."""
    at = (week, customer)
    status, next_status = panel.state.status[at], panel.next_state.status[at]
    offer, channel = torch.where(status == SUBSCRIBED, panel.offer[at], 0), panel.channel[at]
    return OutcomeRows(
        treatment=codec.treatment(codec.encode(offer, channel)),
        channel=channel,
        contacted=offer > 0,
        bought=panel.bought[at],
        redeemed=panel.redeemed[at],
        churned=next_status == CHURNED,
        opted_out=next_status == UNSUBSCRIBED,
        margin=panel.margin[at],
    )


class RowPredictions(NamedTuple):
    """A member's predictions of B weeks of customers who have not churned."""

    trip: Tensor  # P(trip) under the treatment taken, [B]
    redeem: Tensor  # P(trip and redeemed) under the treatment taken, [B]
    trip_no_contact: Tensor  # P(trip) without a contact, [B]
    trip_contact: Tensor  # P(trip) under a contact, mean over all contacts, [B]
    contact_cost: Tensor  # expected spend of a contact, mean over all contacts, [B]
    churn: Tensor  # P(churn) without and with a trip, [B, 2]
    opt_out: Tensor  # P(opt-out) by channel, [B, C]
    margin: Tensor  # of a trip, [B]


class NeuralPredictions:
    """PanelPredictions (envs/offers/twin/predictions.py) of one member, for a panel with the networks' inputs."""

    def __init__(self, member: NeuralMember, world: World, panel: Panel, half_lives: list[float]):
        self.member, self.world, self.panel, self.half_lives = member, world, panel, half_lives
        week, customer = panel.active.nonzero().unbind(1)
        self.at = (week, customer)  # B each
        self.rows = outcome_rows(panel, week, customer, world.catalogue.action_codec)

    @torch.no_grad()
    def predict_rows(self) -> RowPredictions:
        """Return the member's predictions of all weeks of customers who have not churned."""
        catalogue = self.world.catalogue
        codec = catalogue.action_codec
        offer, channel = codec.decode(codec.every_action(self.at[0].device)[codec.contacts])
        chunks = []
        assert self.panel.inputs is not None  # NeuralTwin.to_panel lays them out
        all_inputs = self.panel.inputs[:, self.at[0], self.at[1]].T
        for inputs, treatment in zip(all_inputs.split(CHUNK), self.rows.treatment.split(CHUNK)):
            predicted = self.member(inputs)
            taken = treatment[:, None]
            spend = catalogue.spend(offer, channel, predicted.redeem[:, 1:])
            chunks.append(
                RowPredictions(
                    trip=predicted.trip.gather(1, taken)[:, 0],
                    redeem=predicted.redeem.gather(1, taken)[:, 0],
                    trip_no_contact=predicted.trip[:, 0],
                    trip_contact=predicted.trip[:, 1:].mean(1),
                    contact_cost=spend.mean(1),
                    churn=predicted.churn,
                    opt_out=predicted.opt_out,
                    margin=predicted.margin,
                )
            )
        return RowPredictions(*(torch.cat(x) for x in zip(*chunks)))

    def on_panel(self, x: Tensor) -> Tensor:
        """Lay values [B] out on the panel, [T, N], 0 elsewhere."""
        return x.new_zeros(self.panel.logged.shape).index_put(self.at, x)

    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood by kind of outcome, [T, N] each."""
        predicted, rows = self.predict_rows(), self.rows
        outcome = torch.stack((rows.bought, rows.redeemed), 1)
        response = response_log_prob(torch.stack((predicted.trip, predicted.redeem), 1), outcome)
        others = other_outcomes_log_prob((predicted.churn, predicted.opt_out, predicted.margin), rows)
        return {name: self.on_panel(x) for name, x in {"response": response, **others}.items()}

    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""
        predicted, rows = self.predict_rows(), self.rows
        p_churn = predicted.churn[:, 0] + predicted.trip * (predicted.churn[:, 1] - predicted.churn[:, 0])
        p_opt_out = (1 - p_churn) * predicted.opt_out.gather(1, rows.channel[:, None])[:, 0]
        active, contacted = self.on_panel(torch.ones_like(rows.bought)), self.on_panel(rows.contacted)

        def prediction(p: Tensor, happened: Tensor, known: Tensor) -> OutcomePrediction:
            return OutcomePrediction(self.on_panel(p), self.on_panel(happened), known)

        return {
            "trips": prediction(predicted.trip, rows.bought, active),
            "redeemed": prediction(predicted.redeem, rows.redeemed, contacted),
            "opt_out": prediction(p_opt_out, rows.opted_out, contacted),
            "churn": prediction(p_churn, rows.churned, active),
        }

    def contact_effect(self) -> ContactEffect:
        """Return the effect of a contact on the probability of a trip."""
        predicted = self.predict_rows()
        return ContactEffect(
            uplift=self.on_panel(predicted.trip_contact - predicted.trip_no_contact),
            no_contact=self.on_panel(predicted.trip_no_contact),
            cost=self.on_panel(predicted.contact_cost),
        )

    @torch.no_grad()
    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend by week, [3, T]; the history is simulated."""
        panel, world, totals = self.panel, self.world, []
        customers = NeuralCustomers(
            [self.member], torch.zeros_like(panel.customer), panel.features.T, world, self.half_lives
        )
        history = History.start(panel.state.status[0], world.season.dtype)
        for t in range(len(panel.week)):
            u = torch.rand(UNIFORMS, len(panel), generator=generator, device=panel.features.device)
            active, channel = panel.active[t], panel.channel[t]
            week = customers.simulate_week(
                history, t, torch.where(active, panel.offer[t], 0), channel, u, draws_churn=False
            )
            totals.append(torch.stack([(x * active).sum() for x in (week.trip, week.trip * week.margin, week.spend)]))
            drawn = t >= first_free_week
            bought, redeemed = (week.bought, week.redeemed) if drawn else (panel.bought[t], panel.redeemed[t])
            history = history.after(
                panel.next_state.status[t], world.catalogue, panel.offer[t], channel, bought, redeemed
            )
        return torch.stack(totals, 1)
