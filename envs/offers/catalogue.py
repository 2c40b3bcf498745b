"""What can be sent: offers with a face value, channels with a cost."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Catalogue:
    """Offers and channels as tensors; offer 0 is "nothing", goes through channel 0 only, and is always valid.

    value [O+1] face value (0 for nothing); cost, attention, opt_out [C] floats; steps, tires [C]: how far a contact moves
    fatigue, as numbers and as int64.
    """

    offers: tuple[str, ...]
    channels: tuple[str, ...]
    value: Tensor
    cost: Tensor
    attention: Tensor
    opt_out: Tensor
    tires: Tensor
    steps: tuple[int, ...]

    @classmethod
    def build(cls, *, offers: dict, channels: dict) -> Catalogue:
        """Read {name: {value}} and {name: {cost, attention, opt_out, tires}}; raise ValueError on a bad number."""
        for name, offer in offers.items():
            if offer["value"] < 0:
                raise ValueError(f"env.catalogue.offers.{name}.value: expected at least 0, got {offer['value']}")
        for name, channel in channels.items():
            for key, low, high in (("cost", 0, float("inf")), ("opt_out", 0, 1), ("tires", 1, 3)):
                if not low <= channel[key] <= high:
                    raise ValueError(f"env.catalogue.channels.{name}.{key}: expected {low} to {high}, got {channel[key]}")
            if not 0 < channel["attention"] < 1:
                raise ValueError(f"env.catalogue.channels.{name}.attention: expected a share between 0 and 1, "
                                 f"got {channel['attention']}")
        def column(key):
            return torch.tensor([channel[key] for channel in channels.values()], dtype=torch.float64)
        return cls(
            offers=("nothing", *offers), channels=tuple(channels),
            value=torch.tensor([0.0, *(offer["value"] for offer in offers.values())], dtype=torch.float64),
            cost=column("cost"), attention=column("attention"), opt_out=column("opt_out"),
            tires=column("tires").long(), steps=tuple(channel["tires"] for channel in channels.values()),
        )

    def to(self, device, dtype) -> Catalogue:
        """Return a copy with its floats in `dtype` on `device`."""
        return replace(self, tires=self.tires.to(device), **{
            name: getattr(self, name).to(device, dtype) for name in ("value", "cost", "attention", "opt_out")})

    @property
    def nvec(self) -> tuple[int, int]:
        """Sizes of the two action heads."""
        return len(self.offers), len(self.channels)

    @property
    def valid(self) -> Tensor:
        """Pairs that exist, bool [O+1, C]."""
        table = torch.ones(self.nvec, dtype=torch.bool, device=self.value.device)
        table[0, 1:] = False
        return table
