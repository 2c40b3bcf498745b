"""What PPO on expected advantages learns from: B steps for the policy; for the critic, J states of each step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyBatch(NamedTuple):
    """B steps for the policy to learn from."""

    obs: Tensor  #: [B, D]
    action_mask: Tensor  #: bool [B, *nvec]
    log_prob: Tensor  #: of all actions under the policy that acted, [B, P]
    advantage: Tensor  #: of all actions, 0 where masked, [B, P]
    has_choice: Tensor  #: more than one action was valid, bool [B]


class CriticBatch(NamedTuple):
    """B steps for the critic to learn from, each in J states: the visited one, and those that were drawn."""

    critic_obs: Tensor  #: the same in all states, [B, C]
    state: Tensor  #: number of the state, from 0 to S − 1, or S: the agent has left; int64 [B, J]
    value: Tensor  #: the critic's values of the states, computed before the update, [B, J]
    target: Tensor  #: [B, J]
    counts: Tensor  #: whether the state is learned from, bool [B, J]


def at_states(values: Tensor, states: Tensor) -> Tensor:
    """Pick the values [..., J] of J states from those of all states [..., S]; 0 for state S: the agent has left."""
    num_states = values.shape[-1]
    picked = values.gather(-1, states.clamp_max(num_states - 1))
    return torch.where(states < num_states, picked, 0.0)
