"""The customer against a scalar reference: response, transitions, one-step lookahead, and the static world."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from scipy.stats import chisquare

from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.state_values import StateGrid, StateValues, VisitedStates
from envs.offers.world.customers import UNIFORMS, CustomerState
from envs.offers.world.response import outcome
from envs.offers.world.transition import transition
from reference_world import GONE, INSIDE, NOTHING, STATES, SUBSCRIBED, UNSUBSCRIBED, pick, tuples

STATIC = ("kappa", "xi", "gamma_h", "gamma_f", "phi", "opt_out", "rho", "chi", "nu", "c0")
REWARDS = {
    "margin": {"trips": 0.0},
    "trips": {"trips": 0.5},
    "every option": {"trips": 0.8, "terminal": 0.6, "churn_cost": 7.0, "fatigue_penalty": 0.3, "fatigue_limit": 2},
}


def states(rows: list) -> CustomerState:
    """Turn tuples (h, f, d, z) into a State."""
    return CustomerState(*torch.tensor(rows).T)


def some_values(n: int, generator: torch.Generator) -> StateValues:
    """Draw a value for every state of n customers."""
    return StateValues(
        100 * torch.rand(6, 4, 3, n, generator=generator, dtype=torch.float64),
        100 * torch.rand(6, n, generator=generator, dtype=torch.float64),
    )


def table(values: StateValues, i: int) -> dict:
    """Read customer i's values as {state: value}."""
    h, f, d, z = torch.tensor(STATES).T
    inside, outside = values.subscribed[h, f, d, i], values.unsubscribed[h, i]
    return {**dict(zip(STATES, torch.where(z == SUBSCRIBED, inside, outside).tolist())), GONE: 0.0}


def near(actual: torch.Tensor, expected) -> None:
    """Assert agreement to rounding."""
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


# ── configuration ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_catalogue_and_calendar_are_those_of_the_document(make_season):
    world = make_season(1).world
    catalogue = world.catalogue
    assert catalogue.value.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert catalogue.cost.tolist() == [0, 0.02, 0.03, 0.05, 0.07]
    assert catalogue.attention.tolist() == [0.10, 0.25, 0.30, 0.55, 0.45]
    assert catalogue.opt_out.tolist() == [0.003, 0.003, 0.002, 0.010, 0.001]
    assert catalogue.fatigue_steps.tolist() == list(catalogue.fatigue_step_counts) == [1, 1, 1, 2, 1]
    assert catalogue.valid.sum() == 26 and catalogue.valid[0].tolist() == [True, False, False, False, False]
    assert world.season.tolist() == [1, 0.97, 0.95, 0.96, 0.98, 1, 1.02, 1.05, 1.10, 1.18, 1.28, 0.90]
    assert (world.tail_weeks, world.tail_discount) == (40, 0.995)


# ── response and transitions ────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("extreme", [False, True])
def test_outcome_and_transition_equal_the_reference(make_season, extreme):
    season = make_season(100, extreme=extreme)
    c, world, n = season.customers, season.world, len(season.customers)
    generator = torch.Generator().manual_seed(1)
    met = set()
    for week in range(world.weeks):
        before, action = pick(INSIDE, n, generator), pick(season.references[0].pairs, n, generator)
        before[:20] = pick(STATES[len(INSIDE) :], 20, generator)
        state, (offer, channel) = states(before), torch.tensor(action).T
        u = torch.rand(UNIFORMS, n, generator=generator, dtype=torch.float64)
        after, bought, redeemed, o = transition(c, world, week, state, offer, channel, u)

        cases = [
            (r, s, r.season[week], a if s[3] == SUBSCRIBED else NOTHING)
            for r, s, a in zip(season.references, before, action)
        ]
        p_redeem, p_buy = zip(*(r.respond(s, x, a) for r, s, x, a in cases))
        spend = [r.spend(s, x, a) for r, s, x, a in cases]
        here = outcome(c, world, week, *(y.double() for y in state[:3]), offer, channel)
        for given, rows in ((o, slice(None)), (here, slice(20, None))):
            near(given.redeem[rows], p_redeem[rows])
            near((given.redeem + given.buy)[rows], p_buy[rows])
            near(given.spend[rows], spend[rows])
        drawn = [r.draw(s, x, a, v) for (r, s, x, a), v in zip(cases, u.T.tolist())]
        assert list(zip(tuples(after), bought.tolist(), redeemed.tolist())) == drawn
        met.update(s for s, _, _ in drawn)
    assert GONE in met and any(s[3] == UNSUBSCRIBED for s in met)


