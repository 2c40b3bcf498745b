"""Policies of known logits or values, as algorithms have them."""

from __future__ import annotations

from collections.abc import Callable

from rlcore.action_values import GreedyPolicy
from rlcore.distributions import MaskedMultiDiscrete

NVEC = (6, 5)  # offers and channels


class LogitsPolicy:
    """A policy that observes the price, of given logits [B, D] → [B, Πn]."""

    observes_price = True

    def __init__(self, logits: Callable, nvec: tuple[int, ...] = NVEC):
        self.logits, self.nvec = logits, nvec

    def distribution(self, obs, action_mask):
        return MaskedMultiDiscrete(self.logits(obs), action_mask, self.nvec)

    def act(self, obs, action_mask, u=None):
        pi = self.distribution(obs, action_mask)
        return pi.mode_with_log_prob() if u is None else pi.sample_with_log_prob(u)


def greedy(values: Callable, observes_price: bool = False) -> GreedyPolicy:
    """Make the greedy policy of values [B, D] → [B, Πn] before the price of spend."""
    return GreedyPolicy(NVEC, lambda obs, action_mask: values(obs), None, observes_price=observes_price)
