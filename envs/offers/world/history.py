"""What is seen of customers week by week, whatever moves them inside: their history, and its columns by definition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue

KINDS = ("contacts", "attention", "purchases", "redemptions", "spend")


class History(NamedTuple):
    """Who N customers are now, status int64 [N], and what every week so far has brought, [weeks, N] each.

    Weeks of which only a forecast is known can have probabilities in place of 0 and 1: columns are then those expected
    of independent weeks.
    """

    status: Tensor
    contacts: Tensor
    attention: Tensor  # the share that typically sees a message of that channel
    purchases: Tensor
    redemptions: Tensor
    spend: Tensor  # money that messages and redemptions cost

    @classmethod
    def start(cls, status: Tensor, dtype: torch.dtype) -> History:
        """Begin with no week."""
        none = torch.zeros(0, len(status), dtype=dtype, device=status.device)
        return cls(status, *(none for _ in KINDS))

    def after(
        self, status: Tensor, catalogue: Catalogue, offer: Tensor, channel: Tensor, bought: Tensor, redeemed: Tensor
    ) -> History:
        """Add a week, [N] each, after which customers have a status."""
        week = self.week(catalogue, offer, channel, bought, redeemed.to(self.spend))
        return History(status, *(torch.cat((past, x[None].to(past))) for past, x in zip(self[1:], week)))

    @staticmethod
    def week(catalogue: Catalogue, offer: Tensor, channel: Tensor, bought: Tensor, redeemed: Tensor) -> Tensor:
        """What a week adds, [5, N] in the order of KINDS, in the type of `redeemed`."""
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

        For each half-life (weeks): the weighted share of past weeks that are known at all, then the weighted sums of
        what they brought in the order of KINDS; a week of age a = 0, 1, … weighs 2^(−a/half-life), over the weight of
        all weeks from −∞. Then 1/a of the last contact and purchase, a = 1 for last week's, 0 where there was none.
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


def column_names(half_lives: list[float]) -> list[str]:
    """Name the columns of a history."""
    return [
        *(f"{kind}, halving in {x:g} weeks" for x in half_lives for kind in ("weeks known", *KINDS)),
        "last contact",
        "last purchase",
    ]
