"""Segments that respond otherwise: env/world=unlike_segments."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.unlike.world import UnlikeWeek, UnlikeWorld, sent_to
from envs.offers.world.customers import CHURNED, Customers, CustomerState
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
        """Draw a week from uniforms u [8, N]; the world has no memory of its own."""
        offer, alive = sent_to(state, offer), state.status != CHURNED
        contacted = offer > 0
        h, f, d = (x.to(u.dtype) for x in state[:3])
        other = self.segment(c)
        c = replace(
            c,
            alpha=c.alpha + 2 * (self.season_index(week).log() - self.season[0].log()),
            beta=torch.where(other, -self.put_off * c.beta, c.beta),
            eta=torch.where(other, -self.put_off * c.eta, c.eta),
            phi=torch.where(other, self.tires * c.phi, c.phi),
        )
        o = outcome(c, self, 0, h, f, d, offer, channel)  # of week 0, as α has the week's index in it
        redeemed = alive & (u[0] < o.redeem)
        bought = alive & (u[0] < o.redeem + o.buy)
        after = self.settle(c, state, contacted, channel, bought, redeemed, contacted, channel, u)
        return UnlikeWeek(after, memory, bought, redeemed, c.margin * bought)
