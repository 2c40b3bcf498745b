"""What a structural twin says of a panel: likelihoods, probabilities, effects, and weeks played on."""
from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.twin.likelihood import Panel, log_likelihood, probabilities
from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, CustomerState, Customers, World
from envs.offers.world.response import outcome
from envs.offers.world.transition import transition


class Answers:
    """Customers c of a panel, as one member has them."""

    def __init__(self, c: Customers, world: World, log: Panel):
        self.c, self.world, self.log = c, world, log

    def likelihoods(self) -> dict[str, Tensor]:
        """Log-likelihood by kind of outcome, [T, N] each."""
        return log_likelihood(self.c, self.world, self.log)

    def probabilities(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """{outcome: (probability, happened, known)}, [T, N] each."""
        return probabilities(self.c, self.world, self.log)

    def uplift(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a contact drawn from all pairs adds to P(trip), P(trip) without one, and what it costs, [T, N] each."""
        c, world, log = self.c, self.world, self.log
        h, f, d = (x.to(c.alpha.dtype) for x in log.state[:3])
        offers, channels = world.catalogue.nvec
        nothing, *contacts = (outcome(c, world, log.week, h, f, d, torch.full_like(log.offer, o), torch.full_like(log.channel, k))
                              for o in range(offers) for k in range(channels) if o or not k)
        trips = torch.stack([o.redeem + o.buy for o in contacts]).mean(0)
        return trips - nothing.buy, nothing.buy, torch.stack([o.spend for o in contacts]).mean(0)

    def played(self, first: int, generator: torch.Generator) -> Tensor:
        """Expected trips, margin and spend of every week, [3, T]; after week `first` at habit, fatigue and expectation that
        follow from drawn outcomes."""
        c, world, log, state, before, found = self.c, self.world, self.log, None, None, []
        for t in range(world.weeks):
            at = log.there & (log.week == t)
            there, row = at.any(0), at.long().argmax(0)
            *logged, offer, channel = (x.gather(0, row[None])[0] for x in (*log.state, log.offer, log.channel))
            if t > first:
                logged[:3] = (torch.where(before, x, y) for x, y in zip(state[:3], logged))
            state = CustomerState(*logged)
            offer = torch.where(there & (state.status == SUBSCRIBED), offer, 0)
            h, f, d = (x.to(c.alpha.dtype) for x in state[:3])
            o = outcome(c, world, t, h, f, d, offer, channel)
            alive = there & (state.status != CHURNED)
            bought = (o.redeem + o.buy) * alive
            found.append(torch.stack((bought.sum(), (bought * c.margin).sum(), (o.spend * alive).sum())))
            u = torch.rand(UNIFORMS, len(c), generator=generator, device=h.device, dtype=h.dtype)
            u[4:] = 1.0  # who left, and who stayed, is what the log says
            state, before = transition(c, world, t, state, offer, channel, u)[0], there
        return torch.stack(found, 1)
