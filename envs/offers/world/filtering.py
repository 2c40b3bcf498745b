"""The exact forward filter over a customer's hidden state: the world's equations are a hidden Markov model.

A customer is in one of 79 states: 72 subscribed (habit × fatigue × expectation), 6 unsubscribed (habit), or churned.
Each week a shop sees what was sent, whether the customer bought, redeemed and opted out (`SeenWeek`). It never sees
habit, fatigue, expectation or churn: a customer who churned is silent. The forward algorithm (Rabiner 1989, §III.A),
with the probabilities of envs/offers/README.md §2, gives P(state | weeks so far) and the likelihood of what was seen.
All functions are pure, batched over the customers, who are the last axis, and differentiable in θ. Weeks are numbered
from 0, through the seasons: a customer's state goes on from one season to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, Customers, World
from envs.offers.world.history import SeenWeek
from envs.offers.world.response import (
    attention,
    churn_probability,
    opt_out_probability,
    purchase_if_seen,
    utility,
)
from envs.offers.world.transition import habit_gain

MIN_PROBABILITY = 1e-12  # lower bound of a probability before a logarithm or a division
MAX_CHURNED = 1 - 1e-6  # upper bound of P(churned) in a belief that is read again: float32 rounds to 1 beyond it
CHUNK = 4096  # customers filtered at once, so that a chunk fits a cache
NUM_MARGINALS = HABITS + FATIGUES + EXPECTATIONS  # rows of `Belief.marginals`, without the row of churn


class Belief(NamedTuple):
    """P(state | what was seen) of N customers; the probabilities of a customer sum to 1."""

    subscribed: Tensor  # [6, 4, 3, N]: habit, fatigue, expectation
    unsubscribed: Tensor  # [6, N]: habit
    churned: Tensor  # [N]

    def marginals(self) -> Tensor:
        """Return P(habit), P(fatigue) and P(expectation), given no churn, and P(churned), [14, N].

        Unsubscribed customers count at fatigue 0 and expectation 0. Where churn is certain, the first 13 rows are 0.
        """
        inside, outside = self.subscribed, self.unsubscribed.sum(0, keepdim=True)
        fatigue, expectation = inside.sum((0, 2)), inside.sum((0, 1))
        joint = torch.cat(
            (
                inside.sum((1, 2)) + self.unsubscribed,
                fatigue[:1] + outside,
                fatigue[1:],
                expectation[:1] + outside,
                expectation[1:],
            )
        )
        active = inside.sum((0, 1, 2)) + outside[0]
        return torch.cat((joint / active.clamp_min(MIN_PROBABILITY), self.churned[None]))

    @classmethod
    def from_marginals(cls, marginals: Tensor, opted_out: Tensor) -> Belief:
        """Return the belief in which habit, fatigue and expectation are independent, from `marginals` [14, N].

        `opted_out`, bool [N], says who has opted out, which is seen. P(churned) is held below 1, for a customer who is
        silent for months can still buy, and no purchase could revive a belief in certain churn.
        """
        habit, fatigue, expectation, churned = marginals.split([HABITS, FATIGUES, EXPECTATIONS, 1])
        churned = churned.clamp_max(MAX_CHURNED)
        active = habit * (1 - churned)
        inside = (active * ~opted_out)[:, None, None] * fatigue[:, None] * expectation
        return cls(inside, active * opted_out, churned[0])

    def expect(self, subscribed: Tensor, churned: Tensor) -> Tensor:
        """Return the expectation of values of subscribed states [..., 6, 4, 3, N] and of churned customers [..., N].

        Unsubscribed customers count as 0.
        """
        return (self.subscribed * subscribed).sum((-4, -3, -2)) + self.churned * churned

    def entropy(self) -> Tensor:
        """Return the entropy of the state, nats, [N]."""
        p = torch.cat((self.subscribed.flatten(0, 2), self.unsubscribed, self.churned[None]))
        return -torch.special.xlogy(p, p).sum(0)


class Predicted(NamedTuple):
    """Predicted probabilities of a week's events for N customers, churn included, which is never seen; [N] each."""

    bought: Tensor  # P(bought)
    redeemed: Tensor  # P(bought by redeeming the offer)
    opted_out: Tensor  # P(opted out in this week)
    churned: Tensor  # P(churned by the end of the week)