@pytest.mark.slow
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    "state, action",
    [
        ((0, 0, 0, 0), (1, 0)),
        ((1, 1, 1, 0), (5, 3)),
        ((3, 2, 2, 0), (3, 4)),
        ((5, 3, 1, 0), (2, 3)),
        ((2, 3, 0, 0), NOTHING),
        ((0, 0, 0, 1), NOTHING),
    ],
)
def test_frequencies_equal_the_law(make_season, state, action, extreme):
    n, season = 100_000, make_season(3, extreme=extreme)
    u = torch.rand(UNIFORMS, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    offer, channel = (torch.full((n,), x) for x in action)
    c = season.customers[torch.full((n,), 2)]
    after, *_ = transition(c, season.world, 10, states([state] * n), offer, channel, u)
    law = season.references[2].law(state, season.world.season[10].item(), action)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    rows, counts = torch.stack(after).unique(dim=1, return_counts=True)
    counts = dict(zip((tuple(row) for row in rows.T.tolist()), counts.tolist()))
    assert counts.keys() <= law.keys()
    common = [s for s, p in law.items() if n * p >= 5]
    observed, expected = [counts.get(s, 0) for s in common], [n * law[s] for s in common]
    assert chisquare([*observed, n - sum(observed) + 1], [*expected, n - sum(expected) + 1]).pvalue > 1e-3


@pytest.mark.slow
# ── one-step lookahead ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("future", [True, False])
@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_action_values_of_visited_states_equal_the_reference(make_season, reward, future):
    season = make_season(64, reward=reward, extreme=True)
    n, generator, week = len(season.customers), torch.Generator().manual_seed(3), 4
    rows, values = pick(INSIDE, n, generator), some_values(n, generator)
    price = 5 * torch.rand(n, generator=generator, dtype=torch.float64)
    then = values if future else None
    at = VisitedStates(states(rows), season.customers.alpha)
    nothing, contact = action_values(season.customers, season.world, week, at, price, then)
    ahead = [table(values, i) if future else dict.fromkeys(STATES, 0.0) for i in range(n)]
    expected = [
        [r.q(s, week, a, v, x) for a in r.pairs] for r, s, v, x in zip(season.references, rows, ahead, price.tolist())
    ]
    near(torch.cat((nothing[None], contact.flatten(0, 1))).T, expected)


@pytest.mark.long
@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("price", [0.0, 2.5])
def test_action_values_of_the_grid_equal_the_reference(make_season, reward, price):
    season = make_season(3, reward=reward)
    c, week = season.customers, 9
    values = some_values(len(c), torch.Generator().manual_seed(4))
    nothing, contact = action_values(c, season.world, week, StateGrid(c.alpha), price, values)
    every = torch.cat((nothing[None], contact.flatten(0, 1)))
    for i, r in enumerate(season.references):
        ahead = table(values, i)
        near(every[..., i].flatten(1).T, [[r.q(s, week, a, ahead, price) for a in r.pairs] for s in INSIDE])


def test_values_at_reads_the_state_of_each_customer():
    values = some_values(len(STATES), torch.Generator().manual_seed(5))
    near(values.at(states(STATES)), [table(values, i)[s] for i, s in enumerate(STATES)])


# ── what no action may do ───────────────────────────────────────────────────────────────────────────────────────────
def every_case(season, rows: list) -> tuple:
    """Cross states with actions; return State, offer, channel of n rows."""
    before, action = zip(*product(rows, season.references[0].pairs))
    return states(before), *torch.tensor(action).T


@pytest.mark.parametrize("rows", [STATES[72:78], STATES[78:]], ids=["unsubscribed", "churned"])
def test_who_is_not_subscribed_cannot_be_contacted(make_season, rows):
    season = make_season(1)
    state, offer, channel = every_case(season, rows)
    c = season.customers[torch.zeros_like(offer)]
    u = torch.rand(UNIFORMS, len(c), generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    asked = transition(c, season.world, 0, state, offer, channel, u)
    silent = transition(c, season.world, 0, state, torch.zeros_like(offer), torch.zeros_like(channel), u)
    for x, y in zip((*asked[0], *asked[1:3], *asked[3]), (*silent[0], *silent[1:3], *silent[3])):
        assert torch.equal(x, y)
    assert not asked[2].any() and not asked[3].redeem.any() and not asked[3].spend.any()
    assert (asked[0].status >= state.status).all()


def test_churn_is_absorbing(make_season):
    season = make_season(1)
    state, offer, channel = every_case(season, [GONE] * 50)
    u = torch.rand(UNIFORMS, len(offer), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    c = season.customers[torch.zeros_like(offer)]
    after, bought, _, o = transition(c, season.world, 0, state, offer, channel, u)
    assert set(tuples(after)) == {GONE}
    assert not bought.any() and not o.buy.any()


@pytest.mark.parametrize(
    "purchase, state, action, expected",
    [
        (0.0, (5, 3, 2, 0), (5, 3), (5, 3, 2, 0)),  # redeemed at the top
        (1.0, (0, 0, 0, 0), NOTHING, (0, 0, 0, 0)),  # nothing left to lose
        (1.0, (0, 2, 0, 0), (1, 3), (0, 3, 0, 0)),  # two steps of fatigue, one left
    ],
)
def test_states_are_clamped_at_their_ends(make_season, purchase, state, action, expected):
    season = make_season(1)
    u = torch.tensor([[purchase, 0, 0, 0, 1, 1]], dtype=torch.float64).T  # every move, no churn, no opt-out
    after, *_ = transition(season.customers, season.world, 0, states([state]), *torch.tensor([action]).T, u)
    assert tuples(after) == [expected]


def test_in_the_static_world_no_action_changes_the_future(make_season):
    season = make_season(20, disabled_effects=STATIC)
    c, world = season.customers, season.world
    state, offer, channel = every_case(season, INSIDE)
    u = torch.rand(UNIFORMS, len(offer), generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    after, *_ = transition(c[torch.zeros_like(offer)], world, 0, state, offer, channel, u)
    assert not after.status.any()

    v0, price = no_contact_values(c, world), torch.linspace(0, 4, world.weeks, dtype=torch.float64)
    values, actions = best_plan(c, world, v0, price)
    for week in range(world.weeks):

        def q(then):
            nothing, contact = action_values(c, world, week, StateGrid(c.alpha), price[week], then)
            return torch.cat((nothing[None], contact.flatten(0, 1)))

        now, planned = q(None), q(values[week + 1])
        torch.testing.assert_close(now, now[:, :1, :1, :1].expand_as(now))  # no state matters
        torch.testing.assert_close(planned - now, (planned - now)[:1, :1, :1, :1].expand_as(now), rtol=1e-11, atol=0)
        best = now.max(0)
        taken = torch.where(actions[week] > 0, actions[week] - len(world.catalogue.channels) + 1, 0)
        near(now.gather(0, taken[None])[0], best.values.tolist())  # planning is myopic


@pytest.mark.slow
# ── reproducibility ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_customer_alone_equals_the_same_in_a_crowd(make_season):
    season = make_season(64)
    c, generator = season.customers, torch.Generator().manual_seed(9)
    state, values = states(pick(STATES, 64, generator)), some_values(64, generator)
    offer, channel = torch.tensor(pick(season.references[0].pairs, 64, generator)).T
    u = torch.rand(UNIFORMS, 64, generator=generator, dtype=torch.float64)

    def week(rows):
        here, some = CustomerState(*(x[rows] for x in state)), c[rows]
        after, bought, redeemed, o = transition(some, season.world, 3, here, offer[rows], channel[rows], u[:, rows])
        then = StateValues(*(v[..., rows] for v in values))
        q = action_values(some, season.world, 3, VisitedStates(here, some.alpha), 1.0, then)
        return torch.stack((*after, bought, redeemed)), torch.cat((torch.stack(o), q[0][None], q[1].flatten(0, 1)))

    moves, numbers = week(torch.arange(64))
    for i in range(64):
        alone = week(torch.tensor([i]))
        assert torch.equal(alone[0], moves[:, i : i + 1])
        torch.testing.assert_close(alone[1], numbers[:, i : i + 1], rtol=1e-13, atol=1e-13)


@pytest.mark.slow
def test_a_seed_gives_the_same_season(make_season):
    def play(seed):
        season = make_season(50, seed=seed)
        state, generator = season.start, torch.Generator().manual_seed(seed)
        offer, channel = torch.tensor(pick(season.references[0].pairs, 50, generator)).T
        for week in range(season.world.weeks):
            u = torch.rand(UNIFORMS, 50, generator=generator, dtype=torch.float64)
            state, *_ = transition(season.customers, season.world, week, state, offer, channel, u)
        return season.customers.margin.tolist(), tuples(state)

    assert play(1) == play(1)
    assert play(1)[0] != play(2)[0] and play(1)[1] != play(2)[1]
