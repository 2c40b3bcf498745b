"""Predictions of a panel by a fitted member of a twin: one interface, whether the log has the states or not."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class OutcomePrediction(NamedTuple):
    """The prediction of a binary outcome, [T, N] each."""

    probability: Tensor
    happened: Tensor  # bool
    known: Tensor  # bool: the outcome was possible, and whether it happened was logged


class ContactEffect(NamedTuple):
    """The effect on a week of a contact drawn uniformly from all offers and channels, [T, N] each."""

    uplift: Tensor  # increase of P(trip) by the contact
    no_contact: Tensor  # P(trip) without a contact
    cost: Tensor  # expected spend of the contact


class PanelPredictions(Protocol):
    """Predictions of a panel of N customers and T weeks (envs/offers/logs/panel.py) by one member of a twin."""

    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood by kind of outcome, [T, N] each, 0 where the outcome was not possible."""

    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""

    def contact_effect(self) -> ContactEffect:
        """Return the effect of a contact on the probability of a trip."""

    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend of all customers by week, [3, T].

        Before `first_free_week` every week starts from the logged state, afterwards from the outcomes that the member
        drew. Contacts, opt-outs and churn are as logged.
        """


def mean_probabilities(members: list[PanelPredictions]) -> dict[str, OutcomePrediction]:
    """Return the members' mean predictions by kind of outcome."""
    found = [member.probabilities() for member in members]
    return {
        name: x._replace(probability=torch.stack([y[name].probability for y in found]).mean(0))
        for name, x in found[0].items()
    }
