"""Logging policies of the offers world: a ranking rule, a planner at private prices, confounded and biased senders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.data_collection import LoggingPolicy
from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.dynamic_program import best_plan
from envs.offers.planning.knapsack import Increments
from envs.offers.planning.state_values import StateValues
from envs.offers.planning.triton_no_contact_value import fast_no_contact_values
from envs.offers.policies.baselines import KnapsackPolicy, ResponseRanking
from envs.offers.policies.belief_planner import BeliefPlanner, BeliefView
from envs.offers.policies.information import FEATURES, ORACLE, Information
from envs.offers.populations.base import Sample
from envs.offers.world.belief_observation import ThetaEstimate, start_marginals
from envs.offers.world.customers import Customers
from envs.offers.world.response import utility
from rlcore.exploration.rules import floored


class RankingPolicy(LoggingPolicy):
    """A marketer's rule (ResponseRanking) for the `share` of customers that the rule ranks first.

    A share ε of decisions is drawn from all valid pairs.
    """

    def __init__(self, *, uplift: bool, share: float, epsilon: float):
        self.uplift, self.share, self.epsilon = uplift, share, epsilon

    def probs(self, env, obs, action_mask):
        steps = ResponseRanking(env.customers, env.world, uplift=self.uplift).increments(
            env.week, env.state, env.options
        )
        score, action = steps.price[:, 0], steps.action[:, 0]
        first = score.argsort(descending=True, stable=True)[: round(self.share * len(score))]
        chosen = torch.zeros_like(action)
        chosen[first] = action[first] * (score[first] > -torch.inf)
        return floored(torch.nn.functional.one_hot(chosen, action_mask.shape[1]).double(), action_mask, self.epsilon)


class PricePerturbedPolicy(LoggingPolicy):
    """Each customer's best pair at a private price: the environment's price times exp(σξ), ξ standard normal.

    With `plans`, the best plan at the environment's prices values the future; without, the future is left out. A share
    ε of decisions is drawn from all valid pairs.

    Where the environment's view hides the state, the planner is one that a shop can have: it decides on θ̂, which
    `theta` estimates from features, and on the filtered belief about the state under θ̂ (BeliefPlanner). The estimate is
    fitted to `reference_size` customers, drawn by `reference_seed`, whose states are the belief at the start. With
    `sees_hidden` it decides on the true θ and state nonetheless: what a log of the view lacks then confounds decisions.
    Where the view shows the state, it always decides on the state and the true θ, of which features may tell a part.
    """

    def __init__(
        self,
        *,
        plans: bool,
        sigma: float,
        epsilon: float,
        sees_hidden: bool,
        theta: Callable[[Sample | None], ThetaEstimate],
        reference_size: int,
        reference_seed: int,
    ):
        self.plans, self.sigma, self.epsilon, self.sees_hidden = plans, sigma, epsilon, sees_hidden
        self.theta, self.reference_size, self.reference_seed = theta, reference_size, reference_seed

    def reset(self, env):
        self.memory: Tensor | None = None  # P(state | what was seen) [N, 79], where the state is hidden
        if self.sees_hidden or not env.codec.hides_state:
            self.plan = KnapsackPolicy(
                env.customers, env.world, ORACLE, values=self.values(env, env.customers), fee=0.0
            )
            return
        generator = torch.Generator(env.device).manual_seed(self.reference_seed)
        sample = env.population.draw(self.reference_size, generator, "train")
        customers = env.world.inhabit(self.theta(sample)(env.features))
        view = BeliefView(customers, env.world, start_marginals(sample.state))
        information = Information(FEATURES, ("beliefs",), equations=True)
        self.plan = BeliefPlanner(customers, env.world, information, view, values=self.values(env, customers), fee=0.0)
        self.memory = view.start(env.state)

    def values(self, env, customers: Customers) -> list[StateValues] | None:
        """Return the best plan's values at the environment's prices, weeks 1..T+1; None where nothing is planned."""
        if not self.plans:
            return None
        no_contact = fast_no_contact_values(customers, env.world)
        return best_plan(customers, env.world, no_contact, env.prices, contacts=env.contact_policy.contacts)[0]

    def options(self, env) -> ContactOptions:
        """Return this week's options, with the belief after the weeks so far where the state is hidden."""
        if self.memory is None:
            return env.options
        if env.week:
            self.memory = self.plan.view.after(self.memory, env.passed)
        return env.options._replace(memory=self.memory)

    def probs(self, env, obs, action_mask):
        steps = self.plan.increments(env.week, env.state, self.options(env))
        return floored(at_private_prices(steps, env.price, self.sigma, action_mask.shape[1]), action_mask, self.epsilon)


