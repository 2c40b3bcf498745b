"""The observable history of customers, week by week, and its columns; hidden states are no part of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, CustomerState

KINDS = ("contacts", "attention", "purchases", "redemptions", "spend")


class SeenWeek(NamedTuple):
    """What a shop sees of a week of N customers; hidden states and churn are no part of it."""

    offer: Tensor  # that was sent, int64 [N], 0 for nothing
    channel: Tensor  # through which it was sent, int64 [N]
    bought: Tensor  # bool [N]
    redeemed: Tensor  # bool [N]
    opted_out: Tensor  # in this week, bool [N]
    margin: Tensor  # money that the purchase brought, before discounts, 0 without a purchase, [N]

    @classmethod
    def between(
        cls,
        status: Tensor,
        next_status: Tensor,
        *,
        offer: Tensor,
        channel: Tensor,
        bought: Tensor,
        redeemed: Tensor,
        margin: Tensor,
    ) -> SeenWeek:
        """Return what is seen of the week between two statuses [N]; `margin` [N] is money that a purchase brings."""
        opted_out = (status == SUBSCRIBED) & (next_status == UNSUBSCRIBED)
        return cls(offer, channel, bought, redeemed, opted_out, margin * bought)

    @classmethod
    def zeros(cls, *shape: int, like: Tensor) -> SeenWeek:
        """Return records of this shape that say that nothing happened; margins are in the type of `like`."""
        number, event = (torch.zeros(shape, dtype=x, device=like.device) for x in (torch.long, torch.bool))
        return cls(number, number.clone(), event, event.clone(), event.clone(), like.new_zeros(shape))

    def take(self, rows) -> SeenWeek:
        """Take some of the customers."""
        return SeenWeek(*(x[rows] for x in self))


class PassedWeek(NamedTuple):
    """A week of N customers that has passed, with what a shop saw of it and the states around it."""

    number: int | Tensor  # from 0; a tensor is [1]
    seen: SeenWeek
    state: CustomerState  # before the week
    next_state: CustomerState


class History(NamedTuple):
    """The current status of N customers, int64 [N], and the events of every week so far, [weeks, N] each."""

    status: Tensor
    contacts: Tensor
    attention: Tensor  # share of customers who typically see a message of the channel
    purchases: Tensor
    redemptions: Tensor
    spend: Tensor  # money that messages and redemptions cost

    @classmethod
    def start(cls, status: Tensor, dtype: torch.dtype) -> History:
        """Return a history without weeks."""
        none = torch.zeros(0, len(status), dtype=dtype, device=status.device)
        return cls(status, *(none for _ in KINDS))

    def after(
        self, status: Tensor, catalogue: Catalogue, offer: Tensor, channel: Tensor, bought: Tensor, redeemed: Tensor
    ) -> History:
        """Return the history with one more week, [N] each, and the status after it."""
        week = self.week(catalogue, offer, channel, bought, redeemed.to(self.spend))
        return History(status, *(torch.cat((past, x[None].to(past))) for past, x in zip(self[1:], week)))

    @staticmethod
    def week(catalogue: Catalogue, offer: Tensor, channel: Tensor, bought: Tensor, redeemed: Tensor) -> Tensor:
        """Return a week's entry, [5, N] in the order of KINDS, in the type of `redeemed`."""
        contacted = offer > 0
        return torch.stack(
            [
                x.to(redeemed)
                for x in (
                    contacted,
                    contacted * catalogue.attention[channel],
                    bought,
                    redeemed,
                    catalogue.spend(offer, channel, redeemed),
                )
            ]
        )

    def __len__(self) -> int:
        return self.status.shape[0]

    def take(self, rows) -> History:
        """Take some of the customers."""
        return History(*(x[..., rows] for x in self))

    def columns(self, half_lives: list[float]) -> Tensor:
        """Lay out frequency and recency, [N, 6·H + 2].

        Each half-life (weeks) has the weighted share of past weeks that are known, then the weighted sums of their
        entries in the order of KINDS. A week of age a = 0, 1, … has the weight 2^(−a/half-life), divided by the weight
        of all weeks from −∞. Then come 1/a of the last contact and of the last purchase: a = 1 for last week, and 0
        stands for none.
        """
        past = torch.stack((torch.ones_like(self.spend), *self[1:]))  # [6, weeks, N]
        age = torch.arange(past.shape[1] - 1, -1, -1, device=past.device, dtype=past.dtype)
        decay = torch.stack([age.new_full((), 0.5 ** (1 / x)) for x in half_lives])
        weights = (1 - decay)[:, None] * decay[:, None] ** age
        shares = torch.einsum("hw,kwn->nhk", weights, past).flatten(1)
        ago = torch.stack((self.contacts, self.purchases)).flip(1)  # from the last week back
        first = ago * torch.cat((torch.ones_like(ago[:, :1]), (1 - ago).cumprod(1)[:, :-1]), 1)[:, : ago.shape[1]]
        last = torch.einsum("w,kwn->nk", 1 / (age.flip(0) + 1), first)
        return torch.cat((shares, last), 1)


def next_columns(columns: Tensor, week: Tensor, half_lives: list[float]) -> Tensor:
    """Return the columns [N, 6·H + 2] of `History.columns` after one more week, from those before it.

    `week` [5, N] is the week's entry (`History.week`), whose contacts and purchases are 0 or 1.
    """
    decay = torch.stack([columns.new_full((), 0.5 ** (1 / x)) for x in half_lives])  # no copy from the host: graphs
    decay = decay.repeat_interleave(1 + len(KINDS))
    entry = torch.cat((torch.ones_like(week[:1]), week)).T.repeat(1, len(half_lives))
    shares, last = columns[:, :-2], columns[:, -2:]
    happened = torch.stack((week[KINDS.index("contacts")], week[KINDS.index("purchases")]), 1)
    last = torch.where(happened > 0, 1.0, last / (1 + last))  # of 1/a: a = 1, or a + 1
    return torch.cat((decay * shares + (1 - decay) * entry.to(shares), last), 1)


def column_names(half_lives: list[float]) -> list[str]:
    """Name the columns of a history."""
    return [
        *(f"{kind}, halving in {x:g} weeks" for x in half_lives for kind in ("weeks known", *KINDS)),
        "last contact",
        "last purchase",
    ]
