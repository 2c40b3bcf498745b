"""Policies on estimated parameters that read what purchases show of a customer's margin."""

from __future__ import annotations

from dataclasses import replace

import torch

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.knapsack import Increments, padded
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.information import MARGINS
from envs.offers.world.customers import CustomerState


class MarginsSeenPolicy:
    """Follow `before` until a customer's first purchase of the season, and `after` from the week after it.

    Every purchase of a customer brings the same margin, so that the first one shows it. `after` is `before` with true
    margins in the place of estimated ones. Both see the state alike, because margins say nothing of it.
    """

    def __init__(self, before: SeasonPolicy, after: SeasonPolicy):
        self.before, self.after, self.view = before, after, before.view
        self.information = replace(before.information, season=(*before.information.season, MARGINS))

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the increments of `after` for customers who bought in an earlier week, of `before` for others."""
        assert options.history is not None  # the options of a market have it
        bought = (options.history.purchases > 0).any(0)[:, None]
        pair = [policy.increments(week, state, options) for policy in (self.after, self.before)]
        after, before = padded(pair)
        return Increments(*(torch.where(bought, x, y) for x, y in zip(after, before)))
