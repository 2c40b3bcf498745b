"""What is seen of customers week by week, whatever moves them inside: their history, and its columns by definition."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("contacts", "purchases", "redemptions", "spend")


class History(NamedTuple):
    """Who N customers are now, status int64 [N], and what every week so far has brought, [weeks, N] each."""

    status: Tensor
    contacts: Tensor  # bool
    purchases: Tensor  # bool
    redemptions: Tensor  # bool
    spend: Tensor  # money that messages and redemptions cost

    @classmethod
    def start(cls, status: Tensor, dtype: torch.dtype) -> History:
        """Begin with no week."""
        none = torch.zeros(0, len(status), dtype=torch.bool, device=status.device)
        return cls(status, none, none, none, none.to(dtype))

    def after(self, status: Tensor, contacted: Tensor, bought: Tensor, redeemed: Tensor, spend: Tensor) -> History:
        """Add a week, [N] each, after which customers have a status."""
        week = (contacted, bought, redeemed, spend.to(self.spend))
        return History(status, *(torch.cat((past, x[None])) for past, x in zip(self[1:], week)))

    def __len__(self) -> int:
        return self.status.shape[0]

    def take(self, rows) -> History:
        """Take some of the customers."""
        return History(*(x[..., rows] for x in self))

    def columns(self, halvings: list[float]) -> Tensor:
        """Lay out frequency and recency, [N, 5·H + 2].

        For each halving time (weeks): the weighted share of past weeks that are known at all, and of those with a contact, a
        purchase, a redemption, and the weighted mean of spend; a week of age a = 0, 1, … weighs 2^(−a/halving), of all
        weeks from −∞. Then 1/a of the last purchase and contact, a = 1 for last week's, 0 where there was none.
        """
        past = torch.stack([x.to(self.spend) for x in (torch.ones_like(self.spend), *self[1:])])  # [5, weeks, N]
        age = torch.arange(past.shape[1] - 1, -1, -1, device=past.device, dtype=past.dtype)
        decay = 0.5 ** (1 / torch.tensor(halvings, device=past.device, dtype=past.dtype))
        weights = (1 - decay)[:, None] * decay[:, None] ** age
        shares = torch.einsum("hw,kwn->nhk", weights, past).flatten(1)
        last = [(x / (age + 1)[:, None]).amax(0) if len(age) else x.sum(0) for x in (past[2], past[1])]
        return torch.cat((shares, torch.stack(last, 1)), 1)


def names(halvings: list[float]) -> list[str]:
    """Name the columns of a history."""
    return [*(f"{kind}, halving in {x:g} weeks" for x in halvings for kind in ("weeks known", *KINDS)), "last purchase",
            "last contact"]
