"""Customers' parameters θ and states, and the world that all customers share (symbols: envs/offers/README.md §2)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue

HABITS, FATIGUES, EXPECTATIONS = 6, 4, 3
SUBSCRIBED, UNSUBSCRIBED, CHURNED = 0, 1, 2
UNIFORMS = 6  # independent draws a customer and week

Rows = slice | Tensor  # of some customers, whose place in a tensor [..., N] it indexes


@dataclass(frozen=True)
class Customers:
    """Static parameters θ of N customers; every field is [N] but `omega`, which is [channels, N]."""

    alpha: Tensor  # base utility of a purchase
    kappa: Tensor  # pull of habit
    xi: Tensor  # drag of discount expectation
    margin: Tensor  # g, money per purchase
    mu: Tensor  # P(redeem | bought and saw the offer)
    beta: Tensor  # taste for value
    eta: Tensor  # effect of a message without value
    opt_out: Tensor  # ω_o, multiplies a channel's opt-out rate
    phi: Tensor  # fatigue → less attention
    gamma_f: Tensor  # fatigue → more churn
    gamma_h: Tensor  # habit → less churn
    c0: Tensor  # base churn
    rho: Tensor  # discount expectation → less perceived value
    chi: Tensor  # redeeming → slower habit
    pi_plus: Tensor  # P(habit up | bought)
    pi_minus: Tensor  # P(habit down | not bought)
    delta_f: Tensor  # P(fatigue down | no contact)
    delta_d: Tensor  # P(expectation down | not redeemed)
    nu: Tensor  # faster habit for the new
    omega: Tensor  # attention of a channel, logit

    def __len__(self) -> int:
        return self.alpha.shape[0]

    def map(self, function) -> Customers:
        """Apply `function` to every tensor."""
        return Customers(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters in order."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def __getitem__(self, rows: Rows) -> Customers:
        return self.map(lambda x: x[..., rows])


class CustomerState(NamedTuple):
    """Habit, fatigue, discount expectation and status of N customers, int64 [N]."""

    habit: Tensor
    fatigue: Tensor
    expectation: Tensor
    status: Tensor


def one_hot(x: Tensor, n: int) -> Tensor:
    """One-hot columns of int64 x [N], bool [N, n]. torch's own waits for the device to check its input."""
    return x[:, None] == torch.arange(n, device=x.device)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The terms of the reward beside the margin; every term enters the dynamic program, too."""

    trips: float  # λ_trips, added to the margin of every purchase
    terminal: float  # weight of V_end, the margin after the season without contact
    churn_cost: float  # money lost with a churned customer
    fatigue_penalty: float  # satisfaction lost by a contact at high fatigue
    fatigue_limit: int  # the fatigue from which a contact annoys
    shaping: bool  # give A⁰ = Q⁰ − V⁰ instead of r: the same optimum with hardly any noise of organic purchases
    outcomes: str  # expected | realised

    def __post_init__(self):
        if self.outcomes not in ("expected", "realised"):
            raise ValueError(f"env.reward.outcomes: expected 'expected' or 'realised', got '{self.outcomes}'")


class World:
    """The world that all customers share: catalogue, reward, calendar, and disabled effects."""

    def __init__(
        self,
        catalogue: Catalogue,
        reward: RewardConfig,
        *,
        season: list,
        disabled_effects: list,
        tail_weeks: int,
        tail_discount: float,
    ):
        self.catalogue, self.reward = catalogue, reward
        self.season = torch.as_tensor(season, dtype=torch.float64)  # spend index [T]
        self.disabled_effects = tuple(disabled_effects)  # parameters set to zero, as in the static control
        self.tail_weeks, self.tail_discount = tail_weeks, tail_discount
        unknown = set(disabled_effects) - {f.name for f in fields(Customers)}
        if unknown:
            raise ValueError(f"env.world.disabled_effects: no such parameter: {', '.join(sorted(unknown))}")

    @property
    def weeks(self) -> int:
        """T, weeks in a season."""
        return len(self.season)

    def to(self, device, dtype) -> World:
        """Return a copy with its floats in `dtype` on `device`."""
        world = object.__new__(type(self))
        world.__dict__ = {
            **self.__dict__,
            "season": self.season.to(device, dtype),
            "catalogue": self.catalogue.to(device, dtype),
        }
        return world

    def inhabit(self, c: Customers) -> Customers:
        """Cast customers to this world's type and device, and set disabled effects to zero."""
        if "kappa" in self.disabled_effects:  # without the pull of habit, keep the base purchase rate at mid-habit
            c = replace(c, alpha=c.alpha + c.kappa / 2)
        c = replace(c, **{name: torch.zeros_like(getattr(c, name)) for name in self.disabled_effects})
        return c.map(lambda x: x.to(self.season))
