"""The contact rules applied to N customers: what may be sent to whom now, and why something may not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.contact_caps import ContactCap, caps_left
from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import Rows
from envs.offers.world.history import History


class ContactOptions(NamedTuple):
    """The pairs that may be sent to N customers now, and what a policy observes of the rules."""

    action_mask: Tensor  # by flat action, bool [N, P]
    caps_left: Tensor  # shares of the K contact caps that are left now, then in later weeks (`cap_columns`), [N, K + L]
    history: History | None = None  # None where no policy observes it
    memory: Tensor | None = None  # what a policy's view remembers of the customers, [N, M]

    def with_caps_left(self, features: Tensor) -> Tensor:
        """Append the shares of the caps that are left, which a policy must observe, to features [N, F]."""
        return torch.cat((features, self.caps_left.to(features)), -1) if self.caps_left.shape[1] else features

    def take(self, rows: Rows) -> ContactOptions:
        """Return the options of some of the customers."""
        return ContactOptions(
            action_mask=self.action_mask[rows],
            caps_left=self.caps_left[rows],
            history=self.history and self.history.take(rows),
            memory=None if self.memory is None else self.memory[rows],
        )


class Exclusion(NamedTuple):
    """A lasting rule: the customers to whom an offer, or through whom a channel, may not be sent (None: any)."""

    reason: str
    offer: int | None
    channel: int | None
    excluded: Tensor  # bool, [H] over the customers of a table or [N] over those of a sample


@dataclass(frozen=True)
class ContactPolicy:
    """The contact rules applied to N customers."""

    catalogue: Catalogue
    static_mask: Tensor | None  # pairs that lasting rules allow, bool [N, O+1, C]; None where they forbid nothing
    exclusions: tuple[Exclusion, ...]  # over the N customers
    caps: tuple[ContactCap, ...]

    def take(self, rows: slice) -> ContactPolicy:
        """Return the policy of some of the customers."""
        static_mask = None if self.static_mask is None else self.static_mask[rows]
        exclusions = tuple(x._replace(excluded=x.excluded[rows]) for x in self.exclusions)
        return replace(self, static_mask=static_mask, exclusions=exclusions)

    def options(self, history: History, subscribed: Tensor, memory: Tensor) -> ContactOptions:
        """Return what may be sent to customers with a history, by a view that takes `subscribed` [N] for subscribed."""
        return self(subscribed, history.contacts)._replace(history=history, memory=memory)

    def __call__(self, subscribed: Tensor, contacted: list[Tensor] | Tensor) -> ContactOptions:
        """Return what may be sent, given who is subscribed and who was contacted in each past week, bool [N] each."""
        shares = caps_left(self.caps, past_contacts(subscribed, contacted))
        contactable = subscribed
        for left_now in shares[: len(self.caps)]:
            contactable = contactable & (left_now > 0)
        action_mask = self.catalogue.action_mask(contactable)
        if self.static_mask is not None:
            action_mask = action_mask & self.static_mask
        columns = torch.stack(shares, 1) if shares else action_mask.new_zeros(len(action_mask), 0)
        return ContactOptions(action_mask.flatten(1), columns)

    @property
    def contacts(self) -> Tensor | None:
        """The contacts that lasting rules allow, bool [O·C, 1, 1, 1, N], in the layout of the dynamic program."""
        if self.static_mask is None:
            return None
        return self.static_mask[:, 1:].flatten(1).T.contiguous()[:, None, None, None]

    def enforce(self, action_mask: Tensor, offer: Tensor, channel: Tensor) -> Tensor:
        """Return offers [N] for channels [N]: the requested ones where the mask bool [N, P] allows, else nothing."""
        index = self.catalogue.action_codec.encode(offer, channel)
        return torch.where(action_mask.gather(1, index[:, None])[:, 0], offer, 0)

    def reasons(self, customer: int, offer: int, channel: int, subscribed: bool, contacted: list[Tensor]) -> list[str]:
        """List the rules that forbid to send an offer through a channel to a customer now; empty where none does."""
        if offer == 0:
            return [] if channel == 0 else ["no such pair"]
        found = [] if subscribed else ["not subscribed"]
        found += [
            x.reason
            for x in self.exclusions
            if x.offer in (None, offer) and x.channel in (None, channel) and x.excluded[customer]
        ]
        past = past_contacts(torch.zeros(1, dtype=torch.bool), [x[customer : customer + 1].cpu() for x in contacted])
        return found + [cap.reason for cap in self.caps if cap.left(past).item() <= 0]

    def shares(self) -> dict[str, float]:
        """Share of the customers that each lasting rule excludes."""
        return {x.reason: x.excluded.double().mean().item() for x in self.exclusions}


def past_contacts(like: Tensor, contacted: list[Tensor] | Tensor) -> Tensor:
    """Return past weeks' contacts as one tensor [weeks, N]; a list, which may be empty, gets a week without any."""
    return contacted if isinstance(contacted, Tensor) else torch.stack([torch.zeros_like(like), *contacted])
