"""The priced weekly environment on a neural twin: networks in place of the world's equations."""
from __future__ import annotations

from functools import partial, wraps

import torch
from torch import Tensor

from envs.base import VectorEnv, Step
from envs.offers.env import OffersEnv
from envs.offers.neural_twin.customers import Contrast, Crowd
from envs.offers.neural_twin.fit import Ensemble
from envs.offers.neural_twin.evaluation import Simulated
from envs.offers.world.customers import CHURNED, CustomerState
from rlcore import checkpoint


class NeuralEnv(OffersEnv):
    """The same contract, prices, rules and view as OffersEnv; no dynamic program.

    With shaping, the reward is expected profit less that of the customer's rested self under the same random numbers, less
    price·spend; after the last week both go on without a contact for the world's tail weeks. Nobody churns by chance: profits
    are weighted by the probability of being there. Rewards of what came true (`outcomes: realised`) have churn drawn.
    """

    graph_regions = ("observe_week",)
    graph_state = ()  # a season asks other rows of other members

    def __init__(self, *args, twin: str, evaluation: partial, **parts):
        super().__init__(*args, twin=None, evaluation=partial(Simulated, **evaluation.keywords), **parts)
        if not self.codec.hides_state:
            raise ValueError(f"env.twin={twin}: a neural twin knows no habit, fatigue or expectation: expected "
                             "env/observation=history")
        if self.world.reward.fatigue_penalty:
            raise ValueError("env.reward.fatigue_penalty: expected 0, for a neural twin knows no fatigue")
        self.twin = Ensemble(twin, self)

    def _prepare_responses(self, sample) -> None:
        crowd = self.twin.crowd(self.features, self.world)
        self.contrast = Contrast(crowd, sample.state.status, realised=self.world.reward.outcomes == "realised")

    @property
    def crowd(self) -> Crowd:
        """This season's customers."""
        return self.contrast.crowd

    def expected_cost(self, probability: Tensor | None) -> Tensor:
        """Return the expected spend of every action, [N, O+1, C], by the probability of redeeming, or by the twin's own."""
        if probability is not None:
            return super().expected_cost(probability)
        return self.crowd.worth(self.week, self.mask.history)[1].unflatten(1, self.nvec)

    def expected_reward(self) -> Tensor:
        """This week's profit less its spend at the price, [N, O+1, C], with nothing of what follows."""
        profit, spend = self.crowd.worth(self.week, self.mask.history)
        worth = torch.where(self.state.status[:, None] == CHURNED, 0.0, profit - self.price[:, None] * spend)
        return worth.masked_fill(~self.mask.allowed, -torch.inf).unflatten(1, self.nvec)

    def step(self, action: Tensor) -> Step:
        """Send [N, 2] offers and channels, where they are allowed; the customers' week goes by, and their rested selves'."""
        t, shaping, contrast = self.week, self.world.reward.shaping, self.contrast
        offer, channel = action.unbind(-1)
        offer = self.contact_policy.enforce(self.mask.allowed, offer, channel)
        alive = contrast.life.alive
        lived, profit, rested = contrast.live(t, offer, channel, self.uniforms[t])
        following, spend = lived.following.status, lived.paid if contrast.realised else alive * lived.spend
        profit = profit - rested if shaping else profit
        reward = profit - self.prices[t] * spend
        last = t == self.world.weeks - 1
        if last:
            after, resting = contrast.tails()
            reward = reward + after - resting if shaping else reward + after
        self.state, self.week = CustomerState(*(torch.zeros_like(following) for _ in range(3)), following), t + 1
        self.mask, obs = self._observe(lived.following)
        ends = torch.full((self.num_agents,), last, device=self.device)
        info = {"redeemed": lived.redeemed, "contacted": offer > 0, "trips": lived.bought, "spend": spend, "reward": reward,
                "profit": profit, "churned": following == CHURNED}
        return Step(obs, self._action_mask(), reward, ends, torch.zeros_like(ends), obs, info)


@wraps(OffersEnv, updated=())
def twinned(device, seed, **parts) -> VectorEnv:
    """Open the environment that a twin's kind needs: OffersEnv for a structural one and for none, else NeuralEnv."""
    neural = bool(parts["twin"]) and "halvings" in checkpoint.load(parts["twin"]).get("agent", {})
    return (NeuralEnv if neural else OffersEnv)(device, seed, **parts)
