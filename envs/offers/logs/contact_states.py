"""States that only contacts change (fatigue, discount expectation): transitions and durations counted from a log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlcore.offline.deduplicated import DeduplicatedMatrix

MAX_STATES = 64  # a log with more states is not counted


@dataclass(frozen=True)
class ContactStates:
    """M states of the contact-driven columns of an observation, and a log's shares of their transitions.

    Contacts are numbered 0 for none and 1 + channel.
    """

    columns: Tensor  #: int64 [C], of an observation
    states: Tensor  #: [M, C], values of those columns
    rested: Tensor  #: int64 [], the state of a customer after a long time without contact
    transitions: Tensor  #: [M, outcomes, contacts, M], shares of the next state
    occupancy: Tensor  #: [M, M], expected weeks in each state within a season without contact

    @classmethod
    def count(
        cls,
        columns: Tensor,
        rested: Tensor,
        now: list[Tensor],
        then: list[Tensor],
        outcome: Tensor,
        contact: Tensor,
        outcomes: int,
        contacts: int,
        weeks: int,
    ) -> ContactStates | None:
        """Count states and transitions of B decisions; None where there are more than MAX_STATES.

        `rested` [1, C] and the chunks of `now` and `then` [B, C] are values of the columns, before and after. `outcome`
        and `contact` are int64 [B].
        """
        matrices = [DeduplicatedMatrix.from_dense(x, ()) for x in (rested, *now, *then)]
        found, index = DeduplicatedMatrix.cat(matrices).blocks[0]
        states, which = torch.unique(found, dim=0, return_inverse=True)
        if len(states) > MAX_STATES:
            return None
        before, after = which[index[1:]].chunk(2)
        n, kinds = len(states), outcomes * contacts
        place = (before * kinds + outcome * contacts + contact) * n + after
        total = torch.bincount(place, minlength=n * n * kinds).view(n, outcomes, contacts, n).to(rested)
        alone = shares(total[:, :, 0].sum(1))
        power, occupancy = torch.eye(n).to(alone), torch.zeros_like(alone)
        for _ in range(weeks):
            occupancy, power = occupancy + power, power @ alone
        transitions = shares(total.flatten(1, 2)).view_as(total)
        return cls(columns, states, which[index[0]], transitions, occupancy)

    def index(self, x: Tensor) -> Tensor:
        """Return the state numbers of observations [B, D], int64 [B]; a state that was not counted is its nearest."""
        distance = (x[:, None, self.columns] - self.states).abs().sum(-1)
        return distance.argmin(1)

    def placed(self, x: Tensor, state: Tensor) -> Tensor:
        """Return observations [B, D] with the columns of a state [C]."""
        return x.index_copy(1, self.columns, state.expand(len(x), -1))

    def cost(self, expected: Tensor) -> Tensor:
        """Return the cost of each state until it has passed, [B, M], from a week's expected values by state, [B, M]."""
        return (expected - expected[:, self.rested, None]) @ self.occupancy.T


def shares(count: Tensor) -> Tensor:
    """Divide counts by their sums over the last dimension, 0 where there are none."""
    return count / count.sum(-1, keepdim=True).clamp_min(1)
