"""Planning where the state is hidden: the plan's action values, expected over the filtered states."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.knapsack import Increments, upper_hull
from envs.offers.planning.state_values import Contacts, StateGrid
from envs.offers.policies.base import pair_table
from envs.offers.policies.baselines import KnapsackPolicy, ResponseRanking
from envs.offers.policies.information import Information
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, CustomerState, Rows, World
from envs.offers.world.filtering import CHUNK, Belief, filter_week
from envs.offers.world.history import PassedWeek
from envs.offers.world.response import Outcome, attention, purchase_if_seen, utility

INSIDE = HABITS * FATIGUES * EXPECTATIONS  # states of a subscribed customer


def to_memory(belief: Belief) -> Tensor:
    """Lay out a belief as a memory, [N, 79]."""
    return torch.cat((belief.subscribed.flatten(0, 2), belief.unsubscribed, belief.churned[None])).T


def from_memory(memory: Tensor) -> Belief:
    """Invert `to_memory`."""
    inside, outside, churned = memory.T.split([INSIDE, HABITS, 1])
    return Belief(inside.unflatten(0, (HABITS, FATIGUES, EXPECTATIONS)), outside, churned[0])


class BeliefView:
    """The view of a policy that filters the hidden state of customers under their parameters θ (or estimates of them).

    Its memory [N, 79] is P(state | what was seen); `start` [14] are the marginals of a season's start.
    """

    def __init__(self, customers: Customers, world: World, start: Tensor):
        self.customers, self.world, self.first = customers, world, start

    def start(self, state: CustomerState) -> Tensor:
        """Return the belief at the start of a season; the states are not read."""
        marginals = self.first.to(self.customers.alpha)[:, None].expand(-1, len(self.customers))
        nobody = torch.zeros(len(self.customers), dtype=torch.bool, device=marginals.device)
        return to_memory(Belief.from_marginals(marginals, nobody))

    def after(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return the belief after a week; the states are not read."""
        found = []
        for first in range(0, len(memory), CHUNK):
            rows = slice(first, first + CHUNK)
            belief = from_memory(memory[rows])
            seen = passed.seen.take(rows)
            found.append(to_memory(filter_week(self.customers[rows], self.world, passed.number, belief, seen)[0]))
        return torch.cat(found)

    def subscribed(self, memory: Tensor, state: CustomerState) -> Tensor:
        """Customers who have not opted out, bool [N], those who churned among them."""
        return from_memory(memory).unsubscribed.sum(0) == 0


class BeliefPlanner(KnapsackPolicy):
    """The exact knapsack of the week on the plan's action values, expected over a BeliefView's states (QMDP).

    An action is valued as if the state were known from the next week on (Littman, Cassandra & Kaelbling 1995): nothing
    is sent to learn. A message to a customer who churned loses its cost.
    """

    def __init__(self, customers: Customers, world: World, information: Information, view: BeliefView, **plan):
        super().__init__(customers, world, information, **plan)
        self.view = view

    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the efficient increments of every customer; the states are not read."""
        assert options.memory is not None  # the options of a market have it
        customers, catalogue, belief = self.customers[rows], self.world.catalogue, from_memory(options.memory)
        at = StateGrid(customers.alpha)
        no_contact, contact = action_values(
            customers, self.world, week, at, 0.0, self._next_values(week, rows), self.scarcity
        )
        contact = belief.expect(contact, -catalogue.cost[:, None]) - self.fee  # [O, C, N]
        no_contact = belief.expect(no_contact, torch.zeros_like(belief.churned))
        value = pair_table(no_contact, contact, options.action_mask)
        return upper_hull(value, expected_outcome(customers, self.world, week, belief.subscribed).spend)


class BeliefRanking(ResponseRanking):
    """A ResponseRanking on what is expected over a BeliefView's states."""

    def __init__(self, customers: Customers, world: World, information: Information, view: BeliefView, *, uplift: bool):
        super().__init__(customers, world, uplift=uplift, information=information)
        self.view = view

    def outcome(self, customers: Customers, week: int, state: CustomerState, options: ContactOptions) -> Outcome:
        """Return what is expected of every flat action, [N, P] each; the states are not read."""
        assert options.memory is not None  # as of every belief
        return expected_outcome(customers, self.world, week, from_memory(options.memory).subscribed)


def expected_outcome(customers: Customers, world: World, week: int, inside: Tensor) -> Outcome:
    """Return the outcome of every flat action, expected over P(state, subscribed) [6, 4, 3, N], [N, P] each.

    Its spend includes the cost of messages that nobody hears.
    """
    catalogue, at = world.catalogue, StateGrid(customers.alpha)
    every = Contacts.all(customers, catalogue, at)
    b = utility(customers, at.h, at.d, world.season[week])
    organic = torch.sigmoid(b)[:, 0]  # [6, 3, N]
    seen = attention(every.omega, customers, at.f)[:, 0, :, 0]  # [C, 4, N]
    bought = purchase_if_seen(customers, b, at.d, every.value)[:, :, 0]  # [O, 6, 3, N]
    seen_and_bought = torch.einsum("hfdn,cfn,ohdn->noc", inside, seen, bought)
    redeem = seen_and_bought * customers.mu[:, None, None]
    unseen_and_bought = torch.einsum("hfdn,cfn,hdn->nc", inside, 1 - seen, organic)[:, None]
    buy = seen_and_bought - redeem + unseen_and_bought
    silent = torch.einsum("hfdn,hdn->n", inside, organic)[:, None, None].expand_as(buy[:, :1])
    redeem = torch.cat((torch.zeros_like(silent), redeem), 1)
    offer, channel = (torch.arange(n, device=redeem.device) for n in catalogue.nvec)
    spend = catalogue.spend(offer[:, None], channel, redeem)
    return Outcome(*(x.flatten(1) for x in (redeem, torch.cat((silent, buy), 1), spend)))
