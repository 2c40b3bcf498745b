"""Another link and delayed fatigue: env/world=unlike_link."""

from __future__ import annotations

import torch

from envs.offers.unlike.world import UnlikeWeek, UnlikeWorld, WeekStart
from envs.offers.world.customers import Customers
from envs.offers.world.response import attention


class LinkWorld(UnlikeWorld):
    """Purchases follow the complementary log-log, P = 1 − exp(−exp(b)), whose approach to 1 is fast and to 0 slow.

    What a message is worth adds to the rate of purchases and not to the utility. A contact tires a week later, so that
    the week after a contact still meets fresh attention. `offset` moves b, so that purchases are as many as in the
    family; `lift` scales what a message adds.
    """

    def __init__(self, *args, offset: float, lift: float, **parts):
        super().__init__(*args, **parts)
        self.offset, self.lift = offset, lift

    def respond(self, c: Customers, start: WeekStart) -> UnlikeWeek:
        """Draw what customers do in a week; `start.memory` is 1 + the channel of last week's contact, or 0."""
        h, f, d = start.levels
        b = c.alpha + c.kappa * (h / 5) - c.xi * (d / 2) + 2 * self.season_index(start.week).log() + self.offset
        worth = (self.catalogue.value[start.offer] - c.rho * d).clamp_min(0.05)
        added = self.lift * (c.eta + c.beta * torch.log1p(worth)).clamp_min(0.0)
        p0, p1 = (1 - torch.exp(-rate) for rate in (b.exp(), b.exp() + added))
        q = attention(c.omega.gather(0, start.channel[None])[0], c, f) * start.contacted
        bought = start.alive & (start.u[0] < q * p1 + (1 - q) * p0)
        redeemed = bought & (start.u[0] < q * p1 * c.mu)
        tired = start.memory > 0
        after = self.settle(c, start, bought, redeemed, tired=tired, tired_by=(start.memory - 1).clamp_min(0))
        return UnlikeWeek(
            after, torch.where(start.contacted, 1 + start.channel, 0), bought, redeemed, c.margin * bought
        )
