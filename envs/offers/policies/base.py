"""The contract of a policy that serves a season, and the tables by action that policies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.batching import batches
from envs.offers.planning.knapsack import Increments, concat_increments
from envs.offers.policies.information import Information
from envs.offers.world.customers import SUBSCRIBED, CustomerState, Rows
from envs.offers.world.history import PassedWeek


class View(Protocol):
    """What a policy sees of the N customers of a market and remembers of them from week to week, [N, M]."""

    def start(self, state: CustomerState) -> Tensor:
        """Return the memory at the start of a season."""

    def after(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return the memory after a week."""

    def subscribed(self, memory: Tensor, state: CustomerState) -> Tensor:
        """Customers who, as far as the view tells, can be contacted, bool [N]."""


class StateView:
    """The view of a policy that sees states as they are, and remembers nothing."""

    def start(self, state: CustomerState) -> Tensor:
        """Return an empty memory, [N, 0]."""
        return state.status.new_zeros(len(state.status), 0)

    def after(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return the memory as it was."""
        return memory

    def subscribed(self, memory: Tensor, state: CustomerState) -> Tensor:
        """Customers who are subscribed, bool [N]."""
        return state.status == SUBSCRIBED


class SeasonPolicy(Protocol):
    """A policy for the N customers of one market: each week it says what it would send as the price of budget falls."""

    information: Information  #: what the policy is given
    view: View  #: what the policy sees and remembers of the customers

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return all customers' increments of a week (from 0), to actions that the mask allows."""


class BatchedPolicy:
    """Base of policies that compute the increments of a batch of customers at a time, so that memory stays bounded."""

    information: Information
    view: View = StateView()

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the increments of all customers, concatenated over the batches."""
        return self._in_batches(batches(state.status), week, state, options)

    def increments_of(self, rows: Tensor, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the increments of the M customers in `rows`, int64 [M], in their order; all have state and options."""
        return self._in_batches([rows[batch] for batch in batches(rows)], week, state, options)

    def _in_batches(
        self, parts: Sequence[Rows], week: int, state: CustomerState, options: ContactOptions
    ) -> Increments:
        found = []
        for rows in parts:
            batch_state = CustomerState(*(x[rows] for x in state))
            found.append(self.batch_increments(rows, week, batch_state, options.take(rows)))
        return concat_increments(found)

    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the increments of the customers in `rows`; `state` and `options` are theirs."""
        raise NotImplementedError


def pair_table(no_contact: Tensor, contact: Tensor, action_mask: Tensor) -> Tensor:
    """Lay out values of no contact [N] and of contacts [O, C, N] by flat action, [N, P]; −inf where masked."""
    first = no_contact.expand(1, contact.shape[1], -1)
    return torch.cat((first, contact)).flatten(0, 1).T.masked_fill(~action_mask, -torch.inf)
