"""One customer in plain Python: the equations of envs/offers/README.md §2 and §5, loops over 79 states of floats.

Written from the document, not from the package, so that the tests can hold the package to it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from functools import cache
from itertools import product
from math import exp, log

import torch

from envs.offers.world.customers import Customers, CustomerState, World

SUBSCRIBED, UNSUBSCRIBED, CHURNED = range(3)
GONE = (0, 0, 0, CHURNED)
INSIDE = [(h, f, d, SUBSCRIBED) for h, f, d in product(range(6), range(4), range(3))]
STATES = [*INSIDE, *((h, 0, 0, UNSUBSCRIBED) for h in range(6)), GONE]
NOTHING = (0, 0)


def sigmoid(x: float) -> float:
    """Logistic function."""
    return 1 / (1 + exp(-x))


def clamp(x: int, top: int) -> int:
    """Keep x within 0..top."""
    return max(0, min(top, x))


def chance(p: float, move: int) -> list:
    """Move by `move` with probability p, else stay: [(step, probability), …]."""
    return [(move, p), (0, 1 - p)]


class Reference:
    """One customer: θ by name, and what the market and the reward look like to all."""

    def __init__(
        self,
        theta: dict,
        values: list,
        costs: list,
        opt_outs: list,
        fatigue_steps: list,
        season: list,
        reward,
        tail_weeks: int,
        tail_discount: float,
    ):
        self.__dict__.update(theta)
        self.values, self.costs, self.opt_outs, self.fatigue_steps = values, costs, opt_outs, fatigue_steps
        self.season, self.reward = season, reward
        self.tail_weeks, self.tail_discount = tail_weeks, tail_discount
        self.pairs = [NOTHING, *product(range(1, len(values)), range(len(costs)))]

    # ── response ────────────────────────────────────────────────────────────────────────────────────────────────────
    def allowed(self, s: tuple) -> list:
        """List the actions that a state admits."""
        return self.pairs if s[3] == SUBSCRIBED else [NOTHING]

    def respond(self, s: tuple, season: float, a: tuple) -> tuple[float, float]:
        """Return P(redeem) and P(buy)."""
        h, f, d, z = s
        if z == CHURNED:
            return 0.0, 0.0
        b = self.alpha + self.kappa * h / 5 - self.xi * d / 2 + 2 * log(season)
        p0 = sigmoid(b)
        if a == NOTHING:
            return 0.0, p0
        q = sigmoid(self.omega[a[1]] - self.phi * f)
        perceived = max(self.values[a[0]] - self.rho * d, 0.05)
        p1 = sigmoid(b + self.eta + self.beta * log(1 + perceived))
        return q * p1 * self.mu, q * p1 + (1 - q) * p0

    def spend(self, s: tuple, season: float, a: tuple) -> float:
        """Return what the budget is expected to pay."""
        return 0.0 if a == NOTHING else self.values[a[0]] * self.respond(s, season, a)[0] + self.costs[a[1]]

    def profit(self, s: tuple, season: float, a: tuple) -> float:
        """Return the expected reward of a week."""
        p_buy = self.respond(s, season, a)[1]
        annoyed = a != NOTHING and s[1] >= self.reward.fatigue_limit
        p_churn = 0.0 if s == GONE else self.churn(s) * (p_buy * 0.25 + 1 - p_buy)
        return (
            (self.margin + self.reward.trips) * p_buy
            - self.spend(s, season, a)
            - self.reward.churn_cost * p_churn
            - self.reward.fatigue_penalty * annoyed
        )

    # ── transitions ─────────────────────────────────────────────────────────────────────────────────────────────────
    def churn(self, s: tuple) -> float:
        """Return P(churn | no purchase)."""
        return min(0.5, self.c0 * exp(-self.gamma_h * s[0] + self.gamma_f * s[1]))

    def opts_out(self, s: tuple, a: tuple) -> float:
        """Return P(opt-out | not churned)."""
        return 0.0 if a == NOTHING else min(0.3, self.opt_outs[a[1]] * self.opt_out * (1 + s[1]))

    def climbs(self, h: int, redeemed: bool) -> float:
        """Return u, P(habit up | bought)."""
        u = self.pi_plus * (1 + self.nu if h <= 1 else 1)
        if redeemed:
            u *= 1 - self.chi if h >= 3 else 1 - 0.4 * self.chi
        return min(u, 0.95)

    def moves(self, s: tuple, a: tuple, bought: bool, redeemed: bool) -> tuple[list, list, list]:
        """Return the moves of habit, fatigue and expectation, each [(step, probability), …]."""
        habit = chance(self.climbs(s[0], redeemed), +1) if bought else chance(self.pi_minus, -1)
        fatigue = chance(self.delta_f, -1) if a == NOTHING else chance(1.0, self.fatigue_steps[a[1]])
        return habit, fatigue, chance(1.0, +1) if redeemed else chance(self.delta_d, -1)

    @staticmethod
    def settle(s: tuple, z: int, dh: int, df: int, dd: int) -> tuple:
        """Move a state, clamped at its ends."""
        h, f, d = clamp(s[0] + dh, 5), clamp(s[1] + df, 3), clamp(s[2] + dd, 2)
        return {SUBSCRIBED: (h, f, d, z), UNSUBSCRIBED: (h, 0, 0, z), CHURNED: GONE}[z]

    @cache
    def law(self, s: tuple, season: float, a: tuple) -> dict:
        """Return P(s' | s, a) by enumerating every combination of draws."""
        if s == GONE:
            return {GONE: 1.0}
        redeem, buy = self.respond(s, season, a)
        left = self.opts_out(s, a)
        result = defaultdict(float)
        for bought, redeemed, p in ((True, True, redeem), (True, False, buy - redeem), (False, False, 1 - buy)):
            lost = self.churn(s) * (0.25 if bought else 1)
            for (dh, ph), (df, pf), (dd, pd) in product(*self.moves(s, a, bought, redeemed)):
                moved = p * ph * pf * pd
                result[GONE] += moved * lost
                result[self.settle(s, UNSUBSCRIBED, dh, df, dd)] += moved * (1 - lost) * left
                result[self.settle(s, s[3], dh, df, dd)] += moved * (1 - lost) * (1 - left)
        return {state: p for state, p in result.items() if p > 0}

    def draw(self, s: tuple, season: float, a: tuple, u: list) -> tuple[tuple, bool, bool]:
        """Return s', bought, redeemed; uniforms in the order purchase, habit, fatigue, expectation, churn, opt-out."""
        if s == GONE:
            return GONE, False, False
        redeem, buy = self.respond(s, season, a)
        redeemed, bought = u[0] < redeem, u[0] < buy
        steps = [move if x < p else 0 for ((move, p), _), x in zip(self.moves(s, a, bought, redeemed), u[1:4])]
        if u[4] < self.churn(s) * (0.25 if bought else 1):
            return GONE, bought, redeemed
        return self.settle(s, UNSUBSCRIBED if u[5] < self.opts_out(s, a) else s[3], *steps), bought, redeemed

    # ── dynamic program ─────────────────────────────────────────────────────────────────────────────────────────────
    def ahead(self, s: tuple, season: float, a: tuple, value: dict) -> float:
        """Return the expected value of next week's state."""
        return sum(p * value[state] for state, p in self.law(s, season, a).items())

    def q(self, s: tuple, week: int, a: tuple, value: dict, price: float) -> float:
        """Return r − price·spend + E value(s')."""
        season = self.season[week]
        return self.profit(s, season, a) - price * self.spend(s, season, a) + self.ahead(s, season, a, value)

    @cache
    def end(self) -> dict:
        """Return V_end, weighted: the organic margin of the weeks after the season."""
        value = dict.fromkeys(STATES, 0.0)
        for _ in range(self.tail_weeks):
            value = {
                s: (self.margin + self.reward.trips) * self.respond(s, 1.0, NOTHING)[1]
                + self.tail_discount * self.ahead(s, 1.0, NOTHING, value)
                for s in STATES
            }
        return {s: self.reward.terminal * v for s, v in value.items()}

    def no_contact_values(self) -> list[dict]:
        """Return V⁰ of weeks 1..T+1."""
        values = [self.end()]
        for week in reversed(range(len(self.season))):
            values.append({s: self.q(s, week, NOTHING, values[-1], 0.0) for s in STATES})
        return values[::-1]

    def plan(self, prices: list) -> list[dict]:
        """Return V^λ of weeks 1..T+1."""
        values = [self.end()]
        for week, price in reversed(list(enumerate(prices))):
            values.append({s: max(self.q(s, week, a, values[-1], price) for a in self.allowed(s)) for s in STATES})
        return values[::-1]

    def occupancy(self, start: tuple, policy: list[dict]) -> list[dict]:
        """Return P(s) of weeks 1..T+1 under a table of actions, {state: action} a week."""
        result = [{start: 1.0}]
        for season, action in zip(self.season, policy):
            following = defaultdict(float)
            for s, p in result[-1].items():
                for state, share in self.law(s, season, action.get(s, NOTHING)).items():
                    following[state] += p * share
            result.append(following)
        return result

    def spends(self, start: tuple, policy: list[dict]) -> list[float]:
        """Return the expected spend of each week."""
        return [
            sum(p * self.spend(s, season, action.get(s, NOTHING)) for s, p in mass.items())
            for season, action, mass in zip(self.season, policy, self.occupancy(start, policy))
        ]

    def worth(self, start: tuple, policy: list[dict]) -> float:
        """Return J of one customer: expected rewards and V_end."""
        mass, end = self.occupancy(start, policy), self.end()
        rewards = sum(
            p * self.profit(s, season, action.get(s, NOTHING))
            for season, action, week in zip(self.season, policy, mass)
            for s, p in week.items()
        )
        return rewards + sum(p * end[s] for s, p in mass[-1].items())


def references(c: Customers, world: World) -> list[Reference]:
    """Copy customers and their world into plain numbers."""
    catalogue = world.catalogue
    market = [getattr(catalogue, name).tolist() for name in ("value", "cost", "opt_out", "fatigue_steps")]
    theta = {f.name: [x.tolist() for x in getattr(c, f.name).unbind(-1)] for f in fields(c)}
    return [
        Reference(
            {name: column[i] for name, column in theta.items()},
            *market,
            world.season.tolist(),
            world.reward,
            world.tail_weeks,
            world.tail_discount,
        )
        for i in range(len(c))
    ]


def tuples(state: CustomerState) -> list[tuple]:
    """List the states of customers as tuples (h, f, d, z)."""
    return list(zip(*(x.tolist() for x in state)))


def pick(rows: list, n: int, generator: torch.Generator) -> list:
    """Draw n of the rows with replacement."""
    return [rows[i] for i in torch.randint(len(rows), (n,), generator=generator)]
