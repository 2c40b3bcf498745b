"""What a fitted member of any twin says of a panel: one interface, which reports, warnings and benchmarks ask."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class OutcomePrediction(NamedTuple):
    """The prediction of an outcome that happens or not, [T, N] each."""

    probability: Tensor
    happened: Tensor  # bool
    known: Tensor  # bool: the outcome was possible, and whether it happened was logged


class ContactEffect(NamedTuple):
    """What a contact drawn uniformly from all offers and channels does to a week, [T, N] each."""

    uplift: Tensor  # what the contact adds to P(trip)
    no_contact: Tensor  # P(trip) without a contact
    cost: Tensor  # expected spend of the contact


class PanelPredictions(Protocol):
    """Predictions of a panel of N customers and T weeks (envs/offers/logs/panel.py) by one member of a twin."""

    def log_likelihoods(self) -> dict[str, Tensor]:
        """Return the log-likelihood by kind of outcome, [T, N] each, 0 where the outcome was not possible."""

    def probabilities(self) -> dict[str, OutcomePrediction]:
        """Return predicted probabilities by kind of outcome."""

    def contact_effect(self) -> ContactEffect:
        """Return what a contact does to the probability of a trip."""

    def simulate_season(self, first_free_week: int, generator: torch.Generator) -> Tensor:
        """Return expected trips, margin and spend of all customers by week, [3, T].

        Before `first_free_week` every week starts from what was logged, afterwards from the outcomes that the member
        drew. What was sent, and who left, is as logged.
        """
