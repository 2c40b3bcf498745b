"""Channels that carry at most so many messages a week: a price of a message for each of them, beside that of money."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from envs.live.plan.clearing import Cleared, Demand
from envs.live.plan.money_rules import LOTS_Z
from envs.offers.planning.knapsack import Increments, upper_hull
from envs.offers.policies.logging_policies import reach_probabilities
from envs.offers.world.catalogue import Catalogue

BISECTIONS = 24
ROUNDS = 12  # over all scarce channels: a channel whose price still moves then is closed
SLACK = 5e-3  # share of a capacity that a price may leave unused


@dataclass(frozen=True)
class Capacity:
    """How many messages each channel carries in a week; inf for a channel without a limit."""

    of: np.ndarray  #: float64 [C]
    channels: tuple[str, ...]

    @classmethod
    def read(cls, given: dict[str, int], catalogue: Catalogue) -> Capacity:
        """Read messages a week by the channel's name; raise ValueError where the catalogue lacks a channel."""
        for name in given:
            if name not in catalogue.channels:
                raise ValueError(f"capacity: expected some of {', '.join(catalogue.channels)}, got '{name}'")
        return cls(np.array([float(given.get(x, math.inf)) for x in catalogue.channels]), tuple(catalogue.channels))

    @property
    def limited(self) -> list[int]:
        """Channels with a limit."""
        return np.flatnonzero(np.isfinite(self.of)).tolist()

    @property
    def sets(self) -> list[tuple[int, ...]]:
        """Sets of channels that can be scarce together."""
        return [x for size in range(1, len(self.limited) + 1) for x in combinations(self.limited, size)]

    def barred(self, catalogue: Catalogue) -> list[Tensor]:
        """Tell for each of `sets` which flat actions go through one of its channels, bool [P] each."""
        return [torch.isin(channels_of(catalogue), torch.tensor(x)) for x in self.sets]

    def scarce(self, without: Sequence[Increments], fee: Tensor) -> list[Increments]:
        """Return those ladders of `without`, in the order of `sets`, that do without channels of a price alone.

        A channel without a price takes no substitute away. With it a customer would be refused what has room.
        """
        return [ladder for ladder, channels in zip(without, self.sets) if bool((fee[list(channels)] > 0).all())]

    def share(self, part: float) -> Capacity:
        """Return a part of each capacity in whole messages, so that parts of one add up to no more than the whole."""
        whole = [math.floor(x * part + 1e-9) if math.isfinite(x) else math.inf for x in self.of.tolist()]
        return Capacity(np.array(whole, dtype=np.float64), self.channels)

    def pairs(self, catalogue: Catalogue) -> Tensor:
        """Tell which flat actions go through a channel with a limit, bool [P]."""
        return torch.isin(channels_of(catalogue), torch.tensor(self.limited, dtype=torch.long))

    def names(self) -> list[str]:
        """Name the rule that each channel's limit is."""
        return [f"capacity {name}: {x:,.0f} messages" for name, x in zip(self.channels, self.of.tolist())]


class Points(NamedTuple):
    """What each of n customers may hold, "nothing" first: spend, and worth at the prices of the customer's steps."""

    worth: Tensor  #: −inf where there is no such point, float64 [n, M]
    spend: Tensor  #: expected, float64 [n, M]
    action: Tensor  #: flat index, int64 [n, M]

    @classmethod
    def of(cls, *ladders: Increments) -> Points:
        """Return the points of several ladders of the same customers: a step is worth its price times its spend."""
        start = torch.zeros(len(ladders[0].price), 1)
        parts = [(start.double(), start.double(), start.long())]
        for steps in ladders:
            real = steps.price > -torch.inf
            added = torch.where(real, steps.spend, 0.0).double()
            gain = torch.where(real, steps.price, 0.0).double() * added.clamp_min(1e-12)  # as in upper_hull's prices
            worth = gain.cumsum(1).masked_fill(~real, -torch.inf)
            parts.append((worth, added.cumsum(1), steps.action))
        return cls(*(torch.cat(x, 1) for x in zip(*parts)))

    def steps(self, fee: Tensor, channel: Tensor) -> Increments:
        """Return the steps where a message costs `fee` [C] more; `channel` [P] is that of a flat action, C for none."""
        worth = self.worth - torch.cat((fee, fee.new_zeros(1)))[channel[self.action]]
        hull = upper_hull(worth, self.spend)
        return Increments(hull.price.float(), hull.spend.float(), self.action.gather(1, hull.action))


