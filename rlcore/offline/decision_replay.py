"""Minibatches of logged decisions, at the prices that were logged or at prices that are drawn anew."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.offline.adjusted_rewards import AdjustedRewards
from rlcore.offline.logged_dataset import LoggedDataset


class Transitions(NamedTuple):
    """B decisions at the prices that are learned at, and the states that they led to."""

    obs: Tensor  #: [B, D]
    action_mask: Tensor  #: bool [B, Πn]
    action: Tensor  #: flat action [B]
    reward: Tensor  #: [B]
    discount: Tensor  #: of the next state's value, 0 where the episode has ended, [B]
    weight: Tensor  #: of the decision in the loss, [B]
    next_obs: Tensor  #: [B, D]
    next_action_mask: Tensor  #: bool [B, Πn]
    next_price: Tensor  #: [B]
    logged_obs: Tensor  #: as they were when the decision was made, [B, D]
    logged_price: Tensor  #: [B]


class DecisionReplay:
    """Draws decisions of a dataset, whose rewards were `adjusted`, from those that have a weight.

    With `relabel` each use of a decision draws another price, in a priced environment; `env` is then such a one.
    """

    def __init__(self, data: LoggedDataset, adjusted: AdjustedRewards, env: Any, *, relabel: bool):
        self.data, self.adjusted, self.context_dim = data, adjusted, env.context_dim
        self.priced_env = env.as_priced()
        self.relabel = relabel and self.priced_env is not None
        self.usable_rows = (adjusted.weight > 0).nonzero()[:, 0]

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw the rows [B] of a minibatch from the usable decisions, with replacement."""
        index = torch.randint(len(self.usable_rows), (size,), generator=generator, device=self.usable_rows.device)
        return self.usable_rows[index]

    def transitions(self, rows: Tensor, generator: torch.Generator) -> Transitions:
        """Return the decisions of some rows [B] of the dataset, and where they led to."""
        data = self.data
        obs = logged_obs = data.obs[rows]
        next_price = logged_price = data.price[rows]
        action_mask = data.action_mask[rows]
        next_obs, next_action_mask = obs, action_mask
        if data.next_obs is not None:  # else every decision ends its episode: the next state has no weight
            assert data.next_action_mask is not None
            next_obs, next_action_mask = data.next_obs[rows], data.next_action_mask[rows]
        if self.relabel:
            drawn = self.priced_env.sample_prices(data.step[rows], generator)
            obs = torch.cat((obs[:, : self.context_dim], drawn.encoded_price), 1)
            next_obs = torch.cat((next_obs[:, : self.context_dim], drawn.next_encoded_price), 1)
            next_price = drawn.next_price
        elif self.priced_env:
            next_price = self.priced_env.decode_price(next_obs)
        return Transitions(
            obs=obs,
            action_mask=action_mask,
            action=data.action[rows],
            reward=self.adjusted.reward[rows],
            discount=self.adjusted.discount[rows],
            weight=self.adjusted.weight[rows],
            next_obs=next_obs,
            next_action_mask=next_action_mask,
            next_price=next_price,
            logged_obs=logged_obs,
            logged_price=logged_price,
        )
