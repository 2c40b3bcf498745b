"""The memory of an algorithm that learns from decisions again and again: a ring of the last ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Remembered(NamedTuple):
    """B remembered decisions."""

    context: Tensor  #: [B, D]
    action: Tensor  #: flat action [B]
    reward: Tensor  #: [B]


class ReplayBuffer:
    """The last `size` decisions on the device: context [S, D], flat action [S], reward [S]."""

    def __init__(self, size: int, context_dim: int, device: torch.device):
        self.context = torch.zeros(size, context_dim, device=device)
        self.action = torch.zeros(size, dtype=torch.long, device=device)
        self.reward = torch.zeros(size, device=device)
        self.written = 0  # decisions since the start

    def __len__(self) -> int:
        return min(self.written, len(self.reward))

    def add(self, context: Tensor, action: Tensor, reward: Tensor) -> None:
        """Add B decisions; a full buffer overwrites its oldest ones."""
        rows = (self.written + torch.arange(len(action), device=self.reward.device)) % len(self.reward)
        self.context[rows] = context
        self.action[rows] = action
        self.reward[rows] = reward
        self.written += len(action)

    def rows(self, index: Tensor | slice = slice(None)) -> Remembered:
        """Return some decisions, or all."""
        n = len(self)
        return Remembered(self.context[:n][index], self.action[:n][index], self.reward[:n][index])

    def state_dict(self) -> dict:
        """Return the decisions, and where the next one goes."""
        columns = {name: column.clone() for name, column in self.rows()._asdict().items()}
        return {"written": self.written, **columns}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`. Raises ValueError where that buffer was of another size.

        A buffer that was full is a ring: in a larger one, the rows behind it would count as decisions.
        """
        n = len(state["action"])
        if n != min(state["written"], len(self.reward)):
            raise ValueError(f"algo.memory: expected {n}, as in the checkpoint, got {len(self.reward)}")
        self.written = state["written"]
        self.context[:n] = state["context"]
        self.action[:n] = state["action"]
        self.reward[:n] = state["reward"]
