"""The weekly environment in a world outside the family: what happens is drawn, and rewards are realised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from envs.base import Step
from envs.offers.env import OffersEnv
from envs.offers.populations.base import Sample
from envs.offers.unlike.world import UNLIKE_UNIFORMS, UnlikeWorld
from envs.offers.world.customers import CHURNED
from envs.offers.world.history import History, PassedWeek


class UnlikeEnv(OffersEnv):
    """OffersEnv's contract, prices, rules and observations in an UnlikeWorld (envs/offers/unlike/world.py).

    Rewards are realised and without shaping, for there is no value of never contacting a customer, and views hide the
    state. Policies are compared by scripts/bench.py learning/unlike: there is no bound. Raises ValueError where the
    world is of the family, or the view shows the state.
    """

    world: UnlikeWorld
    graph_regions = ()
    graph_state = ()

    def __init__(self, device: torch.device, seed: int, *, evaluation: Callable, **parts):
        super().__init__(device, seed, evaluation=no_evaluation, **parts)
        if not isinstance(self.world, UnlikeWorld):
            raise ValueError("env=offers_unlike: expected env/world=unlike_link, unlike_shocks or unlike_segments")
        if not self.codec.hides_state:
            raise ValueError("env=offers_unlike: expected a view that hides the state, as env/observation=history")
        for name, cost in (
            ("churn_cost", self.world.reward.churn_cost),
            ("fatigue_penalty", self.world.reward.fatigue_penalty),
        ):
            if cost:
                raise ValueError(f"env.reward.{name}: expected 0, as env=offers_unlike does not charge it, got {cost}")
        self.world.reward = replace(self.world.reward, shaping=False, outcomes="realised", terminal=0.0)

    def _prepare_responses(self, sample: Sample) -> None:
        self.customers = self.world.inhabit(sample.customers)
        self.extra = self.world.start_memory(self.customers)

    def reset(self) -> tuple[Tensor, Tensor]:
        """Draw the next season, with the world's own random numbers."""
        observed = super().reset()
        shape = (self.episode_length, UNLIKE_UNIFORMS, self.num_agents)
        self.uniforms = torch.rand(shape, generator=self.generator, device=self.device)
        return observed

    def as_lookahead(self, privileged: bool) -> None:
        """Return None: the world has no distribution of a next state to look ahead by."""
        return None

    def step(self, action: Tensor) -> Step:
        """Send [N, 2] offers and channels where the mask allows them, and draw the customers' week."""
        t, world, state = self.week, self.world, self.state
        offer, channel = action.unbind(-1)
        offer = self.contact_policy.enforce(self.options.action_mask, offer, channel)
        week = world.advance(self.customers, t, state, self.extra, offer, channel, self.uniforms[t])
        spend = world.catalogue.spend(offer, channel, week.redeemed.to(week.margin))
        profit = week.margin + world.reward.trips * week.bought - spend
        reward = profit - self.prices[t] * spend
        seen = week.seen(offer, channel, state.status)
        passed = PassedWeek(self.calendar[t : t + 1], seen, state, week.state)
        self.passed, self.memory = passed, self.remember_week(self.memory, passed)
        entry = History.week(world.catalogue, offer, channel, week.bought, week.redeemed.to(week.margin))
        self.outcomes_so_far[:, t].copy_(entry)
        self.state, self.extra, self.week = week.state, week.memory, t + 1
        self.options, obs = self._observe(History(self.state.status, *self.outcomes_so_far[:, : t + 1]))
        ends = torch.full((self.num_agents,), t == world.weeks - 1, device=self.device)
        info = {
            "redeemed": week.redeemed,
            "contacted": offer > 0,
            "trips": week.bought,
            "spend": spend,
            "reward": reward,
            "profit": profit,
            "churned": self.state.status == CHURNED,
        }
        return Step(obs, self._action_mask(), reward, ends, torch.zeros_like(ends), obs, info)


def no_evaluation(env: OffersEnv) -> None:
    """Refuse to score policies against a bound that does not hold."""
    raise ValueError(
        "env=offers_unlike: the world has no dynamic program, so no bound and no score: expected scripts/bench.py "
        "learning/unlike, which compares profits"
    )
