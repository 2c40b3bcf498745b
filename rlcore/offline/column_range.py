"""What training saw of each column of observations, and logged observations held to it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset


class ColumnRange:
    """The range of each of D columns over all rows so far; empty before the first update."""

    def __init__(self, size: int, device: torch.device):
        self.low = torch.full((size,), torch.inf, device=device)
        self.high = torch.full((size,), -torch.inf, device=device)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Widen the range to rows [N, D]."""
        self.low = torch.minimum(self.low, x.amin(0).to(self.low))
        self.high = torch.maximum(self.high, x.amax(0).to(self.high))

    def limits(self, margin: float) -> tuple[Tensor, Tensor]:
        """Return the range [D], [D], wider on both sides by a share `margin` of its width; infinite where empty."""
        width = margin * (self.high - self.low)
        is_empty = self.low > self.high
        low = torch.where(is_empty, -torch.inf, self.low - width)
        high = torch.where(is_empty, torch.inf, self.high + width)
        return low, high

    def state_dict(self) -> dict[str, Tensor]:
        """Return the range."""
        return {"low": self.low, "high": self.high}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the result of `state_dict`, and keep the rows that this range has seen."""
        self.low = torch.minimum(self.low, state["low"].to(self.low))
        self.high = torch.maximum(self.high, state["high"].to(self.high))


def clip_static_columns(
    dataset: LoggedDataset, limits: tuple[Tensor, Tensor], names: list[str]
) -> tuple[LoggedDataset, str]:
    """Clip the static columns of observations to limits [F], [F], the columns' `names` being those of their file.

    Returns the dataset and a sentence that counts the units of each column that was clipped; empty where none was.
    """
    low, high = limits
    obs = dense(dataset.obs).clone()
    static = obs[:, : len(low)]
    outside = (static < low) | (static > high)
    if not outside.any():
        return dataset, ""
    clipped = static.clamp(low, high)
    obs[:, : len(low)] = clipped
    next_obs = dataset.next_obs
    if next_obs is not None:
        next_obs = torch.cat((clipped, dense(next_obs)[:, len(low) :]), 1)
    parts = []
    for k in outside.any(0).nonzero()[:, 0].tolist():
        units = dataset.unit[outside[:, k]].unique().numel()
        parts.append(f"'{names[k]}' ({low[k]:g} to {high[k]:g}) of {units:,}")
    sentence = f"clipped to the range of training: {', '.join(parts)} {dataset.names.unit}s"
    return replace(dataset, obs=obs, next_obs=next_obs), sentence
