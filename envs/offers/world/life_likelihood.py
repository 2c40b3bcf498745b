"""The likelihood of customers' weeks in a row; weeks that are missing from the log are passed through."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.world.customers import Customers, World
from envs.offers.world.filtering import Belief, filter_week, start_belief
from envs.offers.world.history import SeenWeek


def pass_week(c: Customers, world: World, week: int | Tensor, belief: Belief) -> Belief:
    """Move a belief through a week in which nothing was sent and nobody saw whether the customer bought."""
    no = torch.zeros(len(c), dtype=torch.bool, device=c.alpha.device)
    nothing = no.long()
    unseen = SeenWeek(nothing, nothing, no, no, no, c.alpha.new_zeros(len(c)))
    idle, log_idle = filter_week(c, world, week, belief, unseen)
    trip, log_trip = filter_week(c, world, week, belief, unseen._replace(bought=~no))
    return Belief(*(x * log_idle.exp() + y * log_trip.exp() for x, y in zip(idle, trip)))


def observe_week(
    c: Customers, world: World, week: int | Tensor, belief: Belief, seen: SeenWeek, missed: Tensor
) -> tuple[Belief, Tensor]:
    """Do the same as `filter_week`; who `missed` the week in the log, bool [N], passes through it at log P = 0."""
    after, log_probability = filter_week(c, world, week, belief, seen)
    if not missed.any():
        return after, log_probability
    passed = pass_week(c, world, week, belief)
    after = Belief(*(torch.where(missed, x, y) for x, y in zip(passed, after)))
    return after, torch.where(missed, 0.0, log_probability)


def margin_log_likelihood(c: Customers, seen: SeenWeek) -> Tensor:
    """Return the log-likelihood of the margins y of purchases, [N].

    The exponential likelihood with mean g, −log g − y/g: its maximum in g is the mean of y, however y is distributed.
    """
    return torch.where(seen.bought, -c.margin.log() - seen.margin / c.margin, 0.0)


def life_log_likelihood(c: Customers, world: World, weeks: list[SeenWeek], belief: Belief | None = None) -> Tensor:
    """Return the log-likelihood of weeks in a row from the first of a season, margins of purchases included, [N]."""
    belief = start_belief(c) if belief is None else belief
    total = torch.zeros_like(c.alpha)
    for week, seen in enumerate(weeks):
        belief, log_probability = filter_week(c, world, week, belief, seen)
        total = total + log_probability + margin_log_likelihood(c, seen)
    return total
