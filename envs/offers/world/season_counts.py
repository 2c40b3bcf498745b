"""What a season has shown of each customer, as sums: they tell θ where features do not."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.world.customers import CHURNED, HABITS, CustomerState, one_hot
from envs.offers.world.history import SeenWeek


class SeasonCounts:
    """Sums of what was seen of N customers, [N, K]: purchases and their money, contacts and redemptions by kind.

    The last sum is the money that purchases brought. `scale` multiplies all other sums where they are shown.
    """

    def __init__(self, catalogue: Catalogue, *, scale: float):
        self.scale = scale
        self.offers, self.channels = catalogue.offers[1:], catalogue.channels
        self.contact_names = [
            f"{what}, {name}"
            for names in (self.channels, self.offers)
            for what in ("contacts", "redemptions")
            for name in names
        ]
        self.names = [*self.names_of_weeks(), *self.contact_names, "mean margin"]  #: of the K columns shown

    def names_of_weeks(self) -> list[str]:
        """Names of the sums over weeks, which come first."""
        return ["purchases"]

    def __len__(self) -> int:
        return len(self.names)

    def start(self, like: Tensor) -> Tensor:
        """Return the sums [N, K] at the start of a season, in the type of a tensor [N, …]."""
        return like.new_zeros(len(like), len(self))

    def after(self, sums: Tensor, seen: SeenWeek) -> Tensor:
        """Return the sums [N, K] after one more week."""
        return self.add(sums, [seen.bought[:, None]], seen)

    def add(self, sums: Tensor, of_weeks: list[Tensor], seen: SeenWeek) -> Tensor:
        """Add a week to the sums [N, K]; `of_weeks` are the columns of the sums over weeks."""
        redeemed = seen.redeemed[:, None]
        channel = one_hot(torch.where(seen.offer > 0, seen.channel, -1), len(self.channels))
        offer = one_hot(seen.offer - 1, len(self.offers))  # "nothing" is in no column
        columns = [*of_weeks, channel, channel & redeemed, offer, offer & redeemed, seen.margin[:, None]]
        return sums + torch.cat([x.to(sums) for x in columns], 1)

    def num_purchases(self, sums: Tensor) -> Tensor:
        """Return the number of purchases, [N]."""
        return sums[:, 0]

    def columns(self, sums: Tensor) -> Tensor:
        """Lay out sums as columns of an observation, [N, K]: scaled, and the logarithm of 1 + the mean margin."""
        mean_margin = sums[:, -1] / self.num_purchases(sums).clamp_min(1)
        return torch.cat((self.scale * sums[:, :-1], mean_margin.log1p()[:, None]), 1)

    def without_contacts(self, columns: Tensor) -> Tensor:
        """Return columns [B, K] as if nothing had been sent or redeemed."""
        first = len(self.names_of_weeks())
        return torch.cat((columns[:, :first], torch.zeros_like(columns[:, first:-1]), columns[:, -1:]), 1)


class StateSeasonCounts(SeasonCounts):
    """SeasonCounts where states are seen: weeks and purchases by habit, and moves of habit, fatigue and expectation."""

    moves = ("habit up", "habit down", "fatigue down", "expectation down")

    def names_of_weeks(self) -> list[str]:
        """Names of the sums over weeks, which come first."""
        by_habit = [f"{what}, habit {level}" for what in ("weeks", "purchases") for level in range(HABITS)]
        return [*by_habit, *self.moves]

    def after_states(self, sums: Tensor, seen: SeenWeek, state: CustomerState, next_state: CustomerState) -> Tensor:
        """Return the sums [N, K] after one more week, from `state` to `next_state`; a churned customer adds none."""
        habit = one_hot(torch.where(state.status == CHURNED, -1, state.habit), HABITS)
        stays = (state.status != CHURNED) & (next_state.status != CHURNED)
        moves = (
            seen.bought & (next_state.habit > state.habit),
            ~seen.bought & (next_state.habit < state.habit),
            (seen.offer == 0) & (next_state.fatigue < state.fatigue),
            ~seen.redeemed & (next_state.expectation < state.expectation),
        )
        moved = torch.stack(moves, 1) & stays[:, None]
        return self.add(sums, [habit, habit & seen.bought[:, None], moved], seen)

    def num_purchases(self, sums: Tensor) -> Tensor:
        """Return the number of purchases, [N]."""
        return sums[:, HABITS : 2 * HABITS].sum(1)

    def without_contacts(self, columns: Tensor) -> Tensor:
        """Return columns [B, K] as if nothing had been sent or redeemed."""
        columns = super().without_contacts(columns)
        columns[:, 2 * HABITS + 2 : 2 * HABITS + 4] = 0.0  # only contacts raise fatigue and expectation
        return columns
