"""What every world outside the family says of a week, and what it shares with the family."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.customers import CHURNED, SUBSCRIBED, UNIFORMS, Customers, CustomerState, World
from envs.offers.world.history import SeenWeek
from envs.offers.world.response import churn_probability, opt_out_probability
from envs.offers.world.transition import next_state

UNLIKE_UNIFORMS = UNIFORMS + 3  # independent draws a customer and week: the family's, two of its own, the week's


class WeekStart(NamedTuple):
    """What a week of N customers begins with."""

    week: int  # from 0; after the season its index is 1
    state: CustomerState
    memory: Tensor  # the world's own state, int64 [N]
    offer: Tensor  # what arrives: nothing where a customer is not subscribed, int64 [N]
    channel: Tensor  # int64 [N]
    u: Tensor  # uniforms [9, N]

    @property
    def alive(self) -> Tensor:
        """Customers who have not churned, bool [N]."""
        return self.state.status != CHURNED

    @property
    def contacted(self) -> Tensor:
        """Customers whom an offer reaches, bool [N]."""
        return self.offer > 0

    @property
    def common(self) -> Tensor:
        """A standard normal draw that all customers of the week share, []."""
        return torch.special.ndtri(self.u[UNLIKE_UNIFORMS - 1, 0].clamp_min(torch.finfo(self.u.dtype).eps))

    @property
    def levels(self) -> list[Tensor]:
        """Habit, fatigue and expectation as real numbers, [N] each."""
        return [x.to(self.u.dtype) for x in self.state[:3]]


class UnlikeWeek(NamedTuple):
    """A week of N customers."""

    state: CustomerState  # after the week
    memory: Tensor  # the world's own state after the week, int64 [N]
    bought: Tensor  # bool [N]
    redeemed: Tensor  # bool [N]
    margin: Tensor  # money that the purchase brought before this week's discount, 0 without one, [N]

    def seen(self, offer: Tensor, channel: Tensor, status: Tensor) -> SeenWeek:
        """Return what a shop saw of the week; `status` [N] is the customers' before it."""
        return SeenWeek.between(
            status,
            self.state.status,
            offer=offer,
            channel=channel,
            bought=self.bought,
            redeemed=self.redeemed,
            margin=self.margin,
        )


class UnlikeWorld(World):
    """Base of the worlds outside the family.

    They have no dynamic program: no value of never contacting a customer, no plan, and no bound. What a policy earns is
    counted against the same customers, never contacted, under the same random numbers.
    """

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
        """Draw a week (from 0; after the season its index is 1) from uniforms u [9, N].

        A customer who is not subscribed gets nothing, whatever the action is.
        """
        arrives = torch.where(state.status == SUBSCRIBED, offer, 0)
        return self.respond(c, WeekStart(week, state, memory, arrives, channel, u))

    @abstractmethod
    def respond(self, c: Customers, start: WeekStart) -> UnlikeWeek:
        """Draw what customers do in a week."""

    def start_memory(self, c: Customers) -> Tensor:
        """Return the world's own state at the start of a season, int64 [N]."""
        return torch.zeros(len(c), dtype=torch.long, device=c.alpha.device)

    def season_index(self, week: int) -> Tensor:
        """Return the season's index of a week, 1 after the season."""
        return self.season[week] if week < self.weeks else torch.ones_like(self.season[0])

    def settle(
        self, c: Customers, start: WeekStart, bought: Tensor, redeemed: Tensor, *, tired: Tensor, tired_by: Tensor
    ) -> CustomerState:
        """Return next week's state: churn, opt-outs and habit as in the family.

        Fatigue rises in customers `tired`, bool [N], by the steps of the channels `tired_by`.
        """
        h, f, _ = start.levels
        lost = churn_probability(c, h, f)
        churned = ~start.alive | (start.u[4] < torch.where(bought, 0.25 * lost, lost))
        left = start.contacted & (start.u[5] < opt_out_probability(c, f, self.catalogue.opt_out[start.channel]))
        return next_state(c, self, start.state, tired, tired_by, bought, redeemed, churned, left, start.u)
