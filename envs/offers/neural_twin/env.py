"""The priced weekly environment on a neural twin: networks in place of the world's equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor

from envs.base import Step
from envs.offers.env import OffersEnv
from envs.offers.neural_twin.counterfactual import Counterfactual
from envs.offers.neural_twin.customers import NeuralCustomers
from envs.offers.neural_twin.ensemble import NeuralEnsemble
from envs.offers.neural_twin.evaluation import NeuralTwinEvaluator
from envs.offers.populations.base import Sample
from envs.offers.rewards import cost_of_silence
from envs.offers.twin.structural_model import KIND as STRUCTURAL
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.twin.twin_checkpoint import twin_kind
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, CustomerState
from envs.offers.world.history import PassedWeek


class NeuralTwinEnv(OffersEnv):
    """OffersEnv's contract, prices, rules and observations, on customers that a neural twin simulates.

    `twin` is the path of a checkpoint of algo=twin algo/twin=neural. With shaping, the reward is the expected profit,
    less that of the same customer, never contacted, under the same random numbers, less price·spend. After the last
    week both customers go on without a contact for the world's tail weeks. Nobody churns by chance: profits are
    weighted by the probability of being there. With `outcomes: realised` churn is drawn and rewards are realised.
    NeuralTwinEvaluator compares policies, with the settings of `evaluation`.
    """

    graph_regions = ("remember_week", "observe_week")
    graph_state = ()  # each season evaluates other members on other rows

    def __init__(
        self,
        device: torch.device,
        seed: int,
        *,
        twin: str,
        num_agents: int,
        catalogue: Catalogue,
        world: Callable,
        reward,
        population: Callable,
        observation: Callable,
        contact_rules: Callable,
        budget,
        evaluation: partial,
        price_range: list,
        drift_range: list,
        price_noise: float,
        clip_margin: float,
        price_paths: int,
        exploring_starts: float,
    ):
        super().__init__(
            device,
            seed,
            num_agents=num_agents,
            catalogue=catalogue,
            world=world,
            reward=reward,
            population=population,
            observation=observation,
            contact_rules=contact_rules,
            budget=budget,
            evaluation=partial(NeuralTwinEvaluator, **evaluation.keywords),
            price_range=price_range,
            drift_range=drift_range,
            price_noise=price_noise,
            clip_margin=clip_margin,
            price_paths=price_paths,
            exploring_starts=exploring_starts,
        )
        self.twin = NeuralEnsemble(twin, self)
        if not self.codec.hides_state:
            raise ValueError(
                f"env.twin={twin}: a neural twin knows no habit, fatigue or expectation: expected "
                "env/observation=history"
            )
        if self.world.reward.fatigue_penalty:
            raise ValueError("env.reward.fatigue_penalty: expected 0, for a neural twin knows no fatigue")

    def _prepare_responses(self, sample: Sample) -> None:
        customers = self.twin.customers(self.features, self.world)
        self.season = Counterfactual(customers, sample.state.status, realised=self.world.reward.outcomes == "realised")

    def as_lookahead(self, privileged: bool) -> None:
        """Return None: networks of histories know no distribution of a next state."""
        return None

    @property
    def neural_customers(self) -> NeuralCustomers:
        """The customers of this season."""
        return self.season.customers

    def _profit_and_spend(self) -> tuple[Tensor, Tensor]:
        history = self.options.history
        assert history is not None  # the environment keeps it with the options
        return self.neural_customers.profit_and_spend(self.week, history)

    def expected_cost(self, probability: Tensor | None) -> Tensor:
        """Return the expected spend of every action, [N, O+1, C], by a probability of redeeming or the twin's own."""
        if probability is not None:
            return super().expected_cost(probability)
        _, spend = self._profit_and_spend()
        return spend.unflatten(1, self.nvec)

    def expected_reward(self) -> Tensor:
        """Return this week's expected profit less its spend at the price, [N, O+1, C], without later weeks."""
        profit, spend = self._profit_and_spend()
        customers, price = self.neural_customers, self.price[:, None]
        cost = self.world.catalogue.spend(customers.offer, customers.channel, torch.zeros_like(spend[0]))
        silent = self.state.status[:, None] == CHURNED
        reward = torch.where(silent, -(1 + price) * cost, profit - price * spend)
        return reward.masked_fill(~self.options.action_mask, -torch.inf).unflatten(1, self.nvec)

    def step(self, action: Tensor) -> Step:
        """Send [N, 2] offers and channels where the mask allows them; simulate the week with and without them."""
        t, shaping, season = self.week, self.world.reward.shaping, self.season
        offer, channel = action.unbind(-1)
        offer = self.contact_policy.enforce(self.options.action_mask, offer, channel)
        p_active = season.track.p_active
        week, profit, no_contact_profit = season.simulate_week(t, offer, channel, self.uniforms[t])
        unheard = cost_of_silence(self.world.catalogue, self.state, offer, channel)
        spend = (week.paid if season.realised else p_active * week.spend) + unheard
        profit = profit - unheard
        if shaping:
            profit = profit - no_contact_profit
        reward = profit - self.prices[t] * spend
        last = t == self.world.weeks - 1
        if last:
            tail, no_contact_tail = season.tail_values()
            reward = reward + tail
            if shaping:
                reward = reward - no_contact_tail
        status = week.next_history.status
        hidden = torch.zeros_like(status)
        next_state = CustomerState(hidden, hidden, hidden, status)
        seen = week.seen(offer, channel, self.state.status)
        passed = PassedWeek(self.calendar[t : t + 1], seen, self.state, next_state)
        self.memory = self.remember_week(self.memory, passed)
        self.state, self.week = next_state, t + 1
        self.options, obs = self._observe(week.next_history)
        ends = torch.full((self.num_agents,), last, device=self.device)
        info = {
            "redeemed": week.redeemed,
            "contacted": offer > 0,
            "trips": week.bought,
            "spend": spend,
            "reward": reward,
            "profit": profit,
            "churned": status == CHURNED,
        }
        return Step(obs, self._action_mask(), reward, ends, torch.zeros_like(ends), obs, info)


@wraps(NeuralTwinEnv, updated=())
def make_twin_env(device: torch.device, seed: int, *, twin: str | None, **parts) -> OffersEnv:
    """Build the environment of a twin's customers or, where `twin` is null, of the same customers' true responses.

    The customers of a structural twin have parameters, and so they are a population of OffersEnv.
    """
    if twin is None:
        return OffersEnv(device, seed, **parts)
    if twin_kind(twin, "env.twin") == STRUCTURAL:
        base = parts.pop("population")
        return OffersEnv(device, seed, population=partial(TwinPopulation, base=base, path=twin), **parts)
    return NeuralTwinEnv(device, seed, twin=twin, **parts)
