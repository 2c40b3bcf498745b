"""A season as a shop sees it, simulated; and one customer as a hidden Markov model in plain Python."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from itertools import product
from math import log

import torch

from envs.offers.world.customers import SUBSCRIBED, UNIFORMS, UNSUBSCRIBED, Customers, CustomerState
from envs.offers.world.history import SeenWeek
from envs.offers.world.transition import transition
from reference_world import GONE, NOTHING, Reference

START = {(h, 0, d, SUBSCRIBED): 1 / 12 for h, d in product(range(6), range(2))}


def simulate(world, c: Customers, state: CustomerState, generator: torch.Generator, weeks: int):
    """Seasons of uniform decisions as a shop sees them, and the states, T + 1: it writes to the churned as before."""
    codec, seasons, states = world.catalogue.action_codec, [], [state]
    opted_out = torch.zeros(len(c), dtype=torch.bool)
    for t in range(weeks):
        nth = torch.randint(codec.num_treatments, (len(c),), generator=generator)
        flat = torch.where(opted_out | (nth == 0), 0, codec.nth_contact(nth - 1))
        offer, channel = codec.decode(flat)
        u = torch.rand(UNIFORMS, len(c), generator=generator).to(c.alpha)
        after, bought, redeemed, _ = transition(c, world, t % world.weeks, state, offer, channel, u)
        left = (state.status == SUBSCRIBED) & (after.status == UNSUBSCRIBED)
        seasons.append(SeenWeek(offer, channel, bought, redeemed, left, c.margin * bought))
        opted_out, state = opted_out | left, after
        states.append(state)
    return seasons, states


class Observed:
    """The equations of one customer, in the form of a hidden Markov model, from the scalar reference."""

    def __init__(self, reference: Reference):
        self.reference = reference

    @cache
    def step(self, s: tuple, season: float, a: tuple, bought: bool, redeemed: bool, left: bool) -> dict:
        """P(what was seen and the next state | state), {state: probability}, by every combination of draws."""
        r, result = self.reference, defaultdict(float)
        if s[3] == UNSUBSCRIBED and a != NOTHING:
            return {}
        action = NOTHING if s == GONE else a
        redeem, buy = r.respond(s, season, action)
        p = redeem if redeemed else buy - redeem if bought else 1 - buy
        if s == GONE:
            return {GONE: p} if not left else {}
        lost = r.churn(s) * (0.25 if bought else 1)
        leaves = r.opts_out(s, a)
        for (dh, ph), (df, pf), (dd, pd) in product(*r.moves(s, a, bought, redeemed)):
            moved = p * ph * pf * pd
            if left:
                result[r.settle(s, UNSUBSCRIBED, dh, df, dd)] += moved * (1 - lost) * leaves
            else:
                result[GONE] += moved * lost
                result[r.settle(s, s[3], dh, df, dd)] += moved * (1 - lost) * (1 - leaves)
        return {state: x for state, x in result.items() if x > 0}

    def weeks(self, seen: list[SeenWeek], i: int):
        """Yield the arguments of `step` of every week, without the state."""
        for t, week in enumerate(seen):
            offer, channel = int(week.offer[i]), int(week.channel[i])
            a = (offer, channel) if offer else NOTHING
            yield self.reference.season[t], a, bool(week.bought[i]), bool(week.redeemed[i]), bool(week.opted_out[i])


def state_pass(customer: Observed, seen: list[SeenWeek], i: int) -> tuple[list[dict], float]:
    """P(state) after each week, {state: probability}, and the log-likelihood of the weeks, state by state."""
    mass, likelihood, found = dict(START), 0.0, []
    for week in customer.weeks(seen, i):
        following: dict = defaultdict(float)
        for s, p in mass.items():
            for after, share in customer.step(s, *week).items():
                following[after] += p * share
        likelihood += log(sum(following.values()))
        mass = {s: p / sum(following.values()) for s, p in following.items()}
        found.append(mass)
    return found, likelihood
