"""The one-step model of a season for critics of states: expected rewards, and expected values of next week's states."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from envs.offers.planning.batching import batches
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import StateGrid, StateValues, VisitedStates
from envs.offers.policies.base import pair_table
from envs.offers.populations.base import LEVELS, theta_to_matrix
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNSUBSCRIBED, Customers, CustomerState
from envs.offers.world.filtering import Belief, filter_week, start_belief
from envs.offers.world.response import attention, purchase_if_seen, utility

if TYPE_CHECKING:
    from envs.offers.env import OffersEnv

INSIDE = LEVELS[0] * LEVELS[1] * LEVELS[2]  # states of a subscribed customer
CHURNED_UNSEEN = INSIDE  # number of the state of who churned and, as far as observations tell, did not
REFERENCE_CUSTOMERS = 4096  # drawn once, for mean and standard deviation of θ


class OffersLookahead:
    """The LookaheadEnv (envs/base.py) of an OffersEnv's season; an agent's states are those of a subscribed customer.

    Where observations hide the state there is one more: a customer who churned unseen can be sent to, which costs the
    message and brings nothing. Rewards are shaped: A⁰ − price·spend. Values are therefore beyond V⁰, and a customer who
    churns before all eyes or opts out earns no more. A critic observes features, week and price, and with `privileged`
    the customer's θ, standardised. Under contact caps a season has two futures, without and with a contact this week,
    which differ in the contacts that are left. Raises ValueError where the reward is not shaped.
    """

    def __init__(self, env: OffersEnv, privileged: bool):
        if not env.world.reward.shaping:
            raise ValueError("algo=ppo_expected: expected env.reward.shaping=true, got false")
        self.env, self.privileged = env, privileged
        codec = env.codec
        self.num_states = INSIDE + codec.hides_state
        self.filters_states = codec.hides_state and env.population.starts_alike
        self.draws_states = codec.num_writable > 0
        self.moved = slice(codec.dynamics.start, codec.status.stop)  # columns of an observation that a week moves
        self.caps = slice(env.static_dim, codec.dynamics.start)  # columns of the contact caps
        self.num_futures = 2 if self.caps.stop > self.caps.start else 1
        self.critic_dim = env.obs_dim - (codec.status.stop - codec.dynamics.start)
        if privileged:
            generator = torch.Generator(env.device).manual_seed(0)
            reference = theta_to_matrix(env.population.draw(REFERENCE_CUSTOMERS, generator, "train").customers)
            self.mean, self.std = reference.mean(0), reference.std(0).clamp_min(1e-6)
            self.critic_dim += reference.shape[1]

    @property
    def face_value(self) -> Tensor:
        """What a redemption of each pair costs, money, [offers, channels]."""
        catalogue = self.env.world.catalogue
        return catalogue.value[:, None].expand(catalogue.nvec)

    # ── states ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def visited_states(self) -> Tensor:
        """Return the states in which customers were when each week began, int64 [T, N]."""
        habit, fatigue, expectation, status = self.env.states_so_far
        _, fatigues, expectations = LEVELS
        index = (habit * fatigues + fatigue) * expectations + expectation
        index = torch.where(status == SUBSCRIBED, index, self.num_states)
        if not self.env.codec.hides_state:
            return index
        has_opted_out = (status == UNSUBSCRIBED).cumsum(0) > 0
        return torch.where((status == CHURNED) & ~has_opted_out, CHURNED_UNSEEN, index)

    def customer_state(self, index: Tensor) -> CustomerState:
        """Return the states of these numbers, of subscribed customers; all others get the first state."""
        index = torch.where(index < INSIDE, index, 0)
        _, fatigues, expectations = LEVELS
        inner = index // expectations
        return CustomerState(
            habit=inner // fatigues,
            fatigue=inner % fatigues,
            expectation=index % expectations,
            status=torch.full_like(index, SUBSCRIBED),
        )

    # ── what is observed ────────────────────────────────────────────────────────────────────────────────────────────
    def critic_obs(self, obs: Tensor) -> Tensor:
        """Return all columns of observations [T, N, D] that are the same in all states, and θ, [T, N, C]."""
        columns = [obs[..., : self.moved.start], obs[..., self.moved.stop :]]
        if self.privileged:
            theta = (theta_to_matrix(self.env.sampled_customers) - self.mean) / self.std
            columns.append(theta.to(obs).expand(*obs.shape[:-1], -1))
        return torch.cat(columns, -1)

    def draw_states(self, visited: Tensor, generator: torch.Generator) -> Tensor:
        """Draw states of subscribed customers uniformly, as far as the view can write them, int64 [T, N].

        Under a belief habit stays as visited. A customer who churned unseen stays in that state.
        """
        written = self.env.codec.num_writable
        drawn = torch.randint(written, visited.shape, generator=generator, device=visited.device)
        return torch.where(
            visited == CHURNED_UNSEEN, visited, visited.clamp_max(INSIDE - 1) // written * written + drawn
        )

    def as_if_in(self, state: Tensor, obs: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return observations and masks as if subscribed customers were in the states; masks depend on none of them.

        The observation of a customer who churned unseen stays.
        """
        other = self.customer_state(state.flatten())
        written = self.env.codec.with_dynamics(obs.flatten(0, 1), other).unflatten(0, state.shape)
        return torch.where((state < INSIDE)[..., None], written, obs), action_mask

    def future_critic_obs(self, critic_obs: Tensor) -> Tensor:
        """Return critics' observations [K, T − 1, N, C] of the next week, without and with a contact this week."""
        following = critic_obs[None, 1:]
        if self.num_futures == 1:
            return following
        following = following.repeat(self.num_futures, 1, 1, 1)
        contacts = self.env.outcomes_so_far[0]  # [T, N]
        everyone = torch.ones_like(contacts[0], dtype=torch.bool)
        for future, t in product(range(self.num_futures), range(len(contacts) - 1)):
            this_week = torch.full_like(contacts[:1], future)
            options = self.env.contact_policy(everyone, torch.cat((contacts[:t], this_week)))
            following[future, t, :, self.caps] = options.caps_left.to(following)
        return following

    # ── what is expected ────────────────────────────────────────────────────────────────────────────────────────────
    def backup(self, state: Tensor, next_values: Tensor) -> Tensor:
        """Return E[r + V(s′) | s, a] of every flat action in the states [T, N] of all weeks, [T, N, P].

        `next_values` [K, T − 1, N, S] are those of next week; the T weeks of N customers are laid out as T·N customers.
        """
        env = self.env
        weeks, n = state.shape
        customers = env.customers[torch.arange(n, device=state.device).repeat(weeks)]
        week = torch.arange(weeks, device=state.device).repeat_interleave(n)
        at = VisitedStates(self.customer_state(state.flatten()), customers.alpha)
        this_week, next_week = (
            StateValues(
                subscribed=torch.cat([x.subscribed for x in values], -1),
                unsubscribed=torch.cat([x.unsubscribed for x in values], -1),
            )
            for values in (env.no_contact_values[:-1], env.no_contact_values[1:])
        )
        inside, churned = self._action_values(
            customers, week, at, env.prices.flatten(), next_week, _until_the_end(next_values).flatten(1, 2)
        )
        no_contact, contact = (x - this_week.at(at.state) for x in inside)
        if env.codec.hides_state:
            is_unseen = state.flatten() == CHURNED_UNSEEN
            no_contact = torch.where(is_unseen, churned[0], no_contact)
            contact = torch.where(is_unseen, churned[1], contact)
        every = torch.ones(weeks * n, 1, dtype=torch.bool, device=state.device)
        table = pair_table(no_contact, contact, every)
        return torch.where(state[..., None] < self.num_states, table.unflatten(0, (weeks, n)), 0.0)

    def expected_backup(self, next_values: Tensor) -> Tensor:
        """Return `backup`, expected over the filtered states of customers who have not opted out, [T, N, P].

        The states are filtered under the customers' true parameters, whatever a view's own belief assumes.
        """
        next_values = _until_the_end(next_values)
        tables = [self._expected_backup(rows, next_values[:, :, rows]) for rows in batches(self.env.customers.alpha)]
        return torch.where(self.visited_states()[..., None] < self.num_states, torch.cat(tables, 1), 0.0)

    def _expected_backup(self, rows: slice, next_values: Tensor) -> Tensor:
        """Return `expected_backup` of some customers; `next_values` are [K, T, n, S]."""
        env, customers = self.env, self.env.customers[rows]
        at, every = StateGrid(customers.alpha), torch.ones(len(customers), 1, dtype=torch.bool, device=env.device)
        tables = []
        for week, belief in enumerate(self.beliefs(rows)):
            now, then = (env.no_contact_values[k].take(rows) for k in (week, week + 1))
            inside, churned = self._action_values(
                customers, week, at, env.prices[week, rows], then, next_values[:, week]
            )
            no_contact, contact = (belief.expect(x, y) for x, y in zip(inside, churned))
            already = belief.expect(now.subscribed, torch.zeros_like(belief.churned))
            tables.append(pair_table(no_contact - already, contact - already, every))
        return torch.stack(tables)

    def beliefs(self, rows: slice) -> Iterator[Belief]:
        """Yield P(state | what a shop saw before the week) of some customers, under their true parameters, by week."""
        env, customers = self.env, self.env.customers[rows]
        belief = start_belief(customers)
        yield belief
        for week in range(env.episode_length - 1):
            belief, _ = filter_week(customers, env.world, week, belief, env.seen_so_far.take((week, rows)))
            yield belief

    def _action_values(
        self,
        customers: Customers,
        week: int | Tensor,
        at: StateGrid | VisitedStates,
        price: Tensor,
        next_week: StateValues,
        next_values: Tensor,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return E[r + V⁰ + V | s, a] of B subscribed customers, and of B who churned unseen.

        Each is that of no contact, [*S] or [B], and of contacts, [O, C, *S] or [O, C, B]; *S is the shape of `at`.
        `next_week` are next week's V⁰, `next_values` [K, B, S] next week's values beyond V⁰ in every future.
        """
        # The probabilities of next states sum to 1: what a customer who churned unseen is still worth is added to all
        # actions, and taken from the values of all other states.
        tables, unseen = [], []
        for values in next_values:
            churned = values[:, INSIDE:].sum(1)  # 0 where churn is seen
            inside = (values[:, :INSIDE] - churned[:, None]).T.unflatten(0, LEVELS)
            then = StateValues(next_week.subscribed + inside, next_week.unsubscribed - churned)
            tables.append([x + churned for x in action_values(customers, self.env.world, week, at, price, then)])
            unseen.append(churned)
        (no_contact, _), (_, contact) = tables[0], tables[-1]  # the first future is without a contact, the last with
        cost = (1 + price) * self.env.world.catalogue.cost[:, None]
        return (no_contact, contact), (unseen[0], (unseen[-1] - cost).expand(len(contact), -1, -1))

    def redeem_probability(self) -> Tensor:
        """Return P(redeem) of every pair in the states of a season's weeks, [T, N, offers, channels].

        Seen, bought and redeemed are independent: P = q(channel) · p1(offer) · μ; nothing is never redeemed, nor is
        anything by a customer who churned unseen.
        """
        customers, world, codec = self.env.customers, self.env.world, self.env.codec
        habit, fatigue, expectation, status = self.env.states_so_far
        h, f, d = (x.to(customers.alpha) for x in (habit, fatigue, expectation))
        b = utility(customers, h, d, world.season[:, None])
        seen = attention(customers.omega[:, None], customers, f)
        bought = purchase_if_seen(customers, b, d, world.catalogue.value[:, None, None])
        redeemed = (bought * customers.mu)[:, None] * seen
        if codec.hides_state:
            redeemed = redeemed * (status != CHURNED)
        redeemed[0] = 0.0
        return redeemed.permute(2, 3, 0, 1)


def _until_the_end(next_values: Tensor) -> Tensor:
    """Append the values after a season's last week to those [K, T − 1, N, S] of its weeks: nothing is beyond V⁰."""
    return functional.pad(next_values, (0, 0, 0, 0, 0, 1))
