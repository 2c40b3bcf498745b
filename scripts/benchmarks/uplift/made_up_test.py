"""Made-up randomised tests whose true values are known: unequal arms, rare spends with heavy tails, households."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from envs.ab_test.trial_table import Trial

SPEND = "spend"
COLUMNS = 3  # features; the first one moves spend, and who profits


class MadeUpTest:
    """A population of households from which tests are drawn.

    A customer spends with probability `buys`, log-normally, with log-scale `tail`; a household of `household` customers
    shares its first feature and a log-normal factor of log-scale `shared`, and is drawn into an arm as a whole, with
    probabilities `shares`. Every arm but the first brings what it costs, so that no arm earns more than another; with
    `uneven`, so much more from customers whose first feature is above 0, and so much less from the others.
    """

    def __init__(
        self,
        *,
        customers: int,
        shares: dict[str, float],
        buys: float,
        tail: float,
        household: int,
        shared: float,
        uneven: float,
    ):
        self.customers = customers
        self.shares = shares
        self.buys = buys
        self.tail = tail
        self.household = household
        self.shared = shared
        self.uneven = uneven

    def mean_spend(self, cost: float) -> list[float]:
        """True mean spend of every arm, where a treatment costs `cost`."""
        base = self.buys * math.exp((self.tail**2 + self.shared**2) / 2)
        return [base] + [base + cost] * (len(self.shares) - 1)

    def net_effects(self, features: Tensor) -> Tensor:
        """True profit of every arm over the first for customers [N, D], [N, A]."""
        gained = self.uneven * torch.where(features[:, 0] > 0, 1.0, -1.0).double()
        effects = gained[:, None].repeat(1, len(self.shares))
        effects[:, 0] = 0.0
        return effects

    def draw(self, cost: float, generator: torch.Generator) -> Drawn:
        """Draw a test in which a treatment costs `cost`."""
        households = self.customers // self.household
        unit = torch.arange(households).repeat_interleave(self.household)
        count = len(unit)
        features = torch.randn(count, COLUMNS, generator=generator)
        features[:, 0] = torch.randn(households, generator=generator)[unit]
        weights = torch.tensor(list(self.shares.values()), dtype=torch.float64)
        arm = torch.multinomial(weights, households, True, generator=generator)[unit]
        factor = (self.shared * torch.randn(households, generator=generator).double()).exp()[unit]
        amount = (self.tail * torch.randn(count, generator=generator).double()).exp()
        buys = torch.rand(count, generator=generator) < self.buys
        brought = cost * (arm > 0) + self.net_effects(features).gather(1, arm[:, None])[:, 0]
        spend = torch.where(buys, amount * factor, 0.0) + brought
        propensity = arm.bincount(minlength=len(self.shares)).double()[arm] / count
        trial = Trial(
            ids=[],
            unit=unit,
            arms=list(self.shares),
            arm=arm,
            propensity=propensity,
            outcomes={SPEND: spend},
            features=features,
            feature_names=[f"x{k}" for k in range(COLUMNS)],
        )
        return Drawn(trial, torch.randn(self.customers, COLUMNS, generator=generator))


class Drawn(NamedTuple):
    """A test, and customers who were not in it."""

    trial: Trial
    others: Tensor  #: features, [N, D]
