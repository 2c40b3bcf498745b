"""The filter of the hidden state against enumeration, a state-by-state pass, finite differences and simulation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from itertools import product
from math import log

import pytest
import torch

from envs.offers.world.customers import CHURNED, Customers, CustomerState
from envs.offers.world.filtering import (
    CHUNK,
    Belief,
    Predicted,
    filter_week,
    predict_week,
    start_belief,
)
from envs.offers.world.history import SeenWeek
from envs.offers.world.life_likelihood import life_log_likelihood, margin_log_likelihood
from hidden_markov import START, Observed, simulate, state_pass
from reference_world import GONE, INSIDE, STATES


@pytest.fixture(scope="module")
def seasons(make_season):
    """400 customers who churn and opt out often, their seasons of 12 weeks as seen, and their states."""
    season = make_season(400, extreme=True)
    seen, states = simulate(season.world, season.customers, season.start, torch.Generator().manual_seed(1), 12)
    return season, seen, states


def telling(seen: list[SeenWeek], states: list[CustomerState]) -> list[int]:
    """Customers of every kind: who stayed, churned, opted out, and opted out and churned later."""
    left, gone = torch.stack([x.opted_out for x in seen]).any(0), states[-1].status == CHURNED
    kinds = ((~left & ~gone), (~left & gone), (left & ~gone), (left & gone))
    return [i for kind in kinds for i in kind.nonzero()[:2, 0].tolist()]


def filtered(world, c: Customers, seen: list[SeenWeek]) -> tuple[list[Belief], torch.Tensor]:
    """Beliefs after each week, and the log-likelihood of what was seen."""
    belief, total, beliefs = start_belief(c), torch.zeros_like(c.alpha), []
    for t, week in enumerate(seen):
        belief, log_probability = filter_week(c, world, t, belief, week)
        total = total + log_probability
        beliefs.append(belief)
    return beliefs, total


def probability(belief: Belief, s: tuple, i: int) -> float:
    """P(state s) of customer i."""
    h, f, d, z = s
    inside, outside, gone = belief
    return [lambda: inside[h, f, d, i], lambda: outside[h, i], lambda: gone[i]][z]().item()


def assert_same(belief: Belief, wanted: dict, i: int) -> None:
    """Compare P(state) of customer i in all 79 states."""
    for s in STATES:
        assert abs(probability(belief, s, i) - wanted.get(s, 0.0)) < 1e-10


# ── exact ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_three_weeks_equal_the_enumeration_of_all_paths(seasons):
    season, seen, states = seasons
    seen = seen[:3]
    beliefs, total = filtered(season.world, season.customers, seen)
    for i in telling(seen, states[:4])[::2]:
        customer = Observed(season.references[i])
        first, second, third = customer.weeks(seen, i)
        last = defaultdict(float)
        for s0, p0 in START.items():
            for s1, p1 in customer.step(s0, *first).items():
                for s2, p2 in customer.step(s1, *second).items():
                    for s3, p3 in customer.step(s2, *third).items():
                        last[s3] += p0 * p1 * p2 * p3
        likelihood = sum(last.values())
        assert abs(total[i].item() - log(likelihood)) < 1e-10
        assert_same(beliefs[-1], {s: p / likelihood for s, p in last.items()}, i)


def test_twelve_weeks_equal_a_pass_state_by_state(seasons):
    season, seen, states = seasons
    beliefs, total = filtered(season.world, season.customers, seen)
    customers = telling(seen, states)
    assert len(customers) == 8
    for i in customers:
        wanted, likelihood = state_pass(Observed(season.references[i]), seen, i)
        for belief, mass in zip(beliefs, wanted):
            assert_same(belief, mass, i)
        assert abs(total[i].item() - likelihood) < 1e-10


def test_predictions_are_the_likelihoods_of_what_may_come(seasons):
    """P(bought), P(redeemed), P(opted out) of a week by the filter's own likelihoods of every possible week."""
    season, seen, _ = seasons
    c, world = season.customers, season.world
    belief = filtered(world, c, seen[:5])[0][-1]
    week = seen[5]
    predicted = predict_week(c, world, 5, belief, week.offer, week.channel)
    yes, no = torch.ones_like(week.bought), torch.zeros_like(week.bought)
    found, churned = defaultdict(float), 0.0
    for bought, redeemed, left in product((no, yes), repeat=3):
        if (redeemed & ~bought).any():
            continue
        what = SeenWeek(
            week.offer, week.channel, bought, redeemed & (week.offer > 0), left & (week.offer > 0), c.margin
        )
        after, log_p = filter_week(c, world, 5, belief, what)
        possible = (redeemed | left) <= (week.offer > 0)
        p = torch.where(possible & (log_p > -27), log_p.exp(), 0.0)
        churned = churned + p * after.churned
        for name, happened in (("bought", bought), ("redeemed", redeemed), ("opted_out", left), ("all", yes)):
            found[name] = found[name] + p * happened
    for name in ("bought", "redeemed", "opted_out"):
        torch.testing.assert_close(getattr(predicted, name), found[name], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(predicted.churned, churned, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found["all"], torch.ones_like(c.alpha))


@pytest.mark.long
def test_gradients_are_finite_differences(seasons):
    season, seen, states = seasons
    rows = torch.tensor(telling(seen, states))
    c, weeks = season.customers[rows], [x.take(rows) for x in seen]
    leaves = [x.clone().requires_grad_() for x in c.tensors()]
    names = [f.name for f in fields(Customers)]

    def total(tensors):
        return life_log_likelihood(Customers(**dict(zip(names, tensors))), season.world, weeks)

    gradients = torch.autograd.grad(total(leaves).sum(), leaves)
    step = 1e-6
    for k, (name, gradient) in enumerate(zip(names, gradients)):

        def moved(sign, k=k):
            tensors = [x.detach() for x in leaves]
            tensors[k] = tensors[k] + sign * step * (
                1 if tensors[k].dim() == 1 else torch.eye(5, dtype=tensors[k].dtype)[:, 2:3]
            )
            return total(tensors)

        wanted = (moved(1) - moved(-1)) / (2 * step)
        found = gradient if gradient.dim() == 1 else gradient[2]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_margins_add_the_likelihood_of_an_exponential(seasons):
    season, seen, _ = seasons
    c = season.customers
    margins = sum(margin_log_likelihood(c, week) for week in seen)
    torch.testing.assert_close(life_log_likelihood(c, season.world, seen), filtered(season.world, c, seen)[1] + margins)
    exponential = torch.distributions.Exponential(1 / c.margin)
    y = torch.where(seen[0].bought, 2 * c.margin, 0.0)
    found = margin_log_likelihood(c, seen[0]._replace(margin=y))
    torch.testing.assert_close(found, torch.where(seen[0].bought, exponential.log_prob(2 * c.margin), 0.0))


# ── carried as marginals ────────────────────────────────────────────────────────────────────────────────────────────
def test_marginals_sum_the_states(seasons):
    season, seen, _ = seasons
    belief = filtered(season.world, season.customers, seen)[0][-1]
    marginals = belief.marginals()
    for i in range(0, 400, 40):
        p = {s: probability(belief, s, i) for s in STATES}
        active = 1 - p[GONE]
        wanted = [
            sum(x for s, x in p.items() if s != GONE and s[k] == level) / active
            for k, n in enumerate((6, 4, 3))
            for level in range(n)
        ]
        torch.testing.assert_close(marginals[:, i], torch.tensor([*wanted, p[GONE]], dtype=torch.float64))
    assert INSIDE[0] in STATES


@pytest.mark.slow
def test_carrying_marginals_loses_next_to_nothing(make_season):
    """The log-likelihood a week of 2,000 customers, with the joint belief and with the product of its marginals."""
    season = make_season(2000, seed=3)
    c = season.customers
    seen, _ = simulate(season.world, c, season.start, torch.Generator().manual_seed(2), 12)
    exact = filtered(season.world, c, seen)[1]
    marginals, opted_out, total = start_belief(c).marginals(), torch.zeros(2000, dtype=torch.bool), 0.0
    for t, week in enumerate(seen):
        belief, log_probability = filter_week(c, season.world, t, Belief.from_marginals(marginals, opted_out), week)
        marginals, opted_out, total = belief.marginals(), opted_out | week.opted_out, total + log_probability
    assert abs((total - exact).mean() / 12) < 2e-5
    start = Belief.from_marginals(start_belief(c).marginals(), torch.zeros(2000, dtype=torch.bool))
    torch.testing.assert_close(start.subscribed, start_belief(c).subscribed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_belief_in_churn_is_revived_by_a_purchase(make_season, dtype):
    """Carried as marginals, through 60 weeks of silence: P(churned) rounds to 1 in float32."""
    season = make_season(50, extreme=True)
    parts = {field.name: getattr(season.customers, field.name).to(dtype) for field in fields(season.customers)}
    c, world = Customers(**parts), season.world.to(torch.device("cpu"), dtype)
    nothing, no = torch.zeros(50, dtype=torch.long), torch.zeros(50, dtype=torch.bool)
    silence = SeenWeek(nothing, nothing, no, no, no, torch.zeros(50, dtype=dtype))
    marginals = start_belief(c).marginals()
    for week in range(61):
        seen = silence._replace(bought=~no) if week == 60 else silence
        belief, log_probability = filter_week(c, world, week, Belief.from_marginals(marginals, no), seen)
        marginals = belief.marginals()
        assert log_probability.isfinite().all()
    for part in (marginals[:6], marginals[6:10], marginals[10:13]):
        torch.testing.assert_close(part.sum(0), torch.ones(50, dtype=dtype))
    assert (marginals[13] < 0.5).all()


# ── calibrated ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.long
def test_predictions_are_calibrated_in_every_decile(make_season):
    """100,000 simulated customers: of the predictions of one week, each decile within 3 standard errors.

    Weeks 6 and 12 of purchases and of redemptions and opt-outs of who was contacted; a customer is in each once.
    """
    season = make_season(100_000, seed=5)
    world = season.world.to("cpu", torch.float32)
    c = season.customers.map(lambda x: x.float())
    seen, _ = simulate(world, c, season.start, torch.Generator().manual_seed(4), 12)
    predicted = {5: [], 11: []}
    for rows in torch.arange(len(c)).split(CHUNK):
        some, belief = c[rows], start_belief(c[rows])
        for t, week in enumerate(x.take(rows) for x in seen):
            if t in predicted:
                predicted[t].append(torch.stack(predict_week(some, world, t, belief, week.offer, week.channel)))
            belief, _ = filter_week(some, world, t, belief, week)
    for t, parts in predicted.items():
        week, found = seen[t], Predicted(*torch.cat(parts, 1))
        sent = (week.offer > 0).nonzero()[:, 0]
        everyone = torch.arange(len(c))
        for name, rows in (("bought", everyone), ("redeemed", sent), ("opted_out", sent)):
            p, happened = getattr(found, name)[rows].double(), getattr(week, name)[rows].double()
            for some in p.argsort().chunk(10):
                error = (happened[some] - p[some]).sum()
                assert error.abs() < 3 * (p[some] * (1 - p[some])).sum().sqrt(), (t, name)
