"""Deploy a trained policy in a market: by its choices on a grid of prices, or by a knapsack on its values."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.knapsack import Increments, compact, demand_curve, ranked, upper_hull
from envs.offers.policies import scoring
from envs.offers.policies.base import BatchedPolicy
from envs.offers.policies.information import FEATURES, SIMULATOR, Information
from envs.offers.world.customers import Customers, CustomerState, Rows, World
from envs.offers.world.history import PassedWeek
from envs.offers.world.observation import ObservationCodec
from envs.offers.world.response import outcomes
from rlcore.algorithm import Policy, ValuePolicy
from rlcore.network_algorithm import NetworkAlgorithm


class CodecView:
    """The view of a policy over observations of customers with features [N, F]."""

    def __init__(self, codec: ObservationCodec, features: Tensor):
        self.codec, self.features = codec, features

    def start(self, state: CustomerState) -> Tensor:
        """Return the memory at the start of a season, [N, M]."""
        return self.codec.start_memory(self.features)

    def after(self, memory: Tensor, passed: PassedWeek) -> Tensor:
        """Return the memory after a week."""
        return self.codec.remember(memory, self.features, passed)

    def subscribed(self, memory: Tensor, state: CustomerState) -> Tensor:
        """Customers who, as far as the view tells, can be contacted, bool [N]."""
        return self.codec.subscribed(state, memory)


class DeployedPolicy(BatchedPolicy):
    """A trained policy over observations of the customers of one market.

    `redeem_probability` maps contexts [B, D] to P(redeem) [B, O+1, C]; with None, the expected spend is the world's
    own. `learned_from` says what training was given, in words.
    """

    def __init__(
        self,
        policy: Policy,
        redeem_probability: Callable[[Tensor], Tensor] | None,
        codec: ObservationCodec,
        customers: Customers,
        world: World,
        features: Tensor,
        *,
        learned_from: tuple[str, ...] = (SIMULATOR,),
    ):
        self.policy, self.redeem_probability, self.codec = policy, redeem_probability, codec
        self.customers, self.world, self.features = customers, world, features.float()
        self.view = CodecView(codec, self.features)
        self.information = Information(
            FEATURES,
            codec.shows,
            equations=codec.uses_equations,
            true_spend=redeem_probability is None,
            training=(*learned_from, *codec.learned_from),
        )

    def context_and_spend(
        self, rows: Rows, week: int, state: CustomerState, options: ContactOptions
    ) -> tuple[Tensor, Tensor]:
        """Return contexts [N, D] and the expected spend of every flat action [N, P]."""
        context = scoring.encode_context(self.codec, self.features[rows], state, options, week)
        if self.redeem_probability is None:
            return context, outcomes(self.customers[rows], self.world, week, state).spend
        return context, scoring.expected_spend(self.world.catalogue, self.redeem_probability(context))


class PriceGridPolicy(DeployedPolicy):
    """A policy that observes the price, evaluated on a grid of falling prices.

    `drift` is the weekly change of the log price that the policy observes. What a policy prefers at a price is said by
    envs/offers/policies/scoring.py, of logits and of action values alike.
    """

    def __init__(
        self, policy: Policy, *setting, prices: Tensor, drift: float, learned_from: tuple[str, ...] = (SIMULATOR,)
    ):
        super().__init__(policy, *setting, learned_from=learned_from)
        self.prices = prices.float()
        self.drift = torch.full_like(prices, drift).float()

    @torch.no_grad()
    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return every customer's changes of action on the price grid."""
        context, spend = self.context_and_spend(rows, week, state, options)
        preferences = scoring.grid_preferences(
            self.policy, self.codec, context, options.action_mask, spend, self.prices, self.drift
        )
        return compact(demand_curve(preferences, spend, self.prices))


class ValueKnapsackPolicy(DeployedPolicy):
    """The exact knapsack of the week on the values of a ValuePolicy that does not observe the price.

    `fee` is charged a contact, in money, as in KnapsackPolicy.
    """

    policy: ValuePolicy
    keeps_budget = True
    fee = 0.0

    @torch.no_grad()
    def batch_increments(self, rows: Rows, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return every customer's efficient increments."""
        context, spend = self.context_and_spend(rows, week, state, options)
        values = self.policy.action_values(context, options.action_mask).to(spend)
        if self.fee:
            values = values.clone()
            values[:, self.world.catalogue.action_codec.contacts] -= self.fee
        if self.keeps_budget:
            return upper_hull(values, spend)
        value, action = values.max(1)
        return ranked(value, torch.zeros_like(value), action)

    def with_fee(self, fee: float) -> ValueKnapsackPolicy:
        """Return the policy with a fee a contact."""
        policy = copy(self)
        policy.fee = fee
        return policy

    def without_budget(self) -> ValueKnapsackPolicy:
        """Return the policy that ignores the budget: every customer gets the action of the highest value."""
        policy = copy(self)
        policy.keeps_budget = False
        return policy


def deploy_policy(
    algorithm: NetworkAlgorithm,
    codec: ObservationCodec,
    customers: Customers,
    world: World,
    features: Tensor,
    *,
    prices: Tensor,
    drift: float,
) -> DeployedPolicy:
    """Deploy the policy of a trained algorithm, by its kind, for the customers of one market.

    A policy that observes the price is evaluated at `prices` (falling) with a weekly `drift`; other policies are
    cleared by their values.
    """
    policy = algorithm.policy
    redeem_probability = algorithm.auxiliary.predict if algorithm.auxiliary else None
    setting = (redeem_probability, codec, customers, world, features)
    learned_from = algorithm.learned_from
    if not policy.observes_price:
        return ValueKnapsackPolicy(policy, *setting, learned_from=learned_from)
    return PriceGridPolicy(policy, *setting, prices=prices, drift=drift, learned_from=learned_from)
