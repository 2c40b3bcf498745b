"""What can be sent: offers with a face value, channels with a cost."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# What an entry has: lowest and highest value, and type.
OFFER = {"value": (0, math.inf, (int, float))}
CHANNEL = {"cost": (0, math.inf, (int, float)), "attention": (1e-6, 1 - 1e-6, (int, float)),
           "opt_out": (0, 1, (int, float)), "tires": (1, 3, int)}


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
        for group, entries, keys in (("offers", offers, OFFER), ("channels", channels, CHANNEL)):
            if not entries:
                raise ValueError(f"env.catalogue.{group}: expected at least one")
            for name, entry in entries.items():
                if set(entry) != set(keys):
                    raise ValueError(f"env.catalogue.{group}.{name}: expected {', '.join(keys)}, got {', '.join(entry)}")
                for key, (low, high, kind) in keys.items():
                    number = entry[key]
                    if isinstance(number, bool) or not isinstance(number, kind) or not low <= number <= high:
                        raise ValueError(f"env.catalogue.{group}.{name}.{key}: expected a number from {low} to {high}, "
                                         f"got {number}")

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
        table[0, 1:].fill_(False)
        return table

    def allowed(self, contactable: Tensor) -> Tensor:
        """Pairs that each customer [N] can be sent, bool [N, O+1, C]: nothing always, the rest where contactable."""
        nothing = torch.zeros_like(self.valid)
        nothing[0, 0].fill_(True)
        return torch.where(contactable[:, None, None], self.valid, nothing)

    def spend(self, offer: Tensor, channel: Tensor, redeemed: Tensor) -> Tensor:
        """Money that pairs (of any shape) cost: face value where redeemed (or its probability), and the message."""
        return self.value[offer] * redeemed + self.cost[channel] * (offer > 0)
