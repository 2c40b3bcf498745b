"""The bound against independent programs: 79-state recursions, a linear program over occupancies, exact identities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import envs.offers.planning.triton_no_contact_value
from envs.offers.planning.dynamic_program import action_values, best_plan, expected_use, no_contact_values
from envs.offers.planning.lagrangian_bound import dual
from envs.offers.planning.state_values import StateGrid
from envs.offers.world.customers import CustomerState
from reference_bound import DUAL_SOLVER, FIVE_ACTIONS, FULL_SEASON, linear_program, no_contact_profit, with_budget
from reference_world import INSIDE, NOTHING, STATES, tuples

OPTIONS = {"trips": 0.8, "terminal": 0.6, "churn_cost": 7.0, "fatigue_penalty": 0.25, "fatigue_limit": 2}


@pytest.fixture(scope="module")
def season(make_season):
    """Four customers, five actions, twelve weeks, 30 % of the budget they could use; one is unsubscribed."""
    season = make_season(4, **FIVE_ACTIONS)
    season.start.status[3], season.start.expectation[3] = 1, 0
    return with_budget(season)


def some_prices(season, *seeds) -> list:
    """Draw prices [T], one set a seed."""
    return [
        6 * torch.rand(season.world.weeks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]


def lagrangian(season, prices) -> tuple[float, torch.Tensor, list]:
    """Return L(λ), its gradient and the plan's actions."""
    values, actions = best_plan(season.customers, season.world, season.v0, prices)
    spend = expected_use(season.customers, season.world, season.start, actions, ()).sum(1)
    bound = (prices * season.budget).sum() + values[0].at(season.start).sum()
    return bound.item(), season.budget - spend, actions


def value_table(values, i: int) -> list:
    """List customer i's values of the 79 states."""
    state = CustomerState(*torch.tensor(STATES).T)
    alone = type(values)(*(v[..., [i] * len(STATES)] for v in values))
    return alone.at(state).tolist()


def policy_of(actions: list, channels: int, i: int) -> list[dict]:
    """Read customer i's plan as {state: (offer, channel)} a week."""
    return [{s: divmod(action[s[0], s[1], s[2], i].item(), channels) for s in INSIDE} for action in actions]


@pytest.mark.slow
# ── the parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("reward", [{}, OPTIONS], ids=["default", "every option"])
def test_organic_value_equals_the_matrix_program(make_season, reward):
    season = make_season(4, reward=reward)
    values = no_contact_values(season.customers, season.world)
    for i, r in enumerate(season.references):
        law = np.array([[r.law(s, 1.0, NOTHING).get(x, 0.0) for x in STATES] for s in STATES])
        margin = np.array([(r.margin + r.reward.trips) * r.respond(s, 1.0, NOTHING)[1] for s in STATES])
        end = r.reward.terminal * sum(0.995**k * np.linalg.matrix_power(law, k) @ margin for k in range(40))
        assert value_table(values[-1], i) == pytest.approx(end.tolist(), rel=1e-11)
        expected = r.no_contact_values()
        assert len(values) == len(expected) == 13
        for v, w in zip(values, expected):
            assert value_table(v, i) == pytest.approx([w[s] for s in STATES], rel=1e-11)


