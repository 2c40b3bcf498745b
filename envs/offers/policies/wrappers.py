"""Policies around a policy, which change or keep what it would send: each takes its increments and its view."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.knapsack import Increments, concat_increments
from envs.offers.policies.base import BatchedPolicy, SeasonPolicy
from envs.offers.policies.information import MARGINS
from envs.offers.world.customers import CustomerState


class ReservationPricePolicy:
    """A policy without the increments that earn less a unit than its reservation price of the week, [T]."""

    def __init__(self, policy: SeasonPolicy, reservation_price: Tensor):
        self.policy, self.reservation_price = policy, reservation_price
        self.information, self.view = policy.information, policy.view

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the policy's increments from the reservation price up."""
        steps = self.policy.increments(week, state, options)
        worthwhile = steps.price >= self.reservation_price[week]
        return steps._replace(price=torch.where(worthwhile, steps.price, -torch.inf))

    def marginal_price(self, price: Tensor) -> Tensor:
        """Return the marginal value of money in weeks that cleared at prices [T]: at least the reservation price."""
        return torch.maximum(price, self.reservation_price.to(price))


class CalibratedSpendPolicy:
    """A policy with the spend of its increments multiplied by a factor of the week, [T].

    A price is value a unit of spend, so it is divided by the same factor. The order of the increments stays as it is;
    what changes is where the week's money ends.
    """

    def __init__(self, policy: SeasonPolicy, factor: Tensor):
        self.policy, self.factor = policy, factor
        self.information, self.view = policy.information, policy.view

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the policy's increments at the corrected spend."""
        steps = self.policy.increments(week, state, options)
        return steps._replace(price=steps.price / self.factor[week], spend=steps.spend * self.factor[week])


def with_calibrated_spend(policy: SeasonPolicy, factor: Tensor) -> SeasonPolicy:
    """Multiply the spend of a policy by factors [T]; reservation prices are in money, and stay as they are."""
    if isinstance(policy, ReservationPricePolicy):
        return ReservationPricePolicy(with_calibrated_spend(policy.policy, factor), policy.reservation_price)
    return CalibratedSpendPolicy(policy, factor)


class MarginsSeenPolicy:
    """Follow `before` until a customer's first purchase of the season, and `after` from the week after it.

    Every purchase of a customer brings the same margin, so that the first one shows it. `after` is `before` with true
    margins in the place of estimated ones. Both see the state alike, because margins say nothing of it.
    """

    def __init__(self, before: BatchedPolicy, after: BatchedPolicy):
        self.before, self.after, self.view = before, after, before.view
        self.information = replace(before.information, season=(*before.information.season, MARGINS))

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the increments of `after` for customers who bought in an earlier week, of `before` for others."""
        assert options.history is not None  # the options of a market have it
        bought = (options.history.purchases > 0).any(0)
        told, guessed = (rows.nonzero()[:, 0] for rows in (bought, ~bought))
        parts = [
            policy.increments_of(rows, week, state, options)
            for policy, rows in ((self.after, told), (self.before, guessed))
            if len(rows)
        ]
        in_place = torch.cat((told, guessed)).argsort()
        return Increments(*(x[in_place] for x in concat_increments(parts)))


class RecordingPolicy:
    """A policy that keeps the increments of every week in `weeks`."""

    def __init__(self, policy: SeasonPolicy):
        self.policy, self.information, self.view = policy, policy.information, policy.view
        self.weeks: list[Increments] = []

    def increments(self, week: int, state: CustomerState, options: ContactOptions) -> Increments:
        """Return the policy's increments, and keep them."""
        self.weeks.append(self.policy.increments(week, state, options))
        return self.weeks[-1]
