"""Clearing against brute force: hulls point by point, a linear program, exact demand at a price, plain loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from configs import load
from envs.offers.constraints.budget import Budget
from envs.offers.planning.dynamic_program import no_contact_values
from envs.offers.planning.knapsack import Increments, clear, demand_curve, ranked, upper_hull
from envs.offers.planning.lagrangian_bound import unconstrained_spend

INF = torch.inf


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def tables(kind: str, n: int, pairs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (value, spend) [n, pairs]: column 0 is nothing, some pairs don't exist, some customers have none."""
    g = seeded(seed)
    value, spend = torch.randn(2, n, pairs, generator=g, dtype=torch.float64)
    value, spend = value + 0.5, spend.abs()
    if kind == "ties":  # small whole numbers: equal points, equal efficiencies, spend that buys nothing more
        value, spend = (torch.randint(low, 7, (n, pairs), generator=g).double() for low in (-2, 1))
    spend[torch.rand(n, pairs, generator=g) < {"free": 0.3}.get(kind, 0.0)] = 0.0
    value[torch.rand(n, pairs, generator=g) < 0.2] = -INF
    value[torch.rand(n, generator=g) < 0.1] = -INF
    value[:, 0], spend[:, 0] = torch.randint(-2, 2, (n,), generator=g).double(), 0.0
    return value, spend


def exact_hull(value: list, spend: list) -> list[tuple]:
    """Return the rising part of the upper concave hull of (spend, value) from pair 0 on, in exact arithmetic."""
    points = sorted({(Fraction(s), Fraction(v)) for s, v in zip(spend, value) if v > -INF}, key=lambda p: (p[0], -p[1]))
    chain = []
    for s, v in points:
        if chain and v <= chain[-1][1]:
            continue
        while len(chain) > 1 and (
            (v - chain[-1][1]) * (chain[-1][0] - chain[-2][0]) >= (chain[-1][1] - chain[-2][1]) * (s - chain[-1][0])
        ):
            chain.pop()
        chain.append((s, v))
    start = (Fraction(0), Fraction(value[0]))
    return [(float(s), float(v)) for s, v in (chain if chain[0] == start else [start, *chain])]


