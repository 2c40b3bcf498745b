"""Unmodelled shocks, customers who come back, and late redemptions: env/world=unlike_shocks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.unlike.world import UnlikeWeek, UnlikeWorld, sent_to
from envs.offers.world.customers import CHURNED, SUBSCRIBED, Customers, CustomerState
from envs.offers.world.response import outcome


class ShocksWorld(UnlikeWorld):
    """The family's responses, disturbed by what no column of a log has.

    Each week all customers' utility has a shock of sd `shock`, drawn once by `shock_seed`: weather, competitors,
    holidays. A churned customer comes back in a week with probability `return_rate`. An offer that was sent and not
    redeemed is redeemed with the next week's purchase with probability `late_rate`: the till takes its value off what
    the purchase brings, and no log names the offer.
    """

    def __init__(self, *args, shock: float, shock_seed: int, return_rate: float, late_rate: float, **parts):
        super().__init__(*args, **parts)
        self.return_rate, self.late_rate = return_rate, late_rate
        generator = torch.Generator().manual_seed(shock_seed)
        weeks = self.weeks + self.tail_weeks
        self.shocks = (shock * torch.randn(weeks, generator=generator, dtype=torch.float64)).tolist()

    def advance(
        self,
        c: Customers,
        week: int,
        state: CustomerState,
        memory: Tensor,
        offer: Tensor,
        channel: Tensor,
        u: Tensor,
    ) -> UnlikeWeek:
        """Draw a week from uniforms u [8, N]; `memory` is last week's offer that was not redeemed, or 0."""
        offer, alive = sent_to(state, offer), state.status != CHURNED
        contacted = offer > 0
        h, f, d = (x.to(u.dtype) for x in state[:3])
        season = 2 * (self.season_index(week).log() - self.season[0].log())
        shocked = replace(c, alpha=c.alpha + self.shocks[week] + season)
        o = outcome(shocked, self, 0, h, f, d, offer, channel)  # of week 0, whose index the shock has in it
        redeemed = alive & (u[0] < o.redeem)
        bought = alive & (u[0] < o.redeem + o.buy)
        late = bought & ~redeemed & (u[6] < self.late_rate)
        margin = (c.margin - self.catalogue.value[memory] * late) * bought
        after = self.settle(c, state, contacted, channel, bought, redeemed, contacted, channel, u)
        back = ~alive & (u[7] < self.return_rate)
        after = after._replace(status=torch.where(back, SUBSCRIBED, after.status))
        return UnlikeWeek(after, torch.where(redeemed, 0, offer), bought, redeemed, margin)
