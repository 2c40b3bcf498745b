"""The priced weekly environment: every customer is an agent, and the shared budget reaches agents as a price."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import Step
from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.customer_env import CustomerEnv
from envs.offers.lookahead import OffersLookahead
from envs.offers.planning.state_values import StateValues
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.populations.base import Sample
from envs.offers.rewards import account_for_week, expected_reward_table, redeem_probability_table
from envs.offers.unlike.world import UnlikeWorld
from envs.offers.world.customers import CHURNED, UNIFORMS, CustomerState
from envs.offers.world.history import KINDS, History, PassedWeek, SeenWeek
from envs.offers.world.transition import transition


class OffersEnv(CustomerEnv):
    """An episode is one season of newly drawn customers, and every agent has a price path (envs/offers/README.md §6).

    The reward is A⁰ − price·spend, in money: A⁰ is the expected effect of the week's action on the profit of this and
    all later weeks, if nobody is contacted later. Without shaping the reward is r − price·spend, where r is the week's
    profit, and in the season's last week, in which all episodes end, V_end is added: the value of a customer after the
    season.
    """

    info_keys = ("redeemed", "contacted", "trips", "spend", "reward", "profit", "churned")
    graph_regions: tuple[str, ...] = ("advance_week", "remember_week", "observe_week")
    graph_state: tuple[str, ...] = (
        "features",
        "state",
        "contact_policy",
        "customers",
        "no_contact_values",
        "uniforms",
        "memory",
        "outcomes_so_far",
        "seen_so_far",
        "states_so_far",
        "prices",
        "drift",
        "options",
    )

    def reset(self) -> tuple[Tensor, Tensor]:
        """Draw the next season: customers, prices, all its random numbers; compute each customer's no-contact value."""
        n = self.num_agents
        sample = self.population.draw(n, self.generator, "train")
        self.sampled_customers = sample.customers
        self.features, self.state = sample.features.to(self.world.season), sample.state
        self.seen_features.update(self.features)
        self.contact_policy = self.contact_rules.policy(sample)
        self.week = 0
        self.passed: PassedWeek | None = None  # the previous week, where the view needs a memory
        self.memory = self.codec.start_memory(self.features)
        self._prepare_responses(sample)
        self.uniforms = torch.rand(self.episode_length, UNIFORMS, n, generator=self.generator, device=self.device)
        # the history's entries (KINDS) of each week so far
        self.outcomes_so_far = torch.zeros(len(KINDS), self.episode_length, n, device=self.device)
        # what a shop saw of each week so far, [T, N] each, where the view hides the state
        self.seen_so_far = SeenWeek.zeros(self.episode_length, n, like=self.uniforms)
        # the customers' true states at the start of each week, also where the view hides them
        self.states_so_far = torch.stack(self.state)[:, None].repeat(1, self.episode_length, 1)
        self.prices, self.drift = self._draw_price_paths(self.calendar[:, None], n, self.generator)
        self.options, obs = self._observe(History.start(self.state.status, self.world.season.dtype))
        return obs, self._action_mask()

    def _prepare_responses(self, sample: Sample) -> None:
        """Prepare the model of how the customers of a sample respond.

        Raises ValueError in a world whose equations are not this environment's (`env/world=unlike_…`).
        """
        if isinstance(self.world, UnlikeWorld):
            raise ValueError("env/world=unlike_…: other equations than those of this env: expected env=offers_unlike")
        self.customers = self.world.inhabit(sample.customers)
        self.no_contact_values = fast_no_contact_values(self.customers, self.world)

    def as_lookahead(self, privileged: bool) -> OffersLookahead | None:
        """Return the one-step model of a season; `privileged` shows θ to critics."""
        return OffersLookahead(self, privileged)

    def _observe(self, history: History) -> tuple[ContactOptions, Tensor]:
        """Return the contacts that each customer's history allows, and the customers' observations."""
        week = min(self.week, self.world.weeks - 1)
        # The history is a week longer every week, and a compiled function would meet a new length each time. So the
        # history is passed only where caps need it.
        recalled = history if self.contact_policy.caps else None
        options, obs = self.observe_week(
            self.calendar[week : week + 1], self.state, self.memory, recalled, self.prices[week]
        )
        return options._replace(history=history), obs

    def observe_week(
        self, week: Tensor, state: CustomerState, memory: Tensor, history: History | None, price: Tensor
    ) -> tuple[ContactOptions, Tensor]:
        """Do what `_observe` does, as a function of tensors, for a week [1] and its prices [N]; history may be None."""
        subscribed = self.codec.subscribed(state, memory)
        options = self.contact_policy(subscribed, [] if history is None else history.contacts)
        features = options.with_caps_left(self.features)
        return options, self.codec.encode(features, state, memory, week, price, self.drift)

    def remember_week(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return what the view remembers of the customers after a week, [N, M], as a function of tensors."""
        return self.codec.remember(memory, self.features, passed)

    def _action_mask(self) -> Tensor:
        return self.options.action_mask.unflatten(1, self.nvec)

    @property
    def price(self) -> Tensor:
        """Price of a unit of spend for each agent this week, [N]."""
        return self.prices[self.week]

    def expected_cost(self, probability: Tensor | None) -> Tensor:
        """Return the expected spend of every action [N, O+1, C], by the given P(redeem) or by the world's own."""
        if probability is None:
            probability = redeem_probability_table(self.customers, self.world, self.week, self.state)
        offer, channel = (torch.arange(n, device=self.device) for n in self.nvec)
        return self.world.catalogue.spend(offer[:, None], channel, probability)

    def expected_reward(self) -> Tensor:
        """Return this week's expected profit minus price·spend, [N, O+1, C], without later weeks."""
        mask = self.options.action_mask
        table = expected_reward_table(self.customers, self.world, self.week, self.state, self.price, mask)
        return table.unflatten(1, self.nvec)

    def step(self, action: Tensor) -> Step:
        """Send [N, 2] offers and channels where the mask allows them, and simulate the customers' week."""
        t, world = self.week, self.world
        is_last = t == world.weeks - 1
        next_state, outcomes_of_week, info = self.advance_week(
            self.calendar[t : t + 1],
            self.state,
            self.options.action_mask,
            action,
            self.uniforms[t],
            self.prices[t],
            self.no_contact_values[t],
            self.no_contact_values[t + 1],
        )
        if is_last and not world.reward.shaping:
            info["reward"] = info["reward"] + self.no_contact_values[-1].at(next_state)
        if self.codec.memory_dim:
            offer, channel = action.unbind(-1)
            seen = SeenWeek.between(
                self.state.status,
                next_state.status,
                offer=torch.where(info["contacted"], offer, 0),
                channel=channel,
                bought=info["trips"],
                redeemed=info["redeemed"],
                margin=self.customers.margin,
            )
            if self.codec.hides_state:
                for weeks, week in zip(self.seen_so_far, seen):
                    weeks[t].copy_(week)
            passed = PassedWeek(self.calendar[t : t + 1], seen, self.state, next_state)
            self.passed, self.memory = passed, self.remember_week(self.memory, passed)
        self.outcomes_so_far[:, t].copy_(outcomes_of_week)
        if not is_last:
            self.states_so_far[:, t + 1].copy_(torch.stack(next_state))
        self.state, self.week = next_state, t + 1
        self.options, obs = self._observe(History(next_state.status, *self.outcomes_so_far[:, : t + 1]))
        ends = torch.full((self.num_agents,), is_last, device=self.device)
        return Step(
            obs=obs,
            action_mask=self._action_mask(),
            reward=info["reward"],
            terminated=ends,
            truncated=torch.zeros_like(ends),
            final_obs=obs,
            info=info,
        )

    def advance_week(
        self,
        week: Tensor,
        state: CustomerState,
        action_mask: Tensor,
        action: Tensor,
        u: Tensor,
        price: Tensor,
        no_contact_values: StateValues,
        next_no_contact_values: StateValues,
    ) -> tuple[CustomerState, Tensor, dict[str, Tensor]]:
        """Advance the customers by one week, as a function of tensors.

        `week` [1] is the week's number; `no_contact_values` and `next_no_contact_values` are V⁰ of this week and of the
        next. Actions [N, 2] are sent where the mask [N, P] allows them, and uniforms u [6, N] draw the outcomes.
        Returns the next state, the week's additions to the history [5, N], and info.
        """
        customers, world = self.customers, self.world
        offer, channel = action.unbind(-1)
        offer = self.contact_policy.enforce(action_mask, offer, channel)
        next_state, bought, redeemed, expected = transition(customers, world, week, state, offer, channel, u)
        account = account_for_week(
            customers,
            world,
            week,
            price,
            state=state,
            next_state=next_state,
            offer=offer,
            channel=channel,
            bought=bought,
            redeemed=redeemed,
            expected=expected,
            no_contact_values=no_contact_values,
            next_no_contact_values=next_no_contact_values,
        )
        outcomes_of_week = History.week(world.catalogue, offer, channel, bought, redeemed.to(u))
        info = {
            "redeemed": redeemed,
            "contacted": offer > 0,
            "trips": bought,
            "spend": account.spend,
            "reward": account.reward,
            "profit": account.profit,
            "churned": next_state.status == CHURNED,
        }
        return next_state, outcomes_of_week, info