@pytest.mark.parametrize("reward", [{}, OPTIONS], ids=["default", "every option"])
def test_one_kernel_values_leaving_alone_the_same(kernels, make_season, reward):
    """In float32, for more customers than a block, and with the tables of another season as output."""
    module, device = kernels(envs.offers.planning.triton_no_contact_value)
    season = make_season(module.BLOCK_SIZE + 3, weeks=2, reward=reward, extreme=True)
    season.world.tail_weeks = 3
    exact, world = no_contact_values(season.customers, season.world), season.world.to(device, torch.float32)
    c = world.inhabit(season.customers)
    found = module.no_contact_values_kernel(c, world)
    assert len(found) == len(exact) == 3
    first = [[x.clone() for x in tables] for tables in found]
    for tables in found:
        for x in tables:
            x.fill_(torch.nan)
    assert module.no_contact_values_kernel(c, world, found) is found
    for tables, others, expected in zip(found, first, exact):
        for x, other, y in zip(tables, others, expected):
            assert torch.equal(x, other)
            torch.testing.assert_close(x.double().cpu(), y, rtol=1e-5, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("size", [{"weeks": 12, **FIVE_ACTIONS}, {"weeks": 3}], ids=["5 actions", "26 actions"])
@pytest.mark.parametrize("reward", [{}, OPTIONS], ids=["default", "every option"])
def test_best_plan_equals_the_reference(make_season, size, reward):
    season = with_budget(make_season(2, reward=reward, **size))
    prices = some_prices(season, 1)[0]
    values, actions = best_plan(season.customers, season.world, season.v0, prices)
    for i, r in enumerate(season.references):
        expected = r.plan(prices.tolist())
        policy = policy_of(actions, len(season.world.catalogue.channels), i)
        for week, (v, w) in enumerate(zip(values, expected)):
            assert value_table(v, i) == pytest.approx([w[s] for s in STATES], rel=1e-11)
            if week < season.world.weeks:
                taken = [r.q(s, week, policy[week][s], expected[week + 1], prices[week].item()) for s in INSIDE]
                assert taken == pytest.approx([w[s] for s in INSIDE], rel=1e-11)


@pytest.mark.slow
def test_expected_spend_equals_the_forward_pass(season):
    prices, channels = some_prices(season, 2)[0], len(season.world.catalogue.channels)
    _, _, planned = lagrangian(season, prices)
    generator = torch.Generator().manual_seed(3)
    anything = [torch.randint(channels - 1, 3 * channels, x.shape, generator=generator) for x in planned]
    anything = [torch.where(x < channels, 0, x) for x in anything]
    for actions in (planned, anything):
        spend = expected_use(season.customers, season.world, season.start, actions, ())
        expected = [
            r.spends(s, policy_of(actions, channels, i))
            for i, (r, s) in enumerate(zip(season.references, tuples(season.start)))
        ]
        torch.testing.assert_close(spend.T, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13)
        assert not spend[:, 3].any() and spend[:, :3].any()


# ── the Lagrangian ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("seed", range(10))
def test_lagrangian_is_convex_and_above_its_tangents(season, seed):
    here, there = some_prices(season, seed, seed + 100)
    (low, slope, _), (high, _, _) = lagrangian(season, here), lagrangian(season, there)
    for share in (0.1, 0.5, 0.9):
        assert lagrangian(season, torch.lerp(here, there, share))[0] <= (1 - share) * low + share * high + 1e-9
    assert high >= low + (slope * (there - here)).sum().item() - 1e-9


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_finite_differences(season, seed):
    prices, h, smooth = some_prices(season, seed)[0], 1e-4, 0
    _, slope, plan = lagrangian(season, prices)
    for t in range(season.world.weeks):
        step = torch.zeros_like(prices).index_fill_(0, torch.tensor(t), h)
        up, down = lagrangian(season, prices + step), lagrangian(season, prices - step)
        # no kink in between
        if all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(plan, up[2], down[2])):
            assert (up[0] - down[0]) / (2 * h) == pytest.approx(slope[t].item(), abs=1e-8)
            smooth += 1
    assert smooth >= season.world.weeks / 2


# ── the optimum ─────────────────────────────────────────────────────────────────────────────────────────────────────
FEW, MANY = {"weeks": 4}, {"n": 12, "weeks": 4, **FIVE_ACTIONS}  # few customers: sharp kinks


@pytest.mark.long
@pytest.mark.parametrize(
    "size, reward",
    [
        *(
            pytest.param({"n": 3, **FEW, "seed": seed}, {}, id=f"3 customers, 26 actions, seed {seed}")
            for seed in range(4)
        ),
        pytest.param({"n": 5, **FEW}, {}, id="5 customers, 26 actions"),
        *(pytest.param({**MANY, "seed": seed}, {}, id=f"12 customers, seed {seed}") for seed in range(2)),
        pytest.param({"n": 3, **FEW}, OPTIONS, id="every option"),
        *(
            pytest.param(
                {"n": n, **FULL_SEASON, "seed": seed},
                {},
                id=f"{n} customers, 12 weeks, seed {seed}",
                marks=pytest.mark.slow,
            )
            for n, seed in ((3, 1), (5, 2))
        ),
    ],
)
def test_bound_equals_the_linear_program(make_season, size, reward):
    season = with_budget(make_season(**size, reward=reward))
    optimum, prices = linear_program(season)
    none = no_contact_profit(season)
    gap = optimum - none
    assert gap > 0 and prices.min() >= 0 and prices.max() > 0.1
    assert abs(lagrangian(season, prices)[0] - optimum) <= 1e-6 * gap
    for x in some_prices(season, *range(10)):
        assert lagrangian(season, x)[0] >= optimum - 1e-9  # weak duality, anywhere and near the optimum
        assert lagrangian(season, (prices + 0.02 * (x - 3)).clamp_min(0))[0] >= optimum - 1e-9

    bound = dual(season.customers, season.world, season.v0, season.start, season.budget, **DUAL_SOLVER)
    value, slope, _ = lagrangian(season, bound.prices)
    assert -1e-9 <= bound.value - optimum <= 2e-5 * gap
    assert -2e-5 * gap <= bound.certificate - optimum <= 1e-6 * gap
    assert bound.evaluations < DUAL_SOLVER["max_evaluations"]
    assert bound.value == pytest.approx(value, rel=1e-13) and bound.none == pytest.approx(none, rel=1e-11)
    assert bound.gap == pytest.approx((bound.prices * bound.budget).sum().item() + bound.gain.sum().item(), rel=1e-9)
    torch.testing.assert_close(bound.budget - bound.spend, slope)


