"""Behaviours of the offers world that a log's decisions come from: a rule, a planner at private prices, a confounded one."""
from __future__ import annotations

import torch
from torch import Tensor

from envs.data_collection import Behaviour
from envs.offers.planning.knapsack import Increments
from envs.offers.planning.triton_organic_value import organic
from envs.offers.policies.learned import Knapsack, Response
from envs.offers.planning.dynamic_program import best_plan
from envs.offers.world.response import utility
from rlcore.exploration import floored


class Rule(Behaviour):
    """One of the trade's rules (envs/offers/policies/learned.py, Response) for the `share` of customers it ranks first, and with a
    share ε of decisions any valid pair."""

    def __init__(self, *, uplift: bool, share: float, epsilon: float):
        self.uplift, self.share, self.epsilon = uplift, share, epsilon

    def probs(self, env, obs, mask):
        steps = Response(env.customers, env.world, uplift=self.uplift).increments(env.week, env.state, env.allowed)
        score, action = steps.price[:, 0], steps.action[:, 0]
        first = score.argsort(descending=True, stable=True)[:round(self.share * len(score))]
        chosen = torch.zeros_like(action)
        chosen[first] = action[first] * (score[first] > -torch.inf)
        return floored(torch.nn.functional.one_hot(chosen, mask.shape[1]).double(), mask, self.epsilon)


class Jittered(Behaviour):
    """Each customer's best pair at a private price, that of the environment times exp(σξ), ξ standard normal.

    With `plans`, what follows is valued by the best plan at the environment's prices; without, left out. A share ε of
    decisions is drawn from all valid pairs.
    """

    def __init__(self, *, plans: bool, sigma: float, epsilon: float):
        self.plans, self.sigma, self.epsilon = plans, sigma, epsilon

    def reset(self, env):
        c, world = env.customers, env.world
        values = best_plan(c, world, organic(c, world), env.prices, contacts=env.permits.contacts)[0] if self.plans else None
        self.plan = Knapsack(c, world, "true θ", values=values, fee=0.0)

    def probs(self, env, obs, mask):
        steps = self.plan.increments(env.week, env.state, env.allowed)
        return floored(at_private_prices(steps, env.price, self.sigma, mask.shape[1]), mask, self.epsilon)


def at_private_prices(steps: Increments, price: Tensor, sigma: float, actions: int) -> Tensor:
    """Probabilities [N, P] of the pairs that steps (prices falling along a row) lead to at prices price·exp(σξ), [N].

    A pair is optimal between the price of its own step and that of the next: differences of normal distribution functions.
    """
    at = steps.price.double().clamp_min(0).log()  # no step: −inf
    below = torch.special.ndtr((at - price.double().log()[:, None]) / sigma)  # P(private price ≤ that of the step)
    taken = below - torch.cat((below[:, 1:], torch.zeros_like(below[:, :1])), 1)
    probs = torch.zeros(len(price), actions, dtype=below.dtype, device=below.device)
    probs[:, 0] = 1 - below[:, 0]
    return probs.scatter_add_(1, steps.action, taken)


class Confounded(Behaviour):
    """Who sends knows something that no log has: whether this week's customer is about to buy anyhow.

    Such a customer is contacted with probability `leaning`, others with 1 − `leaning`, by any valid pair. `told`: the log
    says nothing of probabilities (null), or what they are for whoever knows no more than the log.
    """

    def __init__(self, *, leaning: float, told: str | None):
        if told not in (None, "average"):
            raise ValueError(f"behaviour.told: expected null or average, got '{told}'")
        self.leaning, self.says = leaning, told

    def probs(self, env, obs, mask):
        h, _, d = (x.to(env.uniforms.dtype) for x in env.state[:3])
        buys = torch.sigmoid(utility(env.customers, h, d, env.world.season[env.week]))
        self.buys = buys.double()
        return self._contact(torch.where(env.uniforms[env.week, 0] < buys, self.leaning, 1 - self.leaning).double(), mask)

    def told(self, probs, mask):
        if self.says is None:
            return None
        return self._contact(self.buys * self.leaning + (1 - self.buys) * (1 - self.leaning), mask)

    @staticmethod
    def _contact(share: Tensor, mask: Tensor) -> Tensor:
        others = mask[:, 1:].sum(1, keepdim=True)
        share = torch.where(others[:, 0] > 0, share, 0.0)[:, None]
        return torch.cat((1 - share, share * mask[:, 1:] / others.clamp_min(1)), 1)


class Leaning(Confounded):
    """Who sends leans as much towards customers who are likely to buy anyhow, but knows no more of that than the log."""

    def __init__(self, *, leaning: float):
        super().__init__(leaning=leaning, told="average")

    def probs(self, env, obs, mask):
        super().probs(env, obs, mask)
        return self.told(None, mask)
