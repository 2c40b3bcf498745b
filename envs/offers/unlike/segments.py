"""Segments that respond otherwise: env/world=unlike_segments."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.unlike.world import UnlikeWeek, UnlikeWorld, WeekStart
from envs.offers.world.customers import Customers
from envs.offers.world.response import outcome


class SegmentsWorld(UnlikeWorld):
    """A segment is put off by discounts, which it takes for poor quality, and tires `tires` times as fast.

    It holds the customers who buy often and care for value, and those who do neither: a product of two parameters,
    which no linear map of features has. `middle` are the parameters' middles, α + κ/2 and log β. In the segment a
    message lowers the utility by `put_off` times what it adds to it elsewhere.
    """

    def __init__(self, *args, middle: list[float], put_off: float, tires: float, **parts):
        super().__init__(*args, **parts)
        self.middle, self.put_off, self.tires = middle, put_off, tires

    def segment(self, c: Customers) -> Tensor:
        """Return who belongs to the segment, bool [N]."""
        often, value = c.alpha + c.kappa / 2 - self.middle[0], c.beta.log() - self.middle[1]
        return often * value > 0

    def respond(self, c: Customers, start: WeekStart) -> UnlikeWeek:
        """Draw what customers do in a week; the world has no memory of its own."""
        h, f, d = start.levels
        other = self.segment(c)
        c = replace(
            c,
            alpha=c.alpha + 2 * (self.season_index(start.week).log() - self.season[0].log()),
            beta=torch.where(other, -self.put_off * c.beta, c.beta),
            eta=torch.where(other, -self.put_off * c.eta, c.eta),
            phi=torch.where(other, self.tires * c.phi, c.phi),
        )
        o = outcome(c, self, 0, h, f, d, start.offer, start.channel)  # of week 0, as α has the week's index in it
        redeemed = start.alive & (start.u[0] < o.redeem)
        bought = start.alive & (start.u[0] < o.redeem + o.buy)
        after = self.settle(c, start, bought, redeemed, tired=start.contacted, tired_by=start.channel)
        return UnlikeWeek(after, start.memory, bought, redeemed, c.margin * bought)