def start_belief(c: Customers) -> Belief:
    """Return what is believed at the start of a season: habit uniform, fatigue 0, expectation 0 or 1, subscribed."""
    n = len(c)
    inside = c.alpha.new_zeros(HABITS, FATIGUES, EXPECTATIONS, n)
    inside[:, 0, : EXPECTATIONS - 1] = 1 / (HABITS * (EXPECTATIONS - 1))
    return Belief(inside, c.alpha.new_zeros(HABITS, n), c.alpha.new_zeros(n))


class WeekResponse(NamedTuple):
    """Probabilities of a week's response in every state; the last axis is the customer."""

    organic: Tensor  # p0, P(purchase) without a message, [6, 3, N]
    seen: Tensor  # p1, P(purchase) of who saw the message, [6, 3, N]
    attention: Tensor  # q, P(message seen), 0 without a contact, [4, N]
    churn: Tensor  # P(churn) without a purchase, [6, 4, N]
    opt_out: Tensor  # P(opt-out), 0 without a contact, [4, N]


def levels(n: int, like: Tensor, *shape: int) -> Tensor:
    """Return 0..n−1 in a shape that broadcasts."""
    return torch.arange(n, device=like.device, dtype=like.dtype).view(shape)


def week_response(c: Customers, world: World, week: int | Tensor, offer: Tensor, channel: Tensor) -> WeekResponse:
    """Return the probabilities of a week's response to what was sent, offers and channels [N]."""
    h, f, d = levels(HABITS, c.alpha, -1, 1, 1), levels(FATIGUES, c.alpha, -1, 1), levels(EXPECTATIONS, c.alpha, -1, 1)
    contacted = offer > 0
    b = utility(c, h, d, world.season[week % world.weeks])
    return WeekResponse(
        organic=torch.sigmoid(b),
        seen=purchase_if_seen(c, b, d, world.catalogue.value[offer]),
        attention=attention(c.omega.gather(0, channel[None])[0], c, f) * contacted,
        churn=churn_probability(c, h, f),
        opt_out=opt_out_probability(c, f, world.catalogue.opt_out[channel]) * contacted,
    )


def predict_week(
    c: Customers, world: World, week: int | Tensor, belief: Belief, offer: Tensor, channel: Tensor
) -> Predicted:
    """Predict what a week shows of customers to whom `offer` [N] is sent through `channel` [N]."""
    p = week_response(c, world, week, offer, channel)
    inside, outside = belief.subscribed, belief.unsubscribed
    q = p.attention[None, :, None]
    saw_and_bought = q * p.seen[:, None]
    bought = saw_and_bought + (1 - q) * p.organic[:, None]  # [6, 4, 3, N]
    lost = p.churn[:, :, None] * (1 - 0.75 * bought)
    lost_outside = p.churn[:, 0] * (1 - 0.75 * p.organic[:, 0])
    return Predicted(
        bought=(inside * bought).sum((0, 1, 2)) + (outside * p.organic[:, 0]).sum(0),
        redeemed=(inside * saw_and_bought).sum((0, 1, 2)) * c.mu,
        opted_out=(inside * (1 - lost) * p.opt_out[:, None]).sum((0, 1, 2)),
        churned=(inside * lost).sum((0, 1, 2)) + (outside * lost_outside).sum(0) + belief.churned,
    )


