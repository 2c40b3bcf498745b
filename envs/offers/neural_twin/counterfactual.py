"""A season beside its counterfactual: the same customers under the same random numbers, never contacted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.neural_twin.customers import NeuralCustomers, Week
from envs.offers.world.customers import CHURNED
from envs.offers.world.history import History


class CustomerTrack(NamedTuple):
    """What N customers have been through; where churn is not drawn, the probability [N] that each is still there."""

    history: History
    p_active: Tensor


class Counterfactual:
    """Simulates a season of NeuralCustomers and, under the same uniforms, what it would be if nobody were contacted.

    Without a contact both are the same to the last bit. realised: churn is drawn, and profits are as they were drawn;
    otherwise profits are expected, and weigh by the probability that the customer is still there.
    """

    def __init__(self, customers: NeuralCustomers, status: Tensor, realised: bool):
        self.customers, self.realised = customers, realised
        season = customers.world.season
        self.track = CustomerTrack(History.start(status, season.dtype), season.new_ones(len(customers)))
        self.no_contact_track = self.track

    def simulate_week(self, week: int, offer: Tensor, channel: Tensor, u: Tensor) -> tuple[Week, Tensor, Tensor]:
        """Simulate a week by uniforms u [6, N]; return it, its profit and the profit without contacts, [N] each."""
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
        """Return the value of what comes after the season, and of that without contacts, [N] each."""
        return self.customers.tail_value(*self.track), self.customers.tail_value(*self.no_contact_track)
