"""A market as policies on estimates see it: before and after a customer's first purchase."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.wrappers import MarginsSeenPolicy


class Estimates(NamedTuple):
    """A market with estimated parameters θ̂, and the same with the margins that purchases show."""

    market: EvaluationMarket  #: with θ̂
    with_margins: EvaluationMarket | None  #: with θ̂ but for margins, which are true; None where no view shows them

    def policy(self, make: Callable[[EvaluationMarket], SeasonPolicy]) -> SeasonPolicy:
        """Return the policy that `make` makes of a market, with each customer's margin from the first purchase on."""
        policy = make(self.market)
        return policy if self.with_margins is None else MarginsSeenPolicy(policy, make(self.with_margins))
