"""The customer: how one responds to a message and what a week does to one, as pure functions of tensors.

Customers are always the last axis, so that the same functions serve N visited states (h, f, d of shape [N]) and the
whole state grid (h [6,1,1,1], f [4,1,1], d [3,1]). Symbols are those of envs/offers/README.md §2.
"""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.catalogue import Catalogue

HABITS, FATIGUES, EXPECTATIONS = 6, 4, 3
SUBSCRIBED, UNSUBSCRIBED, CHURNED = 0, 1, 2
UNIFORMS = 6  # independent draws that a customer needs for one week


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

    def __getitem__(self, index) -> Customers:
        return self.map(lambda x: x[..., index])

    def outcomes(self, world: World, week: int, state: State, history) -> Outcome:
        """Outcome of every flat pair for every customer, [N, (O+1)·C] each; of a history they need nothing."""
        codec = world.catalogue.action_codec
        pair = codec.every_action(self.alpha.device)[:, None].expand(-1, len(self))
        h, f, d = (x.to(self.alpha.dtype) for x in state[:3])
        return Outcome(*(x.T for x in outcome(self, world, week, h, f, d, *codec.decode(pair))))

    def earns(self, week: int, state: State, history) -> Tensor:
        """Margin of a purchase, [N]."""
        return self.margin


class State(NamedTuple):
    """Habit, fatigue, discount expectation and status of N customers, int64 [N]."""

    habit: Tensor
    fatigue: Tensor
    expectation: Tensor
    status: Tensor


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a week is worth beside the margin; every term enters the dynamic program as well."""

    trips: float  # λ_trips, added to the margin of every purchase
    terminal: float  # weight of V_end, the organic margin after the season
    churn_cost: float  # money lost with a churned customer
    fatigue_penalty: float  # satisfaction lost by a contact at high fatigue
    fatigue_limit: int  # the fatigue from which a contact annoys
    shaping: bool  # give A⁰ = Q⁰ − V⁰ instead of r: the same optimum, next to no organic noise
    outcomes: str  # expected | realised

    def __post_init__(self):
        if self.outcomes not in ("expected", "realised"):
            raise ValueError(f"env.reward.outcomes: expected 'expected' or 'realised', got '{self.outcomes}'")


class World:
    """What all customers share: catalogue, reward, calendar, and the effects that are switched off."""

    def __init__(self, catalogue: Catalogue, reward: Reward, *, season: list, without: list, tail_weeks: int,
                 tail_discount: float):
        self.catalogue, self.reward = catalogue, reward
        self.season = torch.as_tensor(season, dtype=torch.float64)  # spend index [T]
        self.without = tuple(without)  # parameters set to zero: the static control and the one-effect worlds
        self.tail_weeks, self.tail_discount = tail_weeks, tail_discount
        unknown = set(without) - {f.name for f in fields(Customers)}
        if unknown:
            raise ValueError(f"env.world.without: no such parameter: {', '.join(sorted(unknown))}")

    @property
    def weeks(self) -> int:
        """T, weeks in a season."""
        return len(self.season)

    def to(self, device, dtype) -> World:
        """Return a copy with its floats in `dtype` on `device`."""
        world = object.__new__(World)
        world.__dict__ = {**self.__dict__, "season": self.season.to(device, dtype),
                          "catalogue": self.catalogue.to(device, dtype)}
        return world

    def inhabit(self, c: Customers) -> Customers:
        """Cast customers to this world's type and device, its switched-off effects set to zero."""
        if "kappa" in self.without:  # without the pull of habit, keep the base purchase rate at mid-habit
            c = replace(c, alpha=c.alpha + c.kappa / 2)
        c = replace(c, **{name: torch.zeros_like(getattr(c, name)) for name in self.without})
        return c.map(lambda x: x.to(self.season))


# ── response ────────────────────────────────────────────────────────────────────────────────────────────────────────
def utility(c: Customers, h: Tensor, d: Tensor, season: Tensor) -> Tensor:
    """b = α + κ·h/5 − ξ·d/2 + 2·ln(season)."""
    return c.alpha + c.kappa * (h / 5) - c.xi * (d / 2) + 2 * season.log()


def attention(omega: Tensor, c: Customers, f: Tensor) -> Tensor:
    """q = σ(ω − φ·f), P(message seen)."""
    return torch.sigmoid(omega - c.phi * f)


def purchase_if_seen(c: Customers, b: Tensor, d: Tensor, value: Tensor) -> Tensor:
    """p1 = σ(b + η + β·ln(1 + e)), perceived value e = max(v − ρ·d, 0.05)."""
    e = (value - c.rho * d).clamp_min(0.05)
    return torch.sigmoid(b + c.eta + c.beta * torch.log1p(e))


class Outcome(NamedTuple):
    """One week under one action: P(redeemed), P(bought without redeeming), expected spend of the budget."""

    redeem: Tensor
    buy: Tensor
    spend: Tensor