def worth(value: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Sum a table over the chosen pairs."""
    return value.gather(1, action[:, None]).sum()


# ── hull ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("kind", ["plain", "ties", "free"])
@pytest.mark.parametrize("pairs", [1, 2, 7, 26])
def test_hull_equals_brute_force(kind, pairs):
    value, spend = tables(kind, 200, max(pairs, 2), seed=pairs)
    if pairs == 1:
        value[:, 1:] = -INF
    steps = upper_hull(value, spend)
    assert steps.price.dtype == torch.float64
    for v, s, *row in zip(value.tolist(), spend.tolist(), *(x.tolist() for x in steps)):
        real = [step for step in zip(*row) if step[0] > -INF]
        corners = exact_hull(v, s)
        assert [(s[a], v[a]) for _, _, a in real] == corners[1:]
        for (price, cost, _), (s0, v0), (s1, v1) in zip(real, corners, corners[1:]):
            assert cost == pytest.approx(s1 - s0, abs=1e-15)
            assert price == pytest.approx((v1 - v0) / max(s1 - s0, 1e-12), rel=1e-9)
        prices = [price for price, *_ in real]
        assert all(a > b > 0 for a, b in zip(prices, [*prices[1:], 1e-300]))
        assert row[0] == sorted(row[0], reverse=True)  # what is no step comes last


def test_hull_of_a_customer_alone_equals_that_in_a_crowd():
    value, spend = tables("plain", 50, 12, seed=1)
    crowd = upper_hull(value, spend)
    for i in range(50):
        alone = upper_hull(value[i : i + 1], spend[i : i + 1])
        k = alone.price.shape[1]
        real = (alone.price > -INF)[0]
        for x, y in zip(alone, crowd):
            assert torch.equal(x[0][real], y[i, :k][real])
        assert (crowd.price[i, k:] == -INF).all()


# ── clearing the exact knapsack ─────────────────────────────────────────────────────────────────────────────────────
def relaxed(value: torch.Tensor, spend: torch.Tensor, budget: float) -> float:
    """Solve the linear relaxation of the multiple-choice knapsack: shares of the pairs of each customer."""
    v, s = value.numpy(), spend.numpy()
    n, pairs = v.shape
    exists = np.isfinite(v).ravel()
    one = np.kron(np.eye(n), np.ones(pairs))[:, exists]
    result = linprog(-v.ravel()[exists], A_ub=s.ravel()[None, exists], b_ub=[budget], A_eq=one, b_eq=np.ones(n))
    assert result.status == 0
    return -result.fun


@pytest.mark.parametrize("kind", ["plain", "ties", "free"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.1])
def test_clearing_the_hull_is_the_linear_relaxation_up_to_one_step(kind, share):
    for seed in range(5):
        value, spend = tables(kind, 25, 8, seed)
        steps = upper_hull(value, spend)
        budget = share * torch.where(steps.price > -INF, steps.spend, 0.0).sum()
        action, price = clear(steps, budget)
        bought, paid = worth(value, action), worth(spend, action)
        assert paid <= budget + 1e-9
        # What is left buys a part of the first step refused, at its price.
        best = bought + price * (budget - paid)
        assert relaxed(value, spend, budget.item()) == pytest.approx(best.item(), abs=1e-7)
        assert (price == 0) == (share > 1)
        left = [cost for p, cost in zip(steps.price.flatten(), steps.spend.flatten()) if p == price]
        assert share > 1 or budget - paid < max(left)


def test_a_budget_of_nothing_buys_only_what_is_free():
    value, spend = tables("plain", 100, 9, seed=3)
    action, price = clear(upper_hull(value, spend), torch.tensor(0.0))
    assert not action.any() and price == upper_hull(value, spend).price.max()
    value, spend = tables("free", 100, 9, seed=3)
    free = torch.where(spend == 0, value, -INF)
    action, _ = clear(upper_hull(value, spend), torch.tensor(0.0))
    assert action.any() and worth(spend, action) == 0
    torch.testing.assert_close(value.gather(1, action[:, None])[:, 0], free.amax(1))


@pytest.mark.parametrize("kind", ["plain", "ties", "free"])
def test_an_endless_budget_buys_everyone_the_best_at_the_least_spend(kind):
    value, spend = tables(kind, 200, 9, seed=4)
    action, price = clear(upper_hull(value, spend), torch.tensor(INF))
    assert price == 0
    best = value.amax(1, keepdim=True)
    assert torch.equal(value.gather(1, action[:, None]), best)
    assert torch.equal(spend.gather(1, action[:, None])[:, 0], torch.where(value == best, spend, INF).amin(1))


@pytest.mark.parametrize("kind", ["plain", "ties", "free"])
def test_more_money_spends_more_at_a_lower_price_and_never_too_much(kind):
    value, spend = tables(kind, 60, 9, seed=5)
    steps, before = upper_hull(value, spend), None
    for budget in torch.linspace(0, 1.05 * torch.where(steps.price > -INF, steps.spend, 0.0).sum().item(), 200):
        action, price = clear(steps, budget)
        now = (worth(spend, action), -price, worth(value, action))
        assert now[0] <= budget + 1e-9
        if before:
            assert all(a >= b for a, b in zip(now, before))
        before = now
    assert before[1] == 0


def test_steps_on_one_line_are_taken_in_order():
    spend = torch.rand(15_000, 8, generator=seeded(0), dtype=torch.float64)
    spend[:, 0] = 0
    value = spend * 3 * torch.rand(15_000, 1, generator=seeded(1), dtype=torch.float64)
    price = upper_hull(value, spend).price
    assert (price[:, 1:] <= price[:, :-1]).all()


def test_what_does_not_exist_is_never_sent():
    value, spend = tables("ties", 300, 9, seed=6)
    for budget in (0.0, 50.0, 500.0, INF):
        action, _ = clear(upper_hull(value, spend), torch.tensor(budget))
        assert value.gather(1, action[:, None]).isfinite().all()


# ── steps in any order of price ─────────────────────────────────────────────────────────────────────────────────────
def by_hand(steps: Increments, budget: float) -> tuple[list, float]:
    """Clear with a loop: the dearest step first, to the first that no longer fits.

    Among equals a customer's own steps and lower rows come first.
    """
    rows = [
        (-p, i, k, s, a)
        for i, row in enumerate(zip(*(x.tolist() for x in steps)))
        for k, (p, s, a) in enumerate(zip(*row))
        if p > -INF
    ]
    action, spent = [0] * len(steps.price), 0.0
    for p, i, _, s, a in sorted(rows):
        if spent + s > budget:
            return action, max(-p, 0.0)
        action[i], spent = a, spent + s
    return action, 0.0


@pytest.mark.parametrize("budget", [0.0, 3.0, 20.0, 60.0, INF])
def test_clear_equals_a_loop(budget):
    for seed in range(10):
        g = seeded(seed)
        price = torch.randint(0, 6, (20, 4), generator=g).double().sort(1, descending=True).values
        price[torch.arange(4) >= torch.randint(5, (20, 1), generator=g)] = -INF
        steps = Increments(price, torch.rand(20, 4, generator=g).double(), torch.randint(1, 26, (20, 4), generator=g))
        action, marginal = clear(steps, torch.tensor(budget))
        assert (action.tolist(), marginal.item()) == by_hand(steps, budget)


def test_ranked_goes_down_the_list_to_the_first_that_does_not_fit():
    score = torch.tensor([0.1, 0.9, -INF, 0.5, -0.3])
    spend, action = torch.tensor([1.0, 2.0, 0.1, 4.0, 0.5]), torch.tensor([7, 8, 9, 10, 11])
    for budget, expected, price in (
        (1.9, [0, 0, 0, 0, 0], 0.9),
        (2.0, [0, 8, 0, 0, 0], 0.5),
        (6.9, [0, 8, 0, 10, 0], 0.1),
        (7.0, [7, 8, 0, 10, 0], 0.0),
        (7.5, [7, 8, 0, 10, 11], 0.0),
    ):
        got, marginal = clear(ranked(score, spend, action), torch.tensor(budget))
        assert got.tolist() == expected and marginal.item() == pytest.approx(price)


# ── switches of a policy that sees a price ──────────────────────────────────────────────────────────────────────────
def grid(points: int, low: float = 0.05, high: float = 40.0) -> torch.Tensor:
    """Lay out falling prices, log-spaced."""
    return torch.logspace(np.log10(high), np.log10(low), points, dtype=torch.float64)


def priced(value: torch.Tensor, spend: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:
    """Logits [G, N, P] of a policy that maximises value − price·spend."""
    return value - prices[:, None, None] * spend


@pytest.fixture(scope="module")
def market():
    """300 customers whose efficiencies lie within the grid: values concave in spend, and pairs that aren't worth it."""
    g = seeded(7)
    taste = 2 * torch.rand(300, 1, generator=g, dtype=torch.float64) + 0.3
    spend = 0.2 + 2 * torch.rand(300, 8, generator=g, dtype=torch.float64)
    value = taste * spend.sqrt() * (0.6 + 0.4 * torch.rand(300, 8, generator=g, dtype=torch.float64))
    value[:, 0], spend[:, 0] = 0.0, 0.0
    value[torch.rand(300, 8, generator=g) < 0.2] = -INF
    value[:, 0] = 0.0
    return value, spend


def test_switches_lie_where_the_exact_steps_do(market):
    value, spend = market
    prices, exact = grid(48), upper_hull(value, spend)
    steps = demand_curve(priced(value, spend, prices), spend, prices)
    for i in range(len(value)):
        at = {a: p for p, a in zip(exact.price[i].tolist(), exact.action[i].tolist()) if p > prices[-1]}
        found = [(p, a) for p, a in zip(steps.price[i].tolist(), steps.action[i].tolist()) if p > -INF]
        assert {a for _, a in found} <= set(at) and found[-1][1] == list(at)[-1]
        if len(found) == len(at):  # no two steps of the customer between the same two grid points
            assert [p for p, _ in found] == pytest.approx(list(at.values()), rel=0.01)  # the grid's own step is 15 %


@pytest.mark.long
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_switches_clear_as_the_exact_knapsack_does(market, share):
    value, spend = market
    prices, exact = grid(2000), upper_hull(value, spend)
    budget = share * torch.where(exact.price > -INF, exact.spend, 0.0).sum()
    expected, price = clear(exact, budget)
    action, found = clear(demand_curve(priced(value, spend, prices), spend, prices), budget)
    assert found.item() == pytest.approx(price.item(), rel=4e-3)
    far = ((exact.price / price - 1).abs() > 4e-3).all(1)  # no step of theirs so near to the marginal price
    assert far.double().mean() > 0.9
    assert torch.equal(action[far], expected[far])


def test_switches_never_pass_the_budget_and_spend_rises_with_it(market):
    value, spend = market
    prices = grid(48)
    steps, paid = demand_curve(priced(value, spend, prices), spend, prices), -1.0
    for budget in torch.linspace(0, 500, 100):
        before, paid = paid, worth(spend, clear(steps, budget)[0])
        assert before <= paid <= budget + 1e-9
    at_last = priced(value, spend, prices)[-1].argmax(1)
    assert torch.equal(clear(steps, torch.tensor(INF))[0], at_last)


def test_rows_of_switches_fall_in_price_and_rise_in_spend_whatever_the_policy():
    g = seeded(8)
    logits, spend = torch.randn(20, 100, 6, generator=g), torch.rand(100, 6, generator=g)
    spend[:, 0] = 0
    prices = grid(20).float()
    steps = demand_curve(logits, spend, prices)
    total = torch.zeros(100)
    for k in range(20):
        real = steps.price[:, k] > -INF
        assert (steps.spend[real, k] > 0).all()
        total = total + torch.where(real, steps.spend[:, k], 0.0)
        torch.testing.assert_close(total[real], spend[real].gather(1, steps.action[real, k : k + 1])[:, 0])
        earlier = torch.where(steps.price[:, :k] > -INF, steps.price[:, :k], INF)
        assert k == 0 or (earlier.amin(1)[real] >= steps.price[real, k] * (1 - 1e-6)).all()
        assert (steps.price[real, k] >= prices[k] * (1 - 1e-6)).all()
        assert (steps.price[real, k] <= prices[max(k - 1, 0)] * (1 + 1e-6)).all()


def choices(*rows: list) -> torch.Tensor:
    """Logits [G, N, 4] whose mode is given, one row of pairs a grid point; 1 above all others."""
    return torch.nn.functional.one_hot(torch.tensor(rows), 4).double()


@pytest.mark.parametrize(
    "path, bought",
    [
        ([0, 0, 1, 1, 2], {2: 1, 4: 2}),  # monotone
        ([1, 1, 0, 0, 1], {4: 1}),  # bought dear, not at a middling price: counts from where it is kept
        ([3, 1, 3, 3, 3], {1: 1, 2: 3}),  # less at one price: until there it counts as the less
        ([2, 2, 2, 2, 0], {}),  # given up where money is cheapest
        ([3, 0, 2, 1, 1], {3: 1}),  # what is not kept below is not bought
        ([1, 1, 1, 1, 1], {0: 1}),  # from the first price on
    ],
)
def test_spend_is_made_monotone_from_below(path, bought):
    prices, spend = torch.tensor([16.0, 8, 4, 2, 1], dtype=torch.float64), torch.tensor([[0.0, 1, 2, 3]]).double()
    steps = demand_curve(choices(*([a] for a in path)), spend, prices)
    real = steps.price[0] > -INF
    found = {k: a for k, a in enumerate(steps.action[0].tolist()) if real[k]}
    assert found == bought
    before = dict(zip(found, [0, *found.values()]))
    for k, price in ((k, steps.price[0, k].item()) for k in found):
        if k and path[k - 1] == before[k]:  # logits of 0 and 1 cross half way, on the logarithm of the price
            assert price == pytest.approx((prices[k] * prices[k - 1]).sqrt().item())
        else:
            assert prices[k].item() <= price * (1 + 1e-9) <= prices[max(k - 1, 0)].item() * (1 + 2e-9)


def test_masked_pairs_are_never_bought(market):
    value, spend = market
    prices = grid(48)
    for table in (value, torch.where(torch.arange(8) > 0, -INF, value)):
        steps = demand_curve(priced(table, spend, prices), spend, prices)
        for budget in (1.0, 30.0, INF):
            action, _ = clear(steps, torch.tensor(budget))
            assert table.gather(1, action[:, None]).isfinite().all()
    assert not action.any()  # where all but nothing is masked


# ── the amount ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_weekly_amounts(make_season):
    season = make_season(20)
    c, world, start = season.customers, season.world, season.start
    v0 = no_contact_values(c, world)

    def amounts(**changes):
        return load("budget/expected", **changes).weekly_amounts(c, world, v0, start)

    mean = unconstrained_spend(c, world, v0, start).mean()
    for share in (0.1, 0.3, 1.0):
        torch.testing.assert_close(amounts(share=share), torch.full((12,), share, dtype=torch.float64) * mean)
    assert amounts(weekly=0.25).tolist() == [5.0] * 12


@pytest.mark.parametrize("key, value", [("share", 0.0), ("share", 1.1), ("weekly", 0.0), ("weekly", -1.0)])
def test_a_senseless_amount_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"^env\.budget\.{key}: expected .*got {value}$"):
        Budget(
            **{
                "share": 0.3,
                "weekly": None,
                "seasonal": False,
                "rollover": False,
                "stock": {},
                "rule": None,
                key: value,
            }
        )