def at_private_prices(steps: Increments, price: Tensor, sigma: float, actions: int) -> Tensor:
    """Return the probabilities [N, P] of the pairs that `steps` reach at private prices price·exp(σξ), [N].

    Prices of steps fall along a row. A pair is optimal between the price of its own step and that of the next step, so
    its probability is a difference of normal distribution functions.
    """
    below = reach_probabilities(steps, price, sigma)
    taken = below - torch.cat((below[:, 1:], torch.zeros_like(below[:, :1])), 1)
    probs = torch.zeros(len(price), actions, dtype=below.dtype, device=below.device)
    probs[:, 0] = 1 - below[:, 0]
    return probs.scatter_add_(1, steps.action, taken)


def reach_probabilities(steps: Increments, price: Tensor, sigma: float) -> Tensor:
    """Return the probability that a private price price·exp(σξ), [N], is at most that of each step, float64 [N, K].

    With σ = 0 it is 0 or 1.
    """
    if sigma == 0:
        return (steps.price >= price[:, None]).double()
    at = steps.price.double().clamp_min(0).log()  # no step: −inf
    return torch.special.ndtr((at - price.double().log()[:, None]) / sigma)


class ConfoundedPolicy(LoggingPolicy):
    """The sender knows something that no log has: whether this week's customer is about to buy anyway.

    A customer who is about to buy is contacted with probability `buyer_contact_rate`, any other customer with 1 −
    `buyer_contact_rate`, by any valid pair. `reported_propensities` are none (null), or those of a sender who knows no
    more than the log (average).
    """

    def __init__(self, *, buyer_contact_rate: float, reported_propensities: str | None):
        if reported_propensities not in (None, "average"):
            raise ValueError(
                f"logging_policy.reported_propensities: expected null or average, got '{reported_propensities}'"
            )
        self.buyer_contact_rate, self.reported_propensities = buyer_contact_rate, reported_propensities

    def probs(self, env, obs, action_mask):
        h, _, d = (x.to(env.uniforms.dtype) for x in env.state[:3])
        buys = torch.sigmoid(utility(env.customers, h, d, env.world.season[env.week]))
        self.buys = buys.double()
        rate = self.buyer_contact_rate
        return contact_with(torch.where(env.uniforms[env.week, 0] < buys, rate, 1 - rate).double(), action_mask)

    def reported(self, probs, action_mask):
        return None if self.reported_propensities is None else self.average(action_mask)

    def average(self, action_mask: Tensor) -> Tensor:
        """Return probabilities [N, P], averaged over the information that the log lacks."""
        rate = self.buyer_contact_rate
        return contact_with(self.buys * rate + (1 - self.buys) * (1 - rate), action_mask)


class SelectionBiasPolicy(ConfoundedPolicy):
    """The sender prefers likely buyers as much, but knows no more about a customer than the log."""

    def __init__(self, *, buyer_contact_rate: float):
        super().__init__(buyer_contact_rate=buyer_contact_rate, reported_propensities="average")

    def probs(self, env, obs, action_mask):
        super().probs(env, obs, action_mask)
        return self.average(action_mask)


def contact_with(share: Tensor, action_mask: Tensor) -> Tensor:
    """Return probabilities [N, P] of a contact, by any valid pair, with probability `share` [N] where one is valid."""
    contacts = action_mask[:, 1:].sum(1, keepdim=True)
    share = torch.where(contacts[:, 0] > 0, share, 0.0)[:, None]
    return torch.cat((1 - share, share * action_mask[:, 1:] / contacts.clamp_min(1)), 1)
