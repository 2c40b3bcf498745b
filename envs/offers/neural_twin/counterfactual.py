"""A season and its counterfactual: the same customers under the same random numbers, never contacted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.neural_twin.customers import NeuralCustomers, Week
from envs.offers.world.customers import CHURNED
from envs.offers.world.history import History


class CustomerTrack(NamedTuple):
    """The history of N customers and, where churn is not drawn, the probability [N] that each is still there."""

    history: History
    p_active: Tensor


class Counterfactual:
    """Simulates a season of NeuralCustomers and, under the same uniforms, the season in which nobody is contacted.

    Without a contact both seasons are equal to the last bit. With `realised`, churn is drawn and profits are realised.
    Otherwise profits are expectations, weighted by the probability that the customer is still there.
    """

    def __init__(self, customers: NeuralCustomers, status: Tensor, realised: bool):
        self.customers, self.realised = customers, realised
        season = customers.world.season
        self.track = CustomerTrack(History.start(status, season.dtype), season.new_ones(len(customers)))
        self.no_contact_track = self.track

    def simulate_week(self, week: int, offer: Tensor, channel: Tensor, u: Tensor) -> tuple[Week, Tensor, Tensor]:
        """Simulate a week by uniforms u [6, N]; return it, its profit and that without contacts, [N] each."""
        self.track, simulated, profit = self._advance(self.track, week, offer, channel, u)
        self.no_contact_track, _, no_contact_profit = self._advance(
            self.no_contact_track, week, torch.zeros_like(offer), channel, u
        )
        return simulated, profit, no_contact_profit

    def _advance(
        self, track: CustomerTrack, week: int, offer: Tensor, channel: Tensor, u: Tensor
    ) -> tuple[CustomerTrack, Week, Tensor]:
        customers, history = self.customers, track.history
        simulated = customers.simulate_week(history, week, offer, channel, u, draws_churn=self.realised)
        if self.realised:
            churned = (simulated.next_history.status == CHURNED) & (history.status != CHURNED)
            track = CustomerTrack(simulated.next_history, track.p_active)
            return track, simulated, customers.realised_profit(simulated, churned)
        p_active = track.p_active * (history.status != CHURNED)
        profit = p_active * customers.expected_profit(
            simulated.trip, simulated.spend, simulated.margin, simulated.churn
        )
        track = CustomerTrack(simulated.next_history, track.p_active * (1 - simulated.churn_given_purchase))
        return track, simulated, profit

    def tail_values(self) -> tuple[Tensor, Tensor]:
        """Return the value after the season, and that of the counterfactual, [N] each."""
        return self.customers.tail_value(*self.track), self.customers.tail_value(*self.no_contact_track)