def test_without_a_budget_constraint_prices_are_zero(season):
    rich = 2 * season.budget / 0.3
    bound = dual(season.customers, season.world, season.v0, season.start, rich, **DUAL_SOLVER)
    free = best_plan(season.customers, season.world, season.v0, torch.zeros_like(rich))[0][0].at(season.start)
    assert not bound.prices.any() and bound.evaluations == 1
    assert bound.value == pytest.approx(free.sum().item(), rel=1e-12) == bound.certificate


@pytest.mark.long
@pytest.mark.parametrize("first_price", [3.0, 1000.0])
def test_without_a_budget_there_is_nothing_to_gain(season, first_price):
    options = {**DUAL_SOLVER, "first_price": first_price}
    bound = dual(season.customers, season.world, season.v0, season.start, torch.zeros_like(season.budget), **options)
    assert bound.prices.isfinite().all() and bound.prices.min() >= 0
    assert bound.gap == pytest.approx(0, abs=1e-5) == bound.value - bound.certificate


@pytest.mark.long
def test_a_week_without_a_budget_is_priced_out(season):
    budget = season.budget.index_fill(0, torch.tensor(4), 0.0)
    bound = dual(season.customers, season.world, season.v0, season.start, budget, **DUAL_SOLVER)
    assert bound.value - bound.certificate <= 2e-5 * bound.gap
    assert bound.prices[4] > bound.prices[[3, 5]].max()


@pytest.mark.slow
# ── the identities ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("reward", [{}, OPTIONS], ids=["default", "every option"])
@pytest.mark.parametrize("seed", range(3))
def test_both_identities_hold_exactly(make_season, reward, seed):
    season = with_budget(make_season(4, weeks=6, reward=reward, seed=seed, **FIVE_ACTIONS))
    c, world, channels = season.customers, season.world, len(season.world.catalogue.channels)
    prices = some_prices(season, seed)[0]
    values, _ = best_plan(c, world, season.v0, prices)
    generator = torch.Generator().manual_seed(seed)
    offers = len(world.catalogue.offers)
    flat = torch.randint(channels - 1, offers * channels, (world.weeks, 6, 4, 3, len(c)), generator=generator)
    actions = list(torch.where(flat < channels, 0, flat))

    def q(week, price, then):
        nothing, contact = action_values(c, world, week, StateGrid(c.alpha), price, then)
        return torch.cat((nothing.expand(channels, *nothing.shape), contact.flatten(0, 1)))  # by flat pair

    def taken(table, week):
        return table.gather(0, actions[week][None])[0]

    advantage, regret = [], []
    for week in range(world.weeks):
        free, priced = q(week, 0.0, season.v0[week + 1]), q(week, prices[week], values[week + 1])
        advantage.append(taken(free, week) - season.v0[week].subscribed)
        regret.append(priced.max(0).values - taken(priced, week))
    assert min(x.min() for x in regret) >= 0

    gained = lost = worth = 0.0
    spend = torch.zeros_like(prices)
    for i, (r, s) in enumerate(zip(season.references, tuples(season.start))):
        policy = policy_of(actions, channels, i)
        worth += r.worth(s, policy)
        spend += torch.tensor(r.spends(s, policy), dtype=torch.float64)
        for week, mass in enumerate(r.occupancy(s, policy)[:-1]):
            for (h, f, d, z), p in mass.items():
                if z == 0:  # the rest cannot be contacted: neither gained nor lost
                    gained += p * advantage[week][h, f, d, i].item()
                    lost += p * regret[week][h, f, d, i].item()
    unspent = (prices * (season.budget - spend)).sum().item()
    assert worth - no_contact_profit(season) == pytest.approx(gained, rel=1e-9)
    assert lagrangian(season, prices)[0] - worth == pytest.approx(lost + unspent, rel=1e-9)
