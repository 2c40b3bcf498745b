"""One decision as a function of tensors: from a customer's columns to what a trained policy prefers at each price."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.policies import scoring
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CustomerState
from envs.offers.world.observation import ObservationCodec
from rlcore.algorithm import Policy
from rlcore.network_algorithm import AuxiliaryModel


class DecisionInputs(NamedTuple):
    """What a decision on N customers depends on, beside prices."""

    numbers: Tensor  # columns of numbers in the package's order, NaN: missing, float64 [N, A]
    levels: Tensor  # code of each column of text's level, the last code being "unknown", int64 [N, L]
    memory: Tensor  # what the observation remembers, float32 [N, M]
    caps_left: Tensor  # shares of the contact caps that are left, now and in later weeks, float32 [N, K + L]
    week: Tensor  # of the season, from 0, int64 []
    action_mask: Tensor  # pairs that may be sent, bool [N, P]

    @property
    def num_customers(self) -> int:
        """Number of customers N."""
        return len(self.numbers)

    def take(self, rows) -> DecisionInputs:
        """Take some of the customers."""
        parts = {name: x[rows] for name, x in self._asdict().items() if name != "week"}
        return DecisionInputs(week=self.week, **parts)


class Scores(NamedTuple):
    """What a policy prefers to send N customers at G prices, and what that is expected to cost."""

    logits: Tensor  # float32 [G, N, P], −inf where masked
    spend: Tensor  # expected, of every pair, float32 [N, P]


class Decide(nn.Module):
    """A trained policy with all that lies between a customer's columns and its preferences.

    `features` maps numbers [N, A] and codes of levels [N, L] to features [N, F]. `auxiliary` predicts who redeems.
    `modules` are the networks that policy and auxiliary model use. A codec of a view that hides the state never reads
    the states, which are therefore not given.
    """

    def __init__(
        self,
        policy: Policy,
        auxiliary: AuxiliaryModel,
        codec: ObservationCodec,
        catalogue: Catalogue,
        features: nn.Module,
        modules: list[nn.Module],
    ):
        super().__init__()
        assert codec.hides_state
        self.policy_networks = nn.ModuleList(modules)
        self.features = features
        self.policy, self.codec = policy, codec
        self._redeem_probability, self._catalogue = auxiliary.predict, catalogue

    def forward(
        self,
        numbers: Tensor,
        levels: Tensor,
        memory: Tensor,
        caps_left: Tensor,
        week: Tensor,
        action_mask: Tensor,
        prices: Tensor,
        drift: Tensor,
    ) -> Scores:
        """Score DecisionInputs at prices, float32 [G], whose logarithm drifts by `drift`, float32 [], a week."""
        context, spend = self.context_and_spend(numbers, levels, memory, caps_left, week, action_mask)
        drift = drift.expand(prices.shape[0])
        logits = scoring.grid_preferences_at_once(self.policy, self.codec, context, action_mask, spend, prices, drift)
        return Scores(logits, spend)

    def context_and_spend(
        self, numbers: Tensor, levels: Tensor, memory: Tensor, caps_left: Tensor, week: Tensor, action_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what does not depend on the price: the contexts [N, D] and the expected spend of every pair [N, P]."""
        nothing = torch.zeros_like(memory[:, 0], dtype=torch.long)
        no_states = CustomerState(nothing, nothing, nothing, nothing)
        options = ContactOptions(action_mask, caps_left, memory=memory)
        features = self.features(numbers, levels).float()
        context = scoring.encode_context(self.codec, features, no_states, options, week)
        return context, scoring.expected_spend(self._catalogue, self._redeem_probability(context))
