"""The shop's own rules as an arm: a file of its decisions, or the usual ranking: likeliest to redeem first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from envs.live.plan.draws import by_redemption
from envs.offers.populations.base import hash_uniform
from envs.offers.world.catalogue import Catalogue
from envs.tables.name_codes import name_codes, numbered
from envs.tables.table_reader import read_table

TIES = "ties:"  # before an id: a customer's lot among ties is another than the one that draws the customer's arm


class ShopRule:
    """What the customers of the arm `bau` are sent.

    `decisions` is a CSV or Parquet file with columns customer, offer and channel, the shop's most wanted decisions
    first; None ranks customers by their probability of redeeming the pair that they are likeliest to redeem. Either way
    decisions are taken in turn until the arm's money ends.
    """

    def __init__(self, decisions: str | None, separator: str, catalogue: Catalogue):
        self.name = "propensity" if decisions is None else "decisions"
        self.of: dict[str, tuple[int, int]] | None = None
        if decisions is None:
            return
        names = ["customer", "offer", "channel"]
        table = read_table(
            decisions, separator, text=names, numbers=[], rows="decisions", where="shop_rule", only=names
        )
        rows = np.flatnonzero(table["offer"] != "")  # nothing is sent in the others
        customers, offers, channels = (table[name][rows].tolist() for name in names)
        self.of = {}

        def place(key: str, row: int) -> str:
            return f"{decisions}: row {rows[row] + 2}, column '{key}'"

        offer = name_codes(offers, numbered(catalogue.offers[1:], 1), partial(place, "offer"))
        channel = name_codes(channels, numbered(catalogue.channels), partial(place, "channel"))
        actions = catalogue.action_codec.encode(torch.from_numpy(offer), torch.from_numpy(channel))
        for rank, action in enumerate(actions.tolist()):
            if customers[rank] in self.of:
                raise ValueError(f"{decisions}: row {rows[rank] + 2}: customer '{customers[rank]}' comes twice")
            self.of[customers[rank]] = (action, rank)

    def asks_for(self, ids: Sequence[str]) -> int:
        """Count the customers to whom the shop's own decisions send something."""
        return 0 if self.of is None else sum(name in self.of for name in ids)

    def unknown(self, ids: Sequence[str]) -> int:
        """Return how many decisions are of customers whom the table lacks; raise ValueError where all are."""
        if not self.of:
            return 0
        missing = sorted(set(self.of) - set(ids))
        if len(missing) == len(self.of):
            raise ValueError(f"shop_rule.decisions: none of its customers, such as '{missing[0]}', is in the table")
        return len(missing)

    def wanted(
        self, ids: Sequence[str], spend: Tensor, mask: Tensor, catalogue: Catalogue
    ) -> tuple[Tensor, Tensor, int]:
        """Return each customer's wanted action and its rank, higher first, [N] each, and how many the mask refuses."""
        if self.of is None:
            action, rank = by_redemption(spend, mask, catalogue)
            order = np.lexsort((hash_uniform([f"{TIES}{name}" for name in ids], 0).numpy(), -rank.numpy()))
            rank = torch.empty(len(order), dtype=torch.float64)
            rank[torch.from_numpy(order)] = -torch.arange(len(order), dtype=torch.float64)
            return action, rank, 0
        nothing = (0, len(self.of))
        given = [self.of.get(name, nothing) for name in ids]
        action = torch.tensor([x for x, _ in given], dtype=torch.long)
        rank = -torch.tensor([x for _, x in given], dtype=torch.float64)
        allowed = mask.gather(1, action[:, None])[:, 0]
        return torch.where(allowed, action, 0), rank, int((~allowed).sum())
