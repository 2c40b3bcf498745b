"""Policies that need no training: no contact, random contacts, the trade's rankings, and the knapsack of a week."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.knapsack import Increments, ranked, upper_hull
from envs.offers.planning.state_values import StateValues, VisitedStates
from envs.offers.policies.base import BatchedPolicy, StateView, View, pair_table
from envs.offers.policies.information import ORACLE, UNINFORMED, Information
from envs.offers.world import response
from envs.offers.world.customers import Customers, CustomerState, Rows, World
from envs.offers.world.response import Outcome


class NoContact:
    """Never contact anyone."""

    information = UNINFORMED
    view: View = StateView()

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return increments without a step."""
        zeros = torch.zeros_like(state.status)
        return ranked(torch.full(zeros.shape, -torch.inf, device=zeros.device), zeros.double(), zeros)


class RandomContacts(BatchedPolicy):
    """A contact drawn uniformly from those allowed, customers in random order, until the budget is spent."""

    information = UNINFORMED

    def __init__(self, customers: Customers, world: World, *, seed: int):
        self.customers, self.world = customers, world
        self.generator = torch.Generator(world.season.device).manual_seed(seed)

    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return one step a customer who may be contacted, at a random rank."""
        customers = self.customers[rows]
        n, codec = len(customers), self.world.catalogue.action_codec
        spend = response.outcomes(customers, self.world, week, state).spend
        u_action = torch.rand(n, generator=self.generator, device=spend.device)
        u_rank = torch.rand(n, generator=self.generator, device=spend.device)
        num_allowed = options.action_mask[:, codec.contacts].long().cumsum(1)
        nth_allowed = (u_action * num_allowed[:, -1]).long()
        contact = (num_allowed <= nth_allowed[:, None]).sum(1).clamp_max(num_allowed.shape[1] - 1)
        action = codec.nth_contact(contact)
        rank = torch.where(num_allowed[:, -1] > 0, u_rank, -torch.inf)
        return ranked(rank, spend.gather(1, action[:, None])[:, 0], action)


class ResponseRanking(BatchedPolicy):
    """The trade's two usual rules: each customer gets the contact with the highest probability of a purchase.

    Customers are ranked by this probability (`propensity`), or by the week's profit from the probability's rise over no
    contact (`uplift`).
    """

    def __init__(
        self,
        customers: Customers,
        world: World,
        *,
        uplift: bool,
        information: Information = ORACLE,
    ):
        self.customers, self.world, self.uplift = customers, world, uplift
        self.information = information

    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return one step a customer who may be contacted, ranked."""
        codec, customers = self.world.catalogue.action_codec, self.customers[rows]
        outcome = self.outcome(customers, week, state, options)
        purchase = outcome.redeem + outcome.buy
        is_masked = ~options.action_mask[:, codec.contacts]
        score, contact = purchase[:, codec.contacts].masked_fill(is_masked, -torch.inf).max(1)
        action = codec.nth_contact(contact)
        spend = outcome.spend.gather(1, action[:, None])[:, 0]
        if self.uplift:
            margin = customers.margin + self.world.reward.trips
            score = margin * (score - purchase[:, 0]) - spend
        return ranked(score, spend, action)

    def outcome(self, customers: Customers, week: int, state: CustomerState, options: ContactOptions) -> Outcome:
        """Return what is expected of every flat action for some customers, [N, P] each."""
        return response.outcomes(customers, self.world, week, state)


class KnapsackPolicy(BatchedPolicy):
    """The exact knapsack of the week on expected spend and expected value.

    With `values`, the policy plans: they are the V of weeks 1..T+1, or a function that computes the V of a week for
    some rows. None leaves out the future (myopic). `fee` is charged a contact, in money: the trade's usual correction
    for the future without a plan. `scarcity` [O+1] is the price of a redemption of each offer with scarce stock.
    """

    def __init__(
        self,
        customers: Customers,
        world: World,
        information: Information,
        *,
        fee: float,
        values: list[StateValues] | Callable[[int, Rows], StateValues] | None,
        scarcity: Tensor | None = None,
    ):
        self.customers, self.world, self.information = customers, world, information
        self.values, self.fee, self.scarcity = values, fee, scarcity

    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the efficient increments of every customer."""
        customers = self.customers[rows]
        next_values = self._next_values(week, rows)
        no_contact, contact = action_values(
            customers, self.world, week, VisitedStates(state, customers.alpha), 0.0, next_values, self.scarcity
        )
        spend = response.outcomes(customers, self.world, week, state).spend
        return upper_hull(pair_table(no_contact, contact - self.fee, options.action_mask), spend)

    def _next_values(self, week: int, rows: Rows) -> StateValues | None:
        if not self.values:
            return None
        if callable(self.values):
            return self.values(week + 1, rows)
        return self.values[week + 1].take(rows)