def outcome(c: Customers, world: World, week: int, h: Tensor, f: Tensor, d: Tensor, offer: Tensor,
            channel: Tensor) -> Outcome:
    """Respond to one offer and channel each (int64, shaped like the states; offer 0 is no contact)."""
    b = utility(c, h, d, world.season[week])
    omega = c.omega.view(-1, *(1,) * (offer.dim() - 1), len(c)).expand(-1, *offer.shape)
    q = attention(omega.gather(0, channel[None])[0], c, f) * (offer > 0)
    seen = q * purchase_if_seen(c, b, d, world.catalogue.value[offer])
    redeem = seen * c.mu
    buy = seen - redeem + (1 - q) * torch.sigmoid(b)
    return Outcome(redeem, buy, world.catalogue.spend(offer, channel, redeem))


def profit(c: Customers, reward: Reward, h: Tensor, f: Tensor, o: Outcome, contacted: Tensor) -> Tensor:
    """Expected profit of the week of customers who had the outcome o, budget's spend taken off."""
    bought = o.redeem + o.buy
    annoyed = contacted & (f >= reward.fatigue_limit)
    return ((c.margin + reward.trips) * bought - o.spend - reward.churn_cost * churn(c, h, f) * (1 - 0.75 * bought)
            - reward.fatigue_penalty * annoyed)


# ── transitions ─────────────────────────────────────────────────────────────────────────────────────────────────────
def habit_gain(c: Customers, h: Tensor, redeemed: bool) -> Tensor:
    """u, P(habit up | bought), slower where an offer paid for the purchase."""
    u = c.pi_plus * (1 + c.nu * (h <= 1))
    if redeemed:
        u = u * torch.where(h >= 3, 1 - c.chi, 1 - 0.4 * c.chi)
    return u.clamp_max(0.95)


def churn(c: Customers, h: Tensor, f: Tensor) -> Tensor:
    """P(churn | no purchase); a purchase leaves a quarter of it."""
    return (c.c0 * torch.exp(-c.gamma_h * h + c.gamma_f * f)).clamp_max(0.5)


def leave(c: Customers, f: Tensor, rate: Tensor) -> Tensor:
    """P(opt-out | contacted, not churned) for a channel's base rate."""
    return (rate * c.opt_out * (1 + f)).clamp_max(0.3)


def transition(c: Customers, world: World, week: int, state: State, offer: Tensor, channel: Tensor,
               u: Tensor) -> tuple[State, Tensor, Tensor, Outcome]:
    """Draw next week's state from uniforms u [6, N]; return it with bought, redeemed (bool [N]) and the Outcome.

    Who is not subscribed gets nothing, whatever was asked for; who is unsubscribed buys and churns on; who churned
    stays so and buys nothing.
    """
    status, alive = state.status, state.status != CHURNED
    offer = torch.where(status == SUBSCRIBED, offer, 0)
    contacted = offer > 0
    h, f, d = (x.to(u.dtype) for x in state[:3])
    o = outcome(c, world, week, h, f, d, offer, channel)
    o = o._replace(buy=o.buy * alive)
    redeemed = u[0] < o.redeem
    bought = u[0] < o.redeem + o.buy
    lost = churn(c, h, f)
    churned = ~alive | (u[4] < torch.where(bought, 0.25 * lost, lost))
    left = contacted & (u[5] < leave(c, f, world.catalogue.opt_out[channel]))
    return moved(c, world, state, contacted, channel, bought, redeemed, churned, left, u), bought, redeemed, o


def moved(c: Customers, world: World, state: State, contacted: Tensor, channel: Tensor, bought: Tensor, redeemed: Tensor,
          churned: Tensor, left: Tensor, u: Tensor) -> State:
    """Draw next week's state from uniforms u [≥ 4, N], of which u[1:4] are used, when it is known (bool [N]) what was done
    and what came of it."""
    h = state.habit.to(u.dtype)
    gain = torch.where(redeemed, habit_gain(c, h, True), habit_gain(c, h, False))
    tired = state.fatigue + world.catalogue.tires[channel]
    habit = torch.where(bought, state.habit + (u[1] < gain).long(), state.habit - (u[1] < c.pi_minus).long())
    fatigue = torch.where(contacted, tired, state.fatigue - (u[2] < c.delta_f).long())
    expectation = torch.where(redeemed, state.expectation + 1, state.expectation - (u[3] < c.delta_d).long())
    status = torch.where(churned, CHURNED, torch.where(left, UNSUBSCRIBED, state.status))
    there = status == SUBSCRIBED
    return State(torch.where(status != CHURNED, habit.clamp(0, HABITS - 1), 0),
                 torch.where(there, fatigue.clamp(0, FATIGUES - 1), 0),
                 torch.where(there, expectation.clamp(0, EXPECTATIONS - 1), 0), status)
