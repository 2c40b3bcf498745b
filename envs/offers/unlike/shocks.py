"""Unmodelled shocks, customers who come back, and late redemptions: env/world=unlike_shocks."""

from __future__ import annotations

from dataclasses import replace

import torch

from envs.offers.unlike.world import UnlikeWeek, UnlikeWorld, WeekStart
from envs.offers.world.customers import SUBSCRIBED, Customers
from envs.offers.world.response import outcome


class ShocksWorld(UnlikeWorld):
    """The family's responses, disturbed by what no column of a log has.

    Each week all customers' utility has one shock of sd `shock`, drawn anew in every week of every season: weather,
    competitors. A churned customer comes back in a week with probability `return_rate`. An offer that was sent and not
    redeemed is redeemed with the next week's purchase with probability `late_rate`: the till takes its value off what
    the purchase brings, and no log names the offer.
    """

    def __init__(self, *args, shock: float, return_rate: float, late_rate: float, **parts):
        super().__init__(*args, **parts)
        self.shock, self.return_rate, self.late_rate = shock, return_rate, late_rate

    def respond(self, c: Customers, start: WeekStart) -> UnlikeWeek:
        """Draw what customers do in a week; `start.memory` is last week's offer that was not redeemed, or 0."""
        h, f, d = start.levels
        season = 2 * (self.season_index(start.week).log() - self.season[0].log())
        shocked = replace(c, alpha=c.alpha + self.shock * start.common + season)
        o = outcome(shocked, self, 0, h, f, d, start.offer, start.channel)  # of week 0, whose index the shock has in it
        redeemed = start.alive & (start.u[0] < o.redeem)
        bought = start.alive & (start.u[0] < o.redeem + o.buy)
        late = bought & ~redeemed & (start.u[6] < self.late_rate)
        margin = (c.margin - self.catalogue.value[start.memory] * late) * bought
        after = self.settle(c, start, bought, redeemed, tired=start.contacted, tired_by=start.channel)
        back = ~start.alive & (start.u[7] < self.return_rate)
        after = after._replace(status=torch.where(back, SUBSCRIBED, after.status))
        return UnlikeWeek(after, torch.where(redeemed, 0, start.offer), bought, redeemed, margin)