def priced(
    steps: Increments, without: Sequence[Increments], fee: Tensor, capacity: Capacity, catalogue: Catalogue
) -> Increments:
    """Return steps [n, K] where a message costs `fee` [C] more; `without` are the steps without each of `sets`."""
    channel = channels_of(catalogue)
    rows = with_pairs(steps, torch.cat((fee > 0, torch.tensor([False])))[channel])
    if not bool(rows.any()):
        return steps
    theirs = (Increments(*(x[rows] for x in ladder)) for ladder in (steps, *capacity.scarce(without, fee)))
    return merged(steps, Points.of(*theirs).steps(fee, channel), rows)


def with_pairs(steps: Increments, pairs: Tensor) -> Tensor:
    """Tell whose steps [n, K] have one of the pairs [P], bool [n]."""
    return (pairs[steps.action] & (steps.price > -torch.inf)).any(1)


class WithinCapacity(NamedTuple):
    """Steps of n customers at prices at which channels carry no more than they can, and what clears their money."""

    steps: Increments
    demand: Demand  #: of the steps
    cleared: Cleared
    fee: Tensor  #: of a message through each channel, in what sends are worth, float64 [C]
    closed: list[int]  #: channels that no price clears: nobody buys at theirs


def channels_of(catalogue: Catalogue) -> Tensor:
    """Return the channel of each flat action, int64 [P], and C for nothing."""
    offer, channel = catalogue.action_codec.decode(torch.arange(catalogue.action_codec.num_actions))
    return torch.where(offer > 0, channel, len(catalogue.channels))


def holding(steps: Increments, price: float, sigma: float) -> Tensor:
    """Return the probability that each step is the last one that a customer's lot buys, float64 [n, 1 + K].

    The first column is the probability of nothing.
    """
    reached = reach_probabilities(steps, torch.full((len(steps.price),), price), sigma)
    bounds = pad(pad(reached, (1, 0), value=1.0), (0, 1))
    return bounds[:, :-1] - bounds[:, 1:]


def through_channels(actions: Tensor, chance: Tensor, catalogue: Catalogue) -> Tensor:
    """Return the chance [n, C] of a message through each channel; actions and their chances are [n, M]."""
    channels = len(catalogue.channels)
    found = torch.zeros(len(chance), channels + 1, dtype=torch.float64)
    return found.scatter_add_(1, channels_of(catalogue)[actions], chance)[:, :channels]


def room_used(chance: Tensor) -> float:
    """Return the expected number of messages and 4 standard deviations of it; chance [n] of each customer's."""
    mean, variance = float(chance.sum()), float((chance * (1 - chance)).sum())
    return mean + LOTS_Z * math.sqrt(max(variance, 0.0))


