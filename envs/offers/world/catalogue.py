"""The catalogue: offers with a face value, channels with a cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeVar, overload

import torch
from torch import Tensor

Index = TypeVar("Index", int, Tensor)  # a flat index, an offer or a channel: a number, or int64 of any shape

# Lowest value, highest value and types of each entry.
Range = tuple[float, float, tuple[type[int] | type[float], ...]]
OFFER: dict[str, Range] = {"value": (0, math.inf, (int, float))}
CHANNEL: dict[str, Range] = {
    "cost": (0, math.inf, (int, float)),
    "attention": (1e-6, 1 - 1e-6, (int, float)),
    "opt_out": (0, 1, (int, float)),
    "fatigue_steps": (1, 3, (int,)),
}


@dataclass(frozen=True)
class ActionCodec:
    """The only code that maps an action, an offer and a channel, to one flat index.

    The flat index of offer o and channel k is o·C + k, the row-major order of a table [O+1, C]. Offer 0 is "nothing";
    its only valid pair has index 0, so the indices from C on are the contacts. All methods take int and int64 tensors
    of any shape alike, in compiled code too, unless they say otherwise.
    """

    num_offers: int  # O + 1, "nothing" included
    num_channels: int  # C

    @property
    def num_actions(self) -> int:
        """Number P of flat indices, those of "nothing" through channels other than 0 included."""
        return self.num_offers * self.num_channels

    @property
    def contacts(self) -> slice:
        """Flat indices of all contacts."""
        return slice(self.num_channels, self.num_actions)

    @property
    def num_treatments(self) -> int:
        """Number of distinct actions: nothing, and each contact."""
        return 1 + self.num_actions - self.num_channels

    @overload
    def encode(self, offer: int, channel: int) -> int: ...

    @overload
    def encode(self, offer: Tensor, channel: int | Tensor) -> Tensor: ...

    def encode(self, offer: int | Tensor, channel: int | Tensor) -> int | Tensor:
        """Flat index of an offer and a channel."""
        return offer * self.num_channels + channel

    def decode(self, index: Index) -> tuple[Index, Index]:
        """Offer and channel of a flat index."""
        return self.offer_of(index), self.channel_of(index)

    def offer_of(self, index: Index) -> Index:
        """Offer of a flat index."""
        return index // self.num_channels

    def channel_of(self, index: Index) -> Index:
        """Channel of a flat index."""
        return index % self.num_channels

    def encode_action(self, action: Tensor) -> Tensor:
        """Flat indices [...] of actions [..., 2], offer and channel in the last axis."""
        offer, channel = action.unbind(-1)
        return self.encode(offer, channel)

    def decode_action(self, index: Tensor) -> Tensor:
        """Actions [..., 2] of flat indices [...]."""
        return torch.stack(self.decode(index), -1)

    def every_action(self, device: torch.device) -> Tensor:
        """All flat indices, int64 [P]."""
        return torch.arange(self.num_actions, device=device)

    @overload
    def is_contact(self, index: int) -> bool: ...

    @overload
    def is_contact(self, index: Tensor) -> Tensor: ...

    def is_contact(self, index: int | Tensor) -> bool | Tensor:
        """Whether a flat index is that of a contact."""
        return index >= self.num_channels

    def nth_contact(self, n: Index) -> Index:
        """Flat index of the n-th contact, counted from 0 in the order of flat indices."""
        return n + self.num_channels


@dataclass(frozen=True)
class Catalogue:
    """Offers and channels as tensors; offer 0 is "nothing", goes through channel 0 only, and is always valid.

    value [O+1] is the face value (0 for nothing); cost, attention and opt_out [C] are floats. fatigue_steps [C], int64,
    is the rise of fatigue by a contact; fatigue_step_counts has the same as a tuple.
    """

    offers: tuple[str, ...]
    channels: tuple[str, ...]
    value: Tensor
    cost: Tensor
    attention: Tensor
    opt_out: Tensor
    fatigue_steps: Tensor
    fatigue_step_counts: tuple[int, ...]
    action_codec: ActionCodec = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "action_codec", ActionCodec(len(self.offers), len(self.channels)))

    @classmethod
    def build(cls, *, offers: dict, channels: dict) -> Catalogue:
        """Read {offer: {value}} and {channel: {cost, attention, opt_out, fatigue_steps}}; ValueError on a bad one."""
        for group, entries, keys in (("offers", offers, OFFER), ("channels", channels, CHANNEL)):
            if not entries:
                raise ValueError(f"env.catalogue.{group}: expected at least one")
            for name, entry in entries.items():
                if set(entry) != set(keys):
                    raise ValueError(
                        f"env.catalogue.{group}.{name}: expected {', '.join(keys)}, got {', '.join(entry)}"
                    )
                for key, (low, high, kinds) in keys.items():
                    number = entry[key]
                    if isinstance(number, bool) or not isinstance(number, kinds) or not low <= number <= high:
                        raise ValueError(
                            f"env.catalogue.{group}.{name}.{key}: expected a number from {low} to {high}, got {number}"
                        )

        def column(key):
            return torch.tensor([channel[key] for channel in channels.values()], dtype=torch.float64)

        return cls(
            offers=("nothing", *offers),
            channels=tuple(channels),
            value=torch.tensor([0.0, *(offer["value"] for offer in offers.values())], dtype=torch.float64),
            cost=column("cost"),
            attention=column("attention"),
            opt_out=column("opt_out"),
            fatigue_steps=column("fatigue_steps").long(),
            fatigue_step_counts=tuple(channel["fatigue_steps"] for channel in channels.values()),
        )

    def to(self, device, dtype) -> Catalogue:
        """Return a copy with its floats in `dtype` on `device`."""
        return replace(
            self,
            fatigue_steps=self.fatigue_steps.to(device),
            **{name: getattr(self, name).to(device, dtype) for name in ("value", "cost", "attention", "opt_out")},
        )

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

    def action_mask(self, contactable: Tensor) -> Tensor:
        """Pairs that each customer [N] can be sent, bool [N, O+1, C]: nothing always, the rest where contactable."""
        nothing = torch.zeros_like(self.valid)
        nothing[0, 0].fill_(True)
        return torch.where(contactable[:, None, None], self.valid, nothing)

    def spend(self, offer: Tensor, channel: Tensor, redeemed: Tensor) -> Tensor:
        """Cost of pairs (of any shape), money: face value times `redeemed` (or its probability), plus the message."""
        return self.value[offer] * redeemed + self.cost[channel] * (offer > 0)
