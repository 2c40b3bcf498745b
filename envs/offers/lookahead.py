"""The one-step model of a season for critics of states: expected rewards, and expected values of next week's states."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import StateValues, VisitedStates
from envs.offers.policies.base import pair_table
from envs.offers.populations.base import LEVELS, theta_to_matrix
from envs.offers.world.customers import SUBSCRIBED, CustomerState
from envs.offers.world.response import attention, purchase_if_seen, utility

if TYPE_CHECKING:
    from envs.offers.env import OffersEnv

REFERENCE_CUSTOMERS = 4096  # drawn once, for mean and standard deviation of θ


class OffersLookahead:
    """The LookaheadEnv (envs/base.py) of an OffersEnv's season; an agent's states are those of a subscribed customer.

    Rewards are shaped: A⁰ − price·spend. Values are therefore beyond V⁰, and a customer who churns or opts out earns no
    more. A critic observes features, week and price, and with `privileged` the customer's θ, standardised. Under
    contact caps a season has two futures, without and with a contact this week, which differ in the contacts that are
    left. Raises ValueError where the reward is not shaped or observations hide the state.
    """

    num_states = LEVELS[0] * LEVELS[1] * LEVELS[2]

    def __init__(self, env: OffersEnv, privileged: bool):
        if not env.world.reward.shaping or env.codec.hides_state:
            raise ValueError(
                "algo=ppo_expected: expected env.reward.shaping=true and an env/observation of the state, got "
                f"shaping={env.world.reward.shaping} and {type(env.codec).__name__}"
            )
        self.env, self.privileged = env, privileged
        codec = env.codec
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

    # ── what is observed ────────────────────────────────────────────────────────────────────────────────────────────
    def state_index(self, obs: Tensor) -> Tensor:
        """Number the states, int64 [...], of observations [..., D]; who is not subscribed has left them."""
        state = self.env.codec.decode_state(obs.flatten(0, -2))
        _, fatigues, expectations = LEVELS
        index = (state.habit * fatigues + state.fatigue) * expectations + state.expectation
        return torch.where(state.status == SUBSCRIBED, index, self.num_states).unflatten(0, obs.shape[:-1])

    def customer_state(self, index: Tensor) -> CustomerState:
        """Invert `state_index` for subscribed customers; all others get the first state."""
        index = torch.where(index < self.num_states, index, 0)
        _, fatigues, expectations = LEVELS
        inner = index // expectations
        return CustomerState(
            habit=inner // fatigues,
            fatigue=inner % fatigues,
            expectation=index % expectations,
            status=torch.full_like(index, SUBSCRIBED),
        )

    def critic_obs(self, obs: Tensor) -> Tensor:
        """Return all columns of observations [T, N, D] that are the same in all states, and θ, [T, N, C]."""
        columns = [obs[..., : self.moved.start], obs[..., self.moved.stop :]]
        if self.privileged:
            theta = (theta_to_matrix(self.env.sampled_customers) - self.mean) / self.std
            columns.append(theta.to(obs).expand(*obs.shape[:-1], -1))
        return torch.cat(columns, -1)

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
        tables = []
        for values in next_values:
            beyond = functional.pad(values.flatten(0, 1), (0, 0, 0, n))  # after the last week nothing is beyond V⁰
            then = next_week._replace(subscribed=next_week.subscribed + beyond.T.unflatten(0, LEVELS))
            tables.append(action_values(customers, env.world, week, at, env.prices.flatten(), then))
        nothing, contact = tables[0][0], tables[-1][1]  # the first future is without a contact, the last with one
        every = torch.ones(weeks * n, 1, dtype=torch.bool, device=state.device)
        table = pair_table(nothing - this_week.at(at.state), contact - this_week.at(at.state), every)
        return torch.where(state[..., None] < self.num_states, table.unflatten(0, (weeks, n)), 0.0)

    def redeem_probability(self, obs: Tensor) -> Tensor:
        """Return P(redeem) of every pair in the states of a season's observations [T, N, D], [T, N, offers, channels].

        Seen, bought and redeemed are independent: P = q(channel) · p1(offer) · μ; nothing is never redeemed.
        """
        customers, world = self.env.customers, self.env.world
        state = self.env.codec.decode_state(obs.flatten(0, 1))
        h, f, d = (x.unflatten(0, obs.shape[:2]).to(obs) for x in state[:3])
        b = utility(customers, h, d, world.season[:, None])
        seen = attention(customers.omega[:, None], customers, f)
        bought = purchase_if_seen(customers, b, d, world.catalogue.value[:, None, None])
        redeemed = (bought * customers.mu)[:, None] * seen
        redeemed[0] = 0.0
        return redeemed.permute(2, 3, 0, 1)
