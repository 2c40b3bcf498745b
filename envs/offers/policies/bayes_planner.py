"""Planning on a posterior of θ: one plan for all draws of a customer's parameters, weighted by what the season shows.

Where θ is unknown and does not change, a policy has to be good under all θ that a customer may have. The plan is the
"weight-select-update" of multi-model decision processes (Steimle, Kaufman & Denton 2021): backwards in time one action
is selected for each state by its weighted mean value over the draws, and every draw's value is updated under that
action. This is not the mean of the draws' own plans, which each know their θ and promise what no policy attains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.logs.panel import Panel
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.knapsack import Increments, concat_increments, upper_hull
from envs.offers.planning.state_values import StateGrid, StateValues, VisitedStates
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.policies.base import View, pair_table
from envs.offers.policies.information import Information
from envs.offers.populations.base import theta_from_matrix
from envs.offers.twin.likelihood import log_likelihood
from envs.offers.world import response
from envs.offers.world.customers import SUBSCRIBED, Customers, CustomerState, World
from envs.offers.world.history import PassedWeek, SeenWeek

CHUNK = 2048  # draws of customers planned for at once, so that tables of all pairs fit a cache


def repeated(state: CustomerState, times: int) -> CustomerState:
    """Return the states of N customers so many times, [times · N]."""
    return CustomerState(*(x.repeat(times) for x in state))


class PosteriorView:
    """The view of a policy that weights draws of θ, [K, N, P], by the likelihood of the weeks so far.

    States are seen. The memory [N, K] has the logarithms of the weights, up to a constant.
    """

    def __init__(self, theta: Tensor, world: World):
        self.draws, self.world = len(theta), world
        self.customers = world.inhabit(theta_from_matrix(theta.flatten(0, 1)))  # [K · N]

    def start(self, state: CustomerState) -> Tensor:
        """Return equal weights at the start of a season."""
        return self.customers.alpha.new_zeros(len(state.status), self.draws)

    def after(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return the weights after a week: responses, moves of the state, and what a purchase brought."""
        k = self.draws
        of_draws = SeenWeek(*(x.repeat(k) for x in passed.seen))
        known = torch.ones_like(of_draws.bought)
        nothing = torch.zeros_like(of_draws.margin)
        panel = Panel(
            features=nothing[None],
            customer=torch.arange(len(known), device=known.device),
            logged=known[None],
            week=(passed.number + torch.zeros_like(of_draws.offer))[None],
            state=CustomerState(*(x[None] for x in repeated(passed.state, k))),
            offer=of_draws.offer[None],
            channel=of_draws.channel[None],
            bought=of_draws.bought[None],
            redeemed=of_draws.redeemed[None],
            next_state=CustomerState(*(x[None] for x in repeated(passed.next_state, k))),
            margin=of_draws.margin[None],
            spend=nothing[None],
            propensity=nothing[None],
            num_allowed=torch.ones_like(of_draws.offer)[None],
        )
        kinds = log_likelihood(self.customers, self.world, panel)
        total = torch.stack([log_probability[0] for log_probability in kinds.values()]).sum(0)
        return memory + total.view(k, -1).T.to(memory)

    def subscribed(self, memory: Tensor, state: CustomerState) -> Tensor:
        """Customers who are subscribed, bool [N]."""
        return state.status == SUBSCRIBED


class BayesPlanner:
    """The exact knapsack of the week on mean value and mean spend over a posterior's draws, under one plan for all.

    `theta` [K, N, P] are draws of the prior given features, `prices` [T] those of money in the plan. `scarcity` [O+1]
    is the price of a redemption of each offer with scarce stock, or None. `contacts`, bool [O·C, 1, 1, 1, N], are the
    contacts that contact rules allow, by default all. The plan is made anew each week.
    """

    def __init__(
        self,
        theta: Tensor,
        world: World,
        information: Information,
        *,
        prices: Tensor,
        scarcity: Tensor | None,
        contacts: Tensor | None,
    ):
        self.theta, self.world, self.information = theta, world, information
        self.prices, self.scarcity, self.contacts = prices, scarcity, contacts
        self.view: View = PosteriorView(theta, world)

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the efficient increments of every customer."""
        size = max(1, CHUNK // len(self.theta))
        starts = range(0, len(state.status), size)
        parts = [self._increments(slice(first, first + size), week, state, options) for first in starts]
        return concat_increments(parts)

    def _increments(self, rows: slice, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        assert options.memory is not None  # the options of a market have it
        k = len(self.theta)
        draws = self.world.inhabit(theta_from_matrix(self.theta[:, rows].flatten(0, 1)))
        weight = options.memory[rows].softmax(1).T  # [K, n]
        then = self.next_values(draws, week, weight, None if self.contacts is None else self.contacts[..., rows])
        states = repeated(CustomerState(*(x[rows] for x in state)), k)
        visited = VisitedStates(states, draws.alpha)
        nothing, contact = action_values(draws, self.world, week, visited, 0.0, then, self.scarcity)
        spend = response.outcomes(draws, self.world, week, states).spend.unflatten(0, (k, -1))
        table = pair_table(mean(nothing, weight), mean(contact, weight), options.action_mask[rows])
        return upper_hull(table, (spend * weight[..., None]).sum(0))

    def next_values(self, draws: Customers, week: int, weight: Tensor, contacts: Tensor | None) -> StateValues:
        """Return each draw's values [..., K · n] after a week, under the plan that suits all draws by their weights."""
        k, at, world = len(weight), StateGrid(draws.alpha), self.world
        no_contact_values = fast_no_contact_values(draws, world)
        values = no_contact_values[-1]
        for t in reversed(range(week + 1, world.weeks)):
            nothing, contact = action_values(draws, world, t, at, self.prices[t], values, self.scarcity)
            contact = contact.flatten(0, 1)
            wanted = mean(contact, weight)
            if contacts is not None:
                wanted = wanted.masked_fill(~contacts, -torch.inf)
            best, action = wanted.max(0)
            pays = (best > mean(nothing, weight)).repeat(*(1 for _ in best.shape[1:]), k)
            chosen = contact.gather(0, action.repeat(*(1 for _ in action.shape[1:]), k)[None])[0]
            values = StateValues(torch.where(pays, chosen, nothing), no_contact_values[t].unsubscribed)
        return values


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean over draws of values [..., K · n], weights [K, n], [..., n]."""
    return (values.unflatten(-1, weight.shape) * weight).sum(-2)