def filter_week(
    c: Customers, world: World, week: int | Tensor, belief: Belief, seen: SeenWeek
) -> tuple[Belief, Tensor]:
    """Condition the belief on what a week shows, and move the belief one week on.

    Return the new belief and log P(what the week shows | earlier weeks), [N]. Margins of purchases are no part of this
    probability (envs/offers/world/life_likelihood.py).
    """
    bought, redeemed = seen.bought, seen.redeemed
    contacted = seen.offer > 0
    p = week_response(c, world, week, seen.offer, seen.channel)
    stays_in = (~seen.opted_out).to(c.alpha)

    # 1. What was seen of the response: P(response | state) is affine in q. Who did not see the message buys with p0,
    # and never redeems; who saw the message redeems with μ p1 and buys without the offer with (1 − μ) p1.
    if_unseen = torch.where(redeemed, 0.0, torch.where(bought, 1.0, -1.0)) * p.organic + (~bought).to(c.alpha)
    if_seen = torch.where(redeemed, c.mu, torch.where(bought, 1 - c.mu, -1.0)) * p.seen + (~bought).to(c.alpha)
    by_fatigue = torch.addcmul(if_unseen[:, None], p.attention[:, None], (if_seen - if_unseen)[:, None])
    inside = belief.subscribed * by_fatigue
    possible = (~contacted).to(c.alpha)  # who has opted out gets no offer
    outside = belief.unsubscribed * (if_unseen[:, 0] * possible)

    # 2. Churn, which is silent, and opt-out, which is seen.
    lost = p.churn * torch.where(bought, 0.25, 1.0)
    kept = 1 - lost
    silent = belief.churned * (~bought).to(c.alpha)
    by_fatigue = inside.sum(2)  # [6, 4, N]
    churning = (by_fatigue * lost).sum((0, 1)) + (outside * lost[:, 0]).sum(0)
    churned = (silent + churning) * stays_in
    leaving = (by_fatigue * (kept * p.opt_out)).sum(1) * seen.opted_out
    outside = outside * kept[:, 0] * stays_in + leaving
    kept = (kept * (1 - p.opt_out) * stays_in)[:, :, None]

    # 3. Moves of habit, fatigue and expectation.
    up, down = _habit_moves(c, bought, redeemed)
    inside = _move_habit(inside, kept, up[:, None, None], down[:, None, None])
    outside = _move_habit(outside, torch.ones_like(outside), up, down)
    inside = _move_fatigue(inside, world.catalogue.fatigue_steps[seen.channel] * contacted, c.delta_f)
    inside = _move_expectation(inside, redeemed.to(c.alpha), c.delta_d)

    total = (inside.sum((0, 1, 2)) + outside.sum(0) + churned).clamp_min(MIN_PROBABILITY)
    return Belief(inside / total, outside / total, churned / total), total.log()


def _habit_moves(c: Customers, bought: Tensor, redeemed: Tensor) -> tuple[Tensor, Tensor]:
    """Return P(habit up) and P(habit down) in each habit, [6, N].

    P(up) is u after a purchase, else 0; P(down) is π− without a purchase, else 0. No move passes the ends.
    """
    h = levels(HABITS, c.alpha, -1, 1)
    gain = torch.where(redeemed, habit_gain(c, h, True), habit_gain(c, h, False))
    up = torch.where(bought & (h < HABITS - 1), gain, 0.0)
    return up, torch.where(~bought & (h > 0), c.pi_minus, 0.0)


def _move_habit(mass: Tensor, kept: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Keep a share of the mass [6, …, N] and move it along habit with probabilities `up` and `down`.

    `up` is 0 at the highest habit and `down` at the lowest, so that what a roll takes around the ends is 0.
    """
    stayed = mass * (kept * (1 - up - down))
    risen = torch.roll(mass * (kept * up), 1, dims=0)
    fallen = torch.roll(mass * (kept * down), -1, dims=0)
    return stayed + risen + fallen


def _move_fatigue(mass: Tensor, steps: Tensor, delta_f: Tensor) -> Tensor:
    """Move mass [6, 4, 3, N] along fatigue: up by `steps` after a contact, else down with δ_f."""
    one, two, three = ((steps == k).to(mass) for k in range(1, FATIGUES))
    contacted = one + two + three
    fall = delta_f * (1 - contacted)
    stay = 1 - contacted - fall
    f0, f1, f2, f3 = mass.unbind(1)
    add = torch.addcmul
    return torch.stack(
        (
            add(f0 * (1 - contacted), f1, fall),
            add(add(f0 * one, f1, stay), f2, fall),
            add(add(add(f0 * two, f1, one), f2, stay), f3, fall),
            add(add(add(f0 * three, f1, two + three), f2, contacted), f3, 1 - fall),
        ),
        1,
    )


def _move_expectation(mass: Tensor, redeemed: Tensor, delta_d: Tensor) -> Tensor:
    """Move mass [6, 4, 3, N] along expectation: up after a redemption, else down with δ_d."""
    fall = delta_d * (1 - redeemed)
    d0, d1, d2 = mass.unbind(2)
    add = torch.addcmul
    return torch.stack(
        (
            add(d0 * (1 - redeemed), d1, fall),
            add(add(d0 * redeemed, d1, 1 - redeemed - fall), d2, fall),
            add(d1 * redeemed, d2, 1 - fall),
        ),
        2,
    )