def clear_within(
    steps: Increments,
    without: Sequence[Increments],
    capacity: Capacity,
    catalogue: Catalogue,
    sigma: float,
    clear: Callable[[Demand], Cleared],
) -> WithinCapacity:
    """Raise the price of a message of each channel that is asked for too much, until none is.

    `steps` [n, K] are the customers' steps, `without` those that they have without each set of channels that can be
    scarce together, in the order of `Capacity.sets`, and `clear` finds the price of money. A customer then holds what
    is worth most after both prices: the steps are the upper hull of worth less price of the message. Prices only rise,
    as in an ascending auction of substitutes.
    """
    fee = torch.zeros(len(catalogue.channels), dtype=torch.float64)
    if not capacity.limited:
        demand = Demand.of(steps, catalogue)
        return WithinCapacity(steps, demand, clear(demand), fee, [])
    channel, rows = channels_of(catalogue), with_pairs(steps, capacity.pairs(catalogue))
    theirs, *instead = (Increments(*(x[rows] for x in ladder)) for ladder in (steps, *without))
    others = Demand.of(Increments(*(x[~rows] for x in steps)), catalogue)

    def at(fee: Tensor) -> WithinCapacity:
        found = priced(theirs, instead, fee, capacity, catalogue)
        demand = Demand(*(np.concatenate(x) for x in zip(others, Demand.of(found, catalogue))))
        return WithinCapacity(found, demand, clear(demand), fee.clone(), [])

    def spare(found: WithinCapacity, k: int) -> float:
        held = holding(found.steps, found.cleared.price, sigma)[:, 1:]
        return capacity.of[k] - room_used(through_channels(found.steps.action, held, catalogue)[:, k])

    now, tops = at(fee), torch.full_like(fee, math.inf)
    for number in range(ROUNDS + len(capacity.limited)):
        beyond = [k for k in capacity.limited if spare(now, k) < 0]
        for k in beyond:
            points = Points.of(theirs, *(capacity.scarce(instead, fee) if number < ROUNDS else instead))
            top = float(points.worth[channel[points.action] == k].amax())  # at this price nobody buys

            def spare_at(x: float, k: int = k) -> float:
                return spare(at(fee.index_fill(0, torch.tensor(k), x)), k)

            fee[k] = rising(spare_at, float(fee[k]), top, SLACK * capacity.of[k]) if number < ROUNDS else top
            now, tops[k] = at(fee), top
        if not beyond:
            break
    closed = (fee >= tops).nonzero()[:, 0].tolist()
    return now._replace(steps=merged(steps, now.steps, rows), closed=closed)


def rising(spare: Callable[[float], float], low: float, top: float, slack: float) -> float:
    """Return a price above `low`, at most `top`, at which what a channel has to spare is at least 0, and little more.

    At `low` a channel lacks room, and at `top` it has all of it.
    """
    step = low / 64 or top
    while low + step < top and spare(low + step) < 0:
        low, step = low + step, 4 * step
    high = min(low + step, top)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        left = spare(middle)
        low, high = (low, middle) if left >= 0 else (middle, high)
        if 0 <= left < max(0.5, slack):
            break
    return high


def merged(steps: Increments, others: Increments, rows: Tensor) -> Increments:
    """Return steps [n, K] with those of some rows replaced by others."""
    width = max(steps.price.shape[1], others.price.shape[1])
    whole = []
    for x, y, none in zip(steps, others, (-torch.inf, 0.0, 0)):
        wide = pad(x.clone(), (0, width - x.shape[1]), value=none)
        wide[rows] = pad(y, (0, width - y.shape[1]), value=none)
        whole.append(wide)
    return Increments(*whole)


def drawn_weight(mask: Tensor, share: float, capacity: Capacity, catalogue: Catalogue) -> Tensor:
    """Return the weight of each pair in draws among all pairs of the mask [n, P] alike, float64 [P]; 1 without limit.

    Pairs are drawn in a share of cases. A channel's weight is the highest at which its messages and 4 standard
    deviations lie within its capacity.
    """
    channel = channels_of(catalogue)
    weight = torch.ones(len(channel), dtype=torch.float64)
    if not capacity.limited:
        return weight
    pairs = torch.arange(len(channel)).expand_as(mask)
    chances = share * through_channels(pairs, mask / mask.sum(1, keepdim=True).double(), catalogue)
    for k in capacity.limited:
        chance, low, high = chances[:, k], 0.0, 1.0
        if room_used(chance) <= capacity.of[k]:
            continue
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if room_used(chance * middle) <= capacity.of[k] else (low, middle)
        weight[channel == k] = low
    return weight


def first_of_each_channel(wanted: Tensor, rank: Tensor, capacity: Capacity, catalogue: Catalogue) -> Tensor:
    """Keep the wanted actions [n], by falling rank [n], that their channels carry; nothing for all others."""
    channel = channels_of(catalogue)[wanted]
    order = rank.argsort(descending=True, stable=True)
    kept = wanted.clone()
    for k in capacity.limited:
        through = order[channel[order] == k]
        kept[through[int(capacity.of[k]) :]] = 0
    return kept
