"""Channels that carry at most so many messages a week: never more, little less than the best, and a reason."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

pytest.importorskip("pyarrow")

from envs.live.plan import channel_capacity, draws
from envs.live.plan.arm_plans import PlannedWeek, at_random
from envs.live.plan.arms import BAU, RANDOM, RL, Arms
from envs.live.plan.channel_capacity import (
    Capacity,
    channels_of,
    clear_within,
    drawn_weight,
    priced,
    room_used,
)
from envs.live.plan.clearing import Demand, clear
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.scoring import score_customers
from envs.offers.planning.knapsack import Increments, upper_hull
from stand_in_package import CATALOGUE, StandInPackage, customers_of, plan_of, setting, table

CHANNEL = channels_of(CATALOGUE)
LETTER = CATALOGUE.channels.index("letter")
ONLY_POLICY = Arms(7, 0.0, 0.0, 0.0)


def worths(n: int, seed: int):
    """What each of 12 pairs is worth to each of n customers and spends, [n, 12] each; pairs of nothing are barred."""
    rng = np.random.default_rng(seed)
    spend = torch.from_numpy(rng.gamma(2.0, 0.5, (n, 12)))
    worth = torch.from_numpy(rng.gamma(1.5, 1.0, (n, 12)))
    worth[:, :3], spend[:, :3] = -torch.inf, 0.0
    worth[:, 0] = 0.0
    return worth, spend


def ladder(worth, spend) -> Increments:
    """The steps of the knapsack, as a plan has them."""
    steps = upper_hull(worth, spend)
    return Increments(steps.price.float(), steps.spend.float(), steps.action)


def ladders(worth, spend, capacity: Capacity) -> list[Increments]:
    """The steps of the knapsack over all pairs, and over those that each set of channels leaves."""
    barred = (torch.zeros(12, dtype=torch.bool), *capacity.barred(CATALOGUE))
    return [ladder(worth.masked_fill(x, -torch.inf), spend) for x in barred]


def best_of_all(worth, spend, money: float, capacity: Capacity) -> float:
    """The linear program over all pairs: no plan is worth more."""
    n = len(worth)
    value = torch.where(worth > -torch.inf, worth, -1e6).flatten().numpy()
    limits, rows = [money], [spend.flatten().numpy()]
    for k in capacity.limited:
        rows.append((CHANNEL == k).repeat(n).double().numpy())
        limits.append(capacity.of[k])
    one_each = np.kron(np.eye(n), np.ones(12))
    return -linprog(-value, np.stack(rows), limits, one_each, np.ones(n), method="highs").fun


def held(steps: Increments, price: float) -> torch.Tensor:
    """The flat action of each customer where every step at or above a price is bought."""
    count = ((steps.price >= price) & (steps.price > -torch.inf)).sum(1)
    return torch.where(count > 0, steps.action.gather(1, (count - 1).clamp_min(0)[:, None])[:, 0], 0)


@pytest.mark.parametrize("limits", [{"letter": 5}, {"letter": 3, "app": 6}, {"letter": 0}, {"letter": 2, "app": 0}])
def test_without_lots_a_channel_never_carries_more_and_the_plan_is_close_to_the_linear_program(limits):
    capacity, n, money = Capacity.read(limits, CATALOGUE), 60, 30.0
    found, best = 0.0, 0.0
    for seed in range(6):
        worth, spend = worths(n, seed)
        steps, *without = ladders(worth, spend, capacity)
        within = clear_within(
            steps, without, capacity, CATALOGUE, 0.0, lambda x: clear(x, money, MoneyRule("expected", 0.0), 0.0, 1e-6)
        )
        action = held(within.steps, within.cleared.price)
        messages = torch.bincount(CHANNEL[action], minlength=4)
        assert all(messages[k] <= capacity.of[k] for k in capacity.limited)
        rows = torch.arange(n)
        assert float(spend[rows, action].sum()) <= money * (1 + 1e-6)
        of_this = best_of_all(worth, spend, money, capacity)
        got = float(worth[rows, action].sum())
        # a vertex of the linear program splits at most one customer a limit
        assert got >= of_this - (1 + len(limits)) * float(worth[:, 3:].max())
        assert (within.fee[capacity.limited] >= 0).all() and (within.fee > 0).any()
        found, best = found + got, best + of_this
    assert found >= 0.95 * best


def test_the_steps_under_a_price_of_messages_are_what_is_worth_most_after_both_prices():
    worth, spend = worths(50, 3)
    limited, capacity = CHANNEL == LETTER, Capacity.read({"letter": 1}, CATALOGUE)
    steps, *without = ladders(worth, spend, capacity)
    fee = torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64)
    found = priced(steps, without, fee, capacity, CATALOGUE)
    for price in (0.4, 1.1, 2.5):
        gain = worth - 0.7 * limited - price * spend
        action = held(found, price)
        best = gain.max(1).values
        assert torch.allclose(gain[torch.arange(50), action], best, atol=1e-5)
        assert (action != held(steps, price)).any()


def test_a_step_that_spends_nothing_keeps_its_worth_under_a_price_of_messages():
    worth, spend = torch.full((1, 12), -torch.inf).double(), torch.zeros(1, 12).double()
    app, letter = (CATALOGUE.action_codec.encode(1, k) for k in (0, LETTER))
    worth[0, [0, app, letter]] = torch.tensor([0.0, 2.0, 3.0]).double()
    spend[0, letter] = 1.0
    capacity = Capacity.read({"letter": 1}, CATALOGUE)
    steps, *without = ladders(worth, spend, capacity)
    for fee, bought in ((0.5, [app, letter]), (1.5, [app])):
        found = priced(steps, without, torch.tensor([0.0, 0.0, fee]).double(), capacity, CATALOGUE)
        real = found.price[0] > -torch.inf
        assert found.action[0, real].tolist() == bought
        assert float((found.price[0] * found.spend[0].clamp_min(1e-12))[0]) == pytest.approx(2.0, rel=1e-5)


def test_a_channel_that_no_price_clears_is_closed_and_said_to_be(monkeypatch):
    package = StandInPackage()
    customers = customers_of(table(60), package)
    for limits, rounds, said in (({"newsletter": 3}, 12, 0), ({"newsletter": 3}, 0, 1), ({"newsletter": 0}, 12, 0)):
        monkeypatch.setattr(channel_capacity, "ROUNDS", rounds)
        plan = plan_of(customers, package, setting(8.0, arms=ONLY_POLICY, capacity=limits))
        use = plan.channels["newsletter"]
        is_open = rounds > 0 and limits["newsletter"] > 0
        assert use.fee > 0 and use.closed == (not is_open) and (is_open or use.messages == 0)
        assert sum(x.startswith("newsletter: the policy sends nothing through it") for x in plan.warnings) == said


def test_only_the_policys_customers_are_asked_again_without_a_channel():
    package = StandInPackage()
    customers = customers_of(table(80), package)
    arm = np.where(np.arange(80) % 2, RL, BAU).astype(np.uint8)
    barred = Capacity.read({"newsletter": 3}, CATALOGUE).barred(CATALOGUE)
    mixed, alone = (
        score_customers(package, customers, torch.ones(12), x, 4096, barred).without[0]
        for x in (arm, np.full(80, RL, dtype=np.uint8))
    )
    eligible = customers.eligible.numpy()
    policys = torch.from_numpy(arm == RL)[torch.from_numpy(eligible)]
    assert (alone.price[~policys] > -torch.inf).any() and (mixed.price[~policys] == -torch.inf).all()
    steps = (alone.price[policys] > -torch.inf).sum()
    assert steps > 0 and (mixed.price[policys] > -torch.inf).sum() == steps


def messages_of(plan) -> dict[str, int]:
    """What the plan sends through each channel."""
    return dict(zip(CATALOGUE.channels, np.bincount(CHANNEL.numpy()[plan.action], minlength=4).tolist()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "sigma", "limits"),
    [
        ("expected", 0.0, {"newsletter": 20}),
        ("buffered", 0.3, {"app": 7, "newsletter": 40}),
        ("reserved", 0.3, {"newsletter": 5}),
        ("expected", 0.3, {"letter": 0, "app": 1}),
    ],
)
def test_no_arm_and_no_lot_sends_more_than_a_channel_carries(rule, sigma, limits):
    package = StandInPackage()
    customers = customers_of(table(600), package)
    for salt in range(2):
        plan = plan_of(
            customers,
            package,
            setting(160.0, rule=rule, sigma=sigma, salt=salt, capacity=limits, arms=Arms(7, 0.05, 0.1, 0.3)),
        )
        sent = messages_of(plan)
        assert all(sent[name] <= most for name, most in limits.items())
        assert {name: use.messages for name, use in plan.channels.items()} == {name: sent[name] for name in limits}
        assert all(arm.expected <= arm.money * (1 + 1e-3) for arm in plan.arms.values())
        assert (plan.columns["propensity"] > 0).all() and (plan.columns["propensity"] <= 1).all()


def test_a_scarce_channel_is_used_up_and_what_it_leaves_goes_elsewhere():
    package = StandInPackage()
    customers = customers_of(table(1500), package)
    free = plan_of(customers, package, setting(200.0, arms=ONLY_POLICY))
    most = messages_of(free)["newsletter"] // 3
    plan = plan_of(customers, package, setting(200.0, arms=ONLY_POLICY, capacity={"newsletter": most}))
    assert most > 30
    assert 0.8 * most <= messages_of(plan)["newsletter"] <= most
    assert plan.channels["newsletter"].fee > 0
    assert plan.arms["rl"].expected == pytest.approx(200.0, rel=1e-3) and plan.cleared.price < free.cleared.price
    assert messages_of(plan)["app"] - messages_of(free)["app"] > 0.7 * (messages_of(free)["newsletter"] - most)
    # who would be sent a newsletter if there were room is told so
    rule = f"capacity newsletter: {most:,} messages"
    named = np.flatnonzero(np.array(plan.columns["rule"].take(np.arange(1500))) == rule)
    refused = plan.columns["refused"].take(named)
    assert len(named) > most and all(x.startswith("newsletter ") for x in refused)
    nothing = named[plan.action[named] == 0]
    assert set(plan.columns["reason"].take(nothing)) <= {rule}
    assert (plan.columns["rule"].index > 0).sum() > len(named)  # and contact rules are still named


def test_a_limit_that_does_not_bind_changes_nothing():
    package = StandInPackage()
    customers = customers_of(table(800), package)
    free, limited = (plan_of(customers, package, setting(80.0, capacity=x)) for x in ({}, {"letter": 10**6}))
    rows = np.arange(800)
    for name, column in free.columns.items():
        other = limited.columns[name]
        if isinstance(column, np.ndarray):
            assert np.array_equal(column, other, equal_nan=column.dtype.kind == "f"), name
        else:
            assert column.take(rows) == other.take(rows), name
    assert limited.channels["letter"].fee == 0 and not free.channels


@pytest.mark.parametrize("limits", [{"newsletter": 10**6}, {"newsletter": 10**6, "app": 10**6}])
def test_a_limit_that_does_not_bind_leaves_a_scarce_channel_its_substitutes(limits):
    worth, spend = worths(120, 4)
    plans = []
    for given in ({"letter": 5}, {"letter": 5, **limits}):
        capacity = Capacity.read(given, CATALOGUE)
        steps, *without = ladders(worth, spend, capacity)
        rule = MoneyRule("expected", 0.0)
        plans.append(clear_within(steps, without, capacity, CATALOGUE, 0.0, lambda x: clear(x, 60.0, rule, 0.0, 1e-6)))
    one, two = plans
    assert one.fee[LETTER] > 0 and torch.equal(one.fee, two.fee)
    assert one.cleared.price == two.cleared.price
    assert torch.equal(held(one.steps, one.cleared.price), held(two.steps, two.cleared.price))


@pytest.mark.slow
def test_a_plan_whose_second_limit_does_not_bind_decides_as_without_it():
    package = StandInPackage()
    customers = customers_of(table(400), package)
    one, two = (
        plan_of(customers, package, setting(60.0, arms=ONLY_POLICY, capacity={"newsletter": 10, **x}))
        for x in ({}, {"app": 10**6})
    )
    assert one.channels["newsletter"].fee > 0 and messages_of(one)["app"] > 0
    assert np.array_equal(one.action, two.action)


def test_the_share_of_lots_that_a_channel_carries_is_drawn_with_its_propensity():
    mask = torch.ones(40, 12, dtype=torch.bool)
    mask[:, 1:3] = False
    mask[::3, 5] = False
    capacity = Capacity.read({"letter": 6}, CATALOGUE)
    weight = drawn_weight(mask, 1.0, capacity, CATALOGUE)
    chance = (mask[:, CHANNEL == LETTER].sum(1) / mask.sum(1)).double() * weight[5]
    assert 0 < weight[5] < 1 and room_used(chance) == pytest.approx(6, abs=1e-3)
    assert (weight[CHANNEL != LETTER] == 1).all()
    grid = 1000
    count = torch.zeros(40, 12)
    for u in ((torch.arange(grid) + 0.5) / grid).double().tolist():
        drawn = draws.uniformly(mask, weight, torch.full((40,), u, dtype=torch.float64), 0.8)
        count[torch.arange(40), drawn.action] += drawn.propensity.reciprocal().float() / grid
    # each possible action is drawn as often as its propensity says
    assert torch.allclose(count[mask], torch.ones(int(mask.sum())), atol=0.06)


@pytest.mark.slow
def test_the_random_arm_draws_a_channel_less_only_as_far_as_its_money_makes_that_necessary():
    package = StandInPackage()
    customers = customers_of(table(300), package)
    chosen = setting(24.0, sigma=0.0, arms=Arms(7, 0.0, 0.5, 0.0))
    free, limited = (
        at_random(PlannedWeek.of(package, customers, torch.ones(12, dtype=torch.float64), x))
        for x in (chosen, replace(chosen, capacity=Capacity.read({"letter": 40}, CATALOGUE)))
    )
    expected = {name: x[0].expected for name, x in (("free", free), ("limited", limited))}
    assert 0.01 < free[1] < 0.1 and limited[1] == free[1] and expected["limited"] == expected["free"]
    # a limit below what the money buys: share and weight together use the money and the channel up
    tight = replace(chosen, money=120.0, capacity=Capacity.read({"letter": 40}, CATALOGUE))
    week = PlannedWeek.of(package, customers, torch.ones(12, dtype=torch.float64), tight)
    plan, share = at_random(week)
    mask = customers.options.action_mask[plan.rows]
    weight = drawn_weight(mask, share, week.capacity[RANDOM], CATALOGUE)
    chance = share * ((mask * weight)[:, CHANNEL == LETTER].sum(1) / mask.sum(1))
    assert 0 < weight[5] < 1 and room_used(chance) == pytest.approx(week.capacity[RANDOM].of[LETTER], abs=1e-3)
    assert plan.expected == pytest.approx(week.money[RANDOM], rel=1e-3)


def test_shares_of_the_arms_add_up_to_no_more_and_the_shops_first_decisions_are_carried(tmp_path):
    package = StandInPackage()
    customers = customers_of(table(200), package)
    path = tmp_path / "decisions.csv"
    path.write_text("customer,offer,channel\n" + "".join(f"{name},coffee,letter\n" for name in customers.ids))
    chosen = setting(400.0, arms=Arms(7, 0.0, 0.0, 1.0), decisions=str(path), sigma=0.0, capacity={"letter": 9})
    plan = plan_of(customers, package, chosen)
    bau = np.flatnonzero(
        (plan.arm == BAU) & customers.options.action_mask.numpy()[:, CATALOGUE.action_codec.encode(1, 2)]
    )
    assert (plan.action[bau[:9]] > 0).all() and not plan.action[bau[9:]].any()
    assert plan.columns["rule"].take(bau[9:10]) == ["capacity letter: 9 messages"]
    parts = [Capacity.read({"letter": 7}, CATALOGUE).share(x).of[LETTER] for x in (0.3, 0.33, 0.37)]
    assert sum(parts) <= 7 and all(x == int(x) for x in parts)
    with pytest.raises(ValueError, match="capacity: expected some of app, newsletter, letter, got 'pigeon'"):
        Capacity.read({"pigeon": 1}, CATALOGUE)


def test_the_demand_of_steps_that_a_price_leaves_is_what_clears(tmp_path):
    worth, spend = worths(80, 1)
    capacity = Capacity.read({"letter": 4}, CATALOGUE)
    steps, *without = ladders(worth, spend, capacity)
    rule = MoneyRule("expected", 0.0)
    within = clear_within(steps, without, capacity, CATALOGUE, 0.2, lambda x: clear(x, 20.0, rule, 0.2, 1e-6))
    again = clear(Demand.of(within.steps, CATALOGUE), 20.0, rule, 0.2, 1e-6)
    assert again.price == pytest.approx(within.cleared.price, rel=1e-6)
    assert math.isfinite(float(within.fee.max()))
