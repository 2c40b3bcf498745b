"""A policy whose forecast of what its messages cost is corrected, week by week."""

from __future__ import annotations

from torch import Tensor

from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.knapsack import Increments
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.rollover import ReservationPricePolicy
from envs.offers.world.customers import CustomerState


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
