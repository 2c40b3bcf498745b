"""The weekly plan, on a shop whose policy is a formula: money, lots, rules, arms and reasons."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

pytest.importorskip("pyarrow")

from envs.live.decide import DecisionInputs
from envs.live.plan import draws, money_rules
from envs.live.plan.arm_plans import charges
from envs.live.plan.arms import ARMS, BAU, HOLDOUT, RANDOM, RL, Arms, expected_shares, money_by_arm
from envs.live.plan.clearing import Demand, clear
from envs.live.plan.inputs.shop_rules import ShopRule
from envs.live.plan.money_rules import MoneyRule
from envs.live.plan.scoring import corrected, ladders, score_customers
from envs.live.plan.weekly_plan import PlanViolation, check_allowed
from envs.offers.planning import knapsack
from envs.offers.policies.logging_policies import at_private_prices, reach_probabilities
from envs.offers.populations.base import hash_uniform
from stand_in_package import CATALOGUE, NO_RULES, StandInPackage, customers_of, plan_of, setting, shuffled, table

ONLY_POLICY = Arms(7, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def package():
    return StandInPackage()


def decisions(plan) -> dict[str, tuple]:
    """What the plan decides for each customer."""
    columns = plan.columns
    texts = [
        columns[x].take(np.arange(len(columns["decision"]))) for x in ("customer", "arm", "offer", "channel", "reason")
    ]
    return {row[0]: (*row[1:], p, d) for *row, p, d in zip(*texts, columns["propensity"], columns["decision"])}


def steps_of(package, customers):
    """The steps of all customers whom rules allow something, and their rows."""
    arm = np.full(len(customers), RL, dtype=np.uint8)
    return score_customers(package, customers, torch.ones(12), arm, 4096, [])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_expected_spend_meets_the_money(package, share):
    n = 3000
    customers = customers_of(table(n), package)
    plan = plan_of(customers, package, setting(share * n))
    assert plan.arms["rl"].expected / plan.arms["rl"].money == pytest.approx(1, abs=1e-3)
    scored = steps_of(package, customers)
    at = np.flatnonzero(plan.arm[scored.eligible] == RL)
    probs = at_private_prices(
        knapsack.Increments(*(x[at] for x in scored.steps)), torch.full((len(at),), plan.cleared.price), 0.2, 12
    )
    assert float((probs * scored.spend[at]).sum()) == pytest.approx(plan.arms["rl"].money, rel=1e-4)


def test_without_lots_decisions_are_those_of_the_season_evaluation(package):
    n = 4000
    customers = customers_of(table(n), package)
    plan = plan_of(customers, package, setting(0.1 * n, sigma=0.0, arms=ONLY_POLICY))
    scored = steps_of(package, customers)
    held = torch.from_numpy((plan.arm == RL)[scored.eligible])
    steps = knapsack.Increments(*(x[held] for x in scored.steps))
    action, price = knapsack.clear(steps, torch.tensor(plan.arms["rl"].money))
    assert (action.numpy() == plan.action[scored.eligible][held]).mean() >= 1 - 2 / n  # ties
    assert plan.cleared.price == pytest.approx(float(price), rel=1e-6)
    assert plan.arms["rl"].spend <= plan.arms["rl"].money


def inputs(customers) -> DecisionInputs:
    n = len(customers)
    options = customers.options
    return DecisionInputs(
        customers.numbers, customers.levels, torch.zeros(n, 1), options.caps_left, torch.tensor(3), options.action_mask
    )


def test_steps_are_those_of_the_demand_curve_of_all_customers_and_prices(package):
    customers = customers_of(table(500), package)
    logits, spend = package.score(inputs(customers))
    whole = knapsack.compact(knapsack.demand_curve(logits, spend, package.prices))
    found, found_spend = ladders(package, inputs(customers), torch.ones(12))
    real = whole.price > -torch.inf
    assert torch.equal(found.price, whole.price) and (~real[:, 0]).sum() > 10 and real.sum(1).max() >= 2
    assert all(torch.equal(x[real], y[real]) for x, y in zip(found, whole)) and torch.equal(found_spend, spend)
    only_nothing = inputs(customers)._replace(
        action_mask=torch.zeros(500, 12, dtype=torch.bool).index_fill(1, torch.tensor(0), True)
    )
    nobody, _ = ladders(package, only_nothing, torch.ones(12))
    assert (nobody.price == -torch.inf).all() and len(nobody.price) == 500


def test_most_customers_are_asked_at_few_prices():
    asked = []

    class Counting(StandInPackage):
        def score(self, inputs, prices=None):
            asked.append(len(inputs.numbers) * len(prices))
            return super().score(inputs, prices)

    ladders(Counting(), inputs(customers_of(table(500), Counting())), torch.ones(12))
    assert sum(asked) < 0.6 * 500 * 48  # most customers of this shop would be sent something at the lowest price


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_policy_of_action_values_has_the_steps_of_its_values_hull(factor):
    package = StandInPackage()
    package.observes_price = False
    customers = customers_of(table(400), package)
    scores = package.score(inputs(customers), torch.zeros(1))
    factors = torch.full((12,), factor)
    found, spend = ladders(package, inputs(customers), factors)
    hull = knapsack.compact(knapsack.upper_hull(scores.logits[0], corrected(scores.spend, factors, CATALOGUE)))
    real = hull.price > -torch.inf
    assert torch.equal(found.price > -torch.inf, real) and torch.equal(found.action[real], hull.action[real])
    assert torch.allclose(found.price[real], hull.price[real], rtol=2e-3) and real.sum(1).max() >= 2
    # at any price the hull holds what value less price · spend is highest for
    for price in (0.3, 1.0, 4.0):
        best = (scores.logits[0] - price * spend).argmax(1)
        bought = (found.price > price).sum(1)
        held = torch.where(bought > 0, found.action.gather(1, (bought - 1).clamp_min(0)[:, None])[:, 0], 0)
        assert (held != best).sum() <= 1


def test_small_lots_go_over_into_no_lots(package):
    customers = customers_of(table(2000), package)
    exact, close = (plan_of(customers, package, setting(200.0, sigma=sigma, arms=ONLY_POLICY)) for sigma in (0.0, 1e-5))
    assert (exact.action != close.action).sum() <= 2
    assert close.cleared.price == pytest.approx(exact.cleared.price, rel=1e-3)


def test_propensities_are_frequencies_over_salts_and_sum_to_one(package):
    customers = customers_of(table(12, seed=3), package)
    scored = steps_of(package, customers)
    price, salts = 3.0, 2000
    probs = at_private_prices(scored.steps, torch.full((len(scored.steps.price),), price), 0.4, 12)
    assert torch.allclose(probs.sum(1), torch.ones(()).double(), atol=1e-12)
    count = torch.zeros_like(probs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(salts):
        u = torch.rand(len(probs), generator=generator, dtype=torch.float64)
        drawn = draws.at_private_price(scored.steps, price, 0.4, u)
        assert torch.allclose(drawn.propensity, probs.gather(1, drawn.action[:, None])[:, 0], atol=1e-12)
        count[torch.arange(len(probs)), drawn.action] += 1
    error = (probs * (1 - probs) / salts).sqrt()
    assert ((count / salts - probs).abs() <= 4 * error + 1e-12).all()
    assert (error > 0).any()


def test_a_customers_lot_is_uniform_over_salts_of_the_plan(package):
    customers = customers_of(table(40, seed=1), package)
    plans = [plan_of(customers, package, setting(6.0, salt=salt, arms=ONLY_POLICY)) for salt in range(40)]
    bought = np.stack([plan.action > 0 for plan in plans])
    chance = np.stack([np.where(p.action > 0, p.columns["propensity"], 0.0) for p in plans])
    rows = (bought.mean(0) > 0) & (bought.mean(0) < 1)
    assert rows.sum() >= 5
    scored = steps_of(package, customers)
    probs = at_private_prices(scored.steps, torch.full((len(scored.steps.price),), plans[0].cleared.price), 0.2, 12)
    expected = np.zeros(len(customers))
    expected[scored.eligible] = 1 - probs[:, 0].numpy()
    tail = binom.sf(bought.sum(0) - 1, len(plans), np.clip(expected, 1e-12, 1))
    assert (np.minimum(tail, binom.cdf(bought.sum(0), len(plans), np.clip(expected, 1e-12, 1)))[rows] > 1e-4).all()
    assert chance[bought].min() > 0


@pytest.mark.parametrize("rule", ["expected", "buffered", "reserved"])
def test_random_pairs_are_drawn_alike_with_their_propensity(package, rule):
    customers = customers_of(table(300, seed=2), package)
    scored = steps_of(package, customers)
    mask = customers.options.action_mask[scored.eligible]
    pairs = draws.PairTotals.of(scored.spend, CATALOGUE)
    generator = torch.Generator().manual_seed(1)
    count, repeats, money = torch.zeros_like(pairs.spend), 400, 150.0
    alike = torch.ones(12, dtype=torch.float64)
    share = draws.share_of_draws(pairs, mask, lambda _: alike, money, MoneyRule(rule, 1.645))
    probs = torch.where(mask, share / mask.sum(1, keepdim=True), 0.0).double()
    probs[:, 0] += 1 - share
    spent, held = [], []
    for _ in range(repeats):
        drawn = draws.uniformly(mask, alike, torch.rand(len(mask), generator=generator, dtype=torch.float64), share)
        assert mask.gather(1, drawn.action[:, None]).all()
        count[torch.arange(len(mask)), drawn.action] += 1
        spent.append(float(pairs.spend.gather(1, drawn.action[:, None]).sum()))
        held.append(float(pairs.charge.gather(1, drawn.action[:, None])[drawn.action > 0].sum()))
        assert torch.allclose(drawn.propensity, probs.gather(1, drawn.action[:, None])[:, 0])
    assert 0 < share <= 1
    error = (probs * (1 - probs) / repeats).sqrt()
    assert ((count / repeats - probs).abs() <= 5 * error + 1e-12).all()
    spend = float((probs * pairs.spend).sum())
    assert spend <= money * (1 + 1e-6) and (share == 1 or rule != "expected" or spend >= 0.999 * money)
    totals = pairs.sums(probs)
    assert np.var(spent) == pytest.approx(float(totals.spend_lots), rel=0.3)
    assert np.var(held) == pytest.approx(float(totals.charge_lots), rel=0.3)
    if rule == "reserved":
        assert np.mean(np.array(held) > money) <= draws.passing_odds(probs, pairs.charge, money) < 0.02
        assert totals.charge + 4 * math.sqrt(totals.charge_lots) == pytest.approx(money, rel=1e-4)


def test_planned_twice_it_is_the_same_and_so_it_is_in_any_order(package):
    given = table(1500)
    first = plan_of(customers_of(given, package), package, setting(150.0))
    order = np.random.default_rng(0).permutation(1500)
    again = plan_of(customers_of(given, package), package, setting(150.0))
    other = plan_of(customers_of(shuffled(given, order), package), package, setting(150.0))
    assert decisions(first) == decisions(again) == decisions(other)


def test_arms_are_lots_of_the_id_and_a_share_moves_customers_between_its_arm_and_others_alone(package):
    ids = [f"c{k}" for k in range(20_000)]
    nobody = np.zeros(len(ids), dtype=bool)
    usual = Arms(3, 0.05, 0.01, 0.5)
    before = usual.of(ids, nobody)
    for changed, arm in (
        ({"holdout": 0.1}, HOLDOUT),
        ({"random": 0.1}, RANDOM),
        ({"bau": 0.2}, BAU),
        ({"bau": 1}, BAU),
    ):
        arms = replace(usual, **changed)
        after = arms.of(ids, nobody)
        free = (1 - arms.holdout) * (1 - arms.random)
        expected = [arms.holdout, (1 - arms.holdout) * arms.random, free * arms.bau, free * (1 - arms.bau)]
        assert np.bincount(after, minlength=4) / len(ids) == pytest.approx(expected, abs=0.015)
        shares = expected_shares(holdout=arms.holdout, random=arms.random, bau=arms.bau)
        assert shares == pytest.approx(dict(zip(ARMS, expected)))
        moved = before != after
        assert moved.any()
        assert ((before == arm) ^ (after == arm))[moved].all()
    assert (usual.of(ids, ~nobody) == HOLDOUT).all()


def test_each_arm_has_the_share_of_its_eligible_customers():
    arm = np.array([HOLDOUT, RANDOM, BAU, BAU, RL, RL, RL])
    eligible = np.array([True, True, True, False, True, True, True])
    assert money_by_arm(100.0, arm, eligible) == {RANDOM: 20.0, BAU: 20.0, RL: 60.0}


def test_no_rule_is_violated_and_the_holdout_gets_nothing(package):
    for seed in range(6):
        customers = customers_of(table(500, seed=seed), package)
        plan = plan_of(customers, package, setting(40.0 * (seed + 1), sigma=0.1 * seed, salt=seed))
        mask = customers.options.action_mask.numpy()
        assert mask[np.arange(500), plan.action].all()
        assert (plan.action[plan.arm == HOLDOUT] == 0).all()
        for row in plan.sent.tolist():
            offer, channel = CATALOGUE.action_codec.decode(int(plan.action[row]))
            assert not customers.contact_policy.reasons(row, offer, channel, True, [])


def test_a_decision_past_the_mask_stops_the_plan():
    mask = torch.tensor([[True, False], [True, True]])
    check_allowed(torch.tensor([0, 1]), mask)
    with pytest.raises(PlanViolation, match="1 decisions"):
        check_allowed(torch.tensor([1, 1]), mask)


# ── rules of money ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_buffered_leaves_the_standard_deviations_free(package):
    customers = customers_of(table(3000), package)
    plan = plan_of(customers, package, setting(300.0, rule="buffered", arms=ONLY_POLICY, sigma=0.0))
    offer, channel = CATALOGUE.action_codec.decode(torch.from_numpy(plan.action))
    face = CATALOGUE.value[offer].numpy()
    given = plan.spend - CATALOGUE.cost[channel].numpy() * (plan.action > 0)
    used = plan.spend.sum() + 1.645 * math.sqrt((given * (face - given)).sum())
    assert used <= plan.arms["rl"].money and used == pytest.approx(plan.arms["rl"].money, rel=2e-2)


@pytest.mark.parametrize("salt", range(5))
@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("money", [4.0, 60.0, 300.0])
def test_reserved_holds_no_more_than_the_money(package, salt, sigma, money):
    customers = customers_of(table(300, seed=salt), package)
    plan = plan_of(customers, package, setting(money, rule="reserved", salt=salt, sigma=sigma))
    for arm in plan.arms.values():
        assert arm.face <= arm.money * (1 + 1e-6)
    assert plan.arms["rl"].contacts > 0 or money < 10


def test_buffered_holds_the_variance_of_lots_and_of_redemptions(package):
    """Where σ is large the lots bring most of the variance; spend passes the money as often as z says."""
    customers = customers_of(table(400), package)
    scored = steps_of(package, customers)
    demand = Demand.of(scored.steps, CATALOGUE)
    z, money, sigma = 1.2816, 60.0, 1.0  # a tenth
    cleared = clear(demand, money, MoneyRule("buffered", z), sigma, 0.05)
    rng, spends, means = np.random.default_rng(0), [], []
    for _ in range(1500):
        u = torch.from_numpy(rng.random(len(scored.eligible)))
        action = draws.at_private_price(scored.steps, cleared.price, sigma, u).action
        pairs = draws.PairTotals.of(scored.spend, CATALOGUE)
        spend = pairs.spend.gather(1, action[:, None])[:, 0].numpy()
        offer, channel = CATALOGUE.action_codec.decode(action)
        face, message = CATALOGUE.value[offer].numpy(), (CATALOGUE.cost[channel] * (offer > 0)).numpy()
        redeemed = rng.random(len(spend)) < (spend - message) / np.maximum(face, 1e-9)
        means.append(spend.sum())
        spends.append((redeemed * face + message).sum())
    lots = float(cleared.totals.spend_lots)
    assert np.var(means) <= lots * 1.1 and np.var(means) > 0.5 * lots
    assert lots > 0.1 * float(cleared.totals.variance)
    assert np.mean(np.array(spends) > money) < 0.1 + 3 * math.sqrt(0.09 / 1500)
    assert np.mean(np.array(spends) > money) > 0.04


def test_lots_that_pass_the_money_are_cut_as_seldom_as_said_and_from_the_last(package):
    customers = customers_of(table(200), package)
    scored = steps_of(package, customers)
    price, sigma = 3.0, 0.6
    reached = reach_probabilities(scored.steps, torch.full((len(scored.eligible),), price), sigma)
    bounds = torch.nn.functional.pad(reached, (1, 0), value=1.0) - torch.nn.functional.pad(reached, (0, 1))
    held = torch.nn.functional.pad(charges(scored.steps.action, CATALOGUE), (1, 0))
    mean = float((bounds * held).sum())
    generator = torch.Generator().manual_seed(0)
    totals, cut = [], []
    for money in (mean + 5.0, mean + 25.0):
        odds = draws.passing_odds(bounds, held, money)
        passed = 0
        for _ in range(300):
            u = torch.rand(len(reached), generator=generator, dtype=torch.float64)
            drawn = draws.at_private_price(scored.steps, price, sigma, u)
            charge = charges(drawn.action, CATALOGUE)
            kept = draws.kept_within(drawn, 1 - reached[:, 0], charge, u, money, odds)
            totals.append(float(charges(kept.action, CATALOGUE).sum()))
            assert totals[-1] <= money
            lost = (kept.action != drawn.action).numpy()
            passed += lost.any()
            if lost.any():
                cut.append(u[lost].min() > u[(kept.action > 0).numpy()].max())
                assert (kept.propensity[lost] >= odds).all()
                # no price brings back what was cut
                assert kept.cut[lost].all() and not kept.next_action[lost].any() and kept.next_price[lost].isnan().all()
                assert torch.equal(kept.next_action[~lost], drawn.next_action[~lost]) and not kept.cut[~lost].any()
        assert passed / 300 <= odds <= 1
    assert cut and np.mean(cut) == 1


def test_who_is_cut_is_told_so(package, monkeypatch):
    monkeypatch.setattr(money_rules, "LOTS_Z", 0.0)  # then lots hold more than the money in half of all weeks
    customers = customers_of(table(300), package)
    plans = [
        plan_of(customers, package, setting(60.0, rule="reserved", sigma=0.6, salt=k, arms=ONLY_POLICY))
        for k in range(4)
    ]
    reason = "cut: the sends before it hold the money"
    cut = [(plan, np.flatnonzero([x == reason for x in plan.columns["reason"].take(np.arange(300))])) for plan in plans]
    assert any(len(rows) for _, rows in cut)
    for plan, rows in cut:
        assert plan.arms["rl"].face <= plan.arms["rl"].money
        assert not plan.action[rows].any() and np.isnan(plan.columns["next_price"][rows]).all()


def test_each_rule_keeps_its_promise_when_customers_redeem(package):
    """Redemptions are drawn by the forecast chances, 100 times for each of 5 plans with lots of their own."""
    customers = customers_of(table(1500), package)
    rng = np.random.default_rng(0)
    beyond, share = {}, {}
    for rule in ("expected", "buffered", "reserved"):
        passed, spent = [], []
        for salt in range(5):
            plan = plan_of(customers, package, setting(120.0, rule=rule, salt=salt, arms=ONLY_POLICY))
            sent = plan.sent
            offer, channel = CATALOGUE.action_codec.decode(plan.action[sent])
            face, message = CATALOGUE.value.numpy()[offer], CATALOGUE.cost.numpy()[channel]
            redeemed = rng.random((100, len(sent))) < (plan.spend[sent] - message) / face
            spend = (redeemed * face + message).sum(1)
            passed.append((spend > plan.arms["rl"].money).mean())
            spent.append(spend.mean() / plan.arms["rl"].money)
        beyond[rule], share[rule] = np.mean(passed), np.mean(spent)
    assert 0.3 < beyond["expected"] < 0.7 and share["expected"] == pytest.approx(1, abs=0.03)
    assert 0 < beyond["buffered"] < 0.12 and 0.7 < share["buffered"] < 0.95
    assert beyond["reserved"] == 0 and 0.1 < share["reserved"] < 0.5


def test_the_price_is_that_of_a_plain_sum_over_steps():
    rng = np.random.default_rng(0)
    log_price, spend = rng.normal(0, 1, 5000), rng.gamma(2, 1, 5000)
    demand = Demand(log_price, spend, 0 * spend, spend, spend**2, spend**2)
    for sigma in (0.02, 0.2, 1.0):
        cleared = clear(demand, 3000.0, MoneyRule("expected", 0.0), sigma, 0.01)
        z = (log_price - math.log(cleared.price)) / sigma
        assert (spend * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))).sum() == pytest.approx(3000.0, rel=1e-5)


# ── edges ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("sigma", [0.0, 0.2])
@pytest.mark.parametrize("rule", ["expected", "buffered", "reserved"])
def test_no_money_sends_nothing(package, rule, sigma):
    plan = plan_of(customers_of(table(300), package), package, setting(0.0, rule=rule, sigma=sigma))
    assert not plan.sent.size and plan.cleared.price == math.inf
    assert "there is no money" in " ".join(plan.columns["reason"].texts)
    assert (plan.columns["propensity"] == 1).all()


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_money_for_all_ends_at_the_grid_with_a_warning(package, sigma):
    plan = plan_of(customers_of(table(300), package), package, setting(1e6, sigma=sigma))
    assert plan.cleared.price == pytest.approx(0.05)
    assert any(x.startswith("at 0.05, the policy's lowest price of money") for x in plan.warnings)


def test_without_lots_action_values_are_not_sold_below_the_grid():
    package = StandInPackage()
    package.observes_price = False
    customers = customers_of(table(300), package)
    all_money = plan_of(customers, package, setting(1e6, sigma=0.0, arms=ONLY_POLICY))
    least = float(package.prices[-1])
    below = steps_of(package, customers).steps.price
    assert ((below > 0) & (below < least)).any()  # the knapsack's steps go on below the grid
    held = all_money.arms["rl"].spend
    for money in (held * 0.999, held * 1.001):
        plan = plan_of(customers, package, setting(money, sigma=0.0, arms=ONLY_POLICY))
        assert plan.cleared.price >= least and plan.arms["rl"].spend <= money
        assert plan.arms["rl"].expected == pytest.approx(plan.arms["rl"].spend, rel=1e-5)
        assert any("lowest price of money" in x for x in plan.warnings) == (money > held)


@pytest.mark.parametrize("money", [0.1, 0.4, 3.0, 50.0])
@pytest.mark.parametrize("rule", ["expected", "reserved"])
def test_one_customer(money, rule):
    package = StandInPackage(NO_RULES)
    plan = plan_of(customers_of(table(1), package), package, setting(money, rule=rule, arms=ONLY_POLICY))
    assert 0 <= plan.columns["propensity"][0] <= 1
    if rule == "reserved":
        assert plan.arms["rl"].face <= money
    else:
        assert plan.arms["rl"].expected <= money * (1 + 1e-6)


def test_everyone_opted_out(package):
    customers = customers_of(table(50), package)
    options = customers.contact_policy(torch.zeros(50, dtype=torch.bool), [])
    gone = customers.__class__(
        customers.ids,
        customers.numbers,
        customers.levels,
        customers.past,
        customers.contact_policy,
        options,
        torch.zeros(50, dtype=torch.bool),
    )
    plan = plan_of(gone, package, setting(50.0))
    assert not plan.sent.size
    assert set(plan.columns["reason"].take(np.flatnonzero(plan.arm != HOLDOUT))) == {"not subscribed"}


# ── reasons ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_reasons_say_what_the_columns_say(package):
    plan = plan_of(customers_of(table(800), package), package, setting(80.0))
    columns = plan.columns
    reason = columns["reason"].take(np.arange(800))
    price = f"money costs {plan.cleared.price:.3g}"
    for k in np.flatnonzero(plan.arm == RL).tolist():
        own, following = columns["own_price"][k], columns["next_price"][k]
        if plan.action[k]:
            at_the_price = own >= plan.cleared.price and not following > plan.cleared.price
            lot = "" if at_the_price else " by its lot"
            assert reason[k] == f"bought at {own:.3g}{lot}, {price}"
        elif not math.isnan(following):
            pair = f"{columns['next_channel'].take([k])[0]} {columns['next_offer'].take([k])[0]}"
            lot = " by its lot" if following > plan.cleared.price else ""
            assert reason[k] == f"waits{lot}: {pair} at {following:.3g}, {price}"
    assert set(columns["reason"].take(np.flatnonzero(plan.arm == HOLDOUT))) == {"holdout"}


def test_what_a_rule_refused_is_what_the_policy_would_send_without_it(package):
    given = table(600)
    plan = plan_of(customers_of(given, package), package, setting(60.0, sigma=0.0))
    free = StandInPackage(NO_RULES)
    unruled = customers_of(given, free)
    price = torch.tensor([plan.cleared.price])
    inputs_scored = free.score(
        type(
            "Inputs",
            (),
            {"numbers": given.numbers, "memory": torch.zeros(600, 1), "action_mask": unruled.options.action_mask},
        ),
        price,
    )
    best = inputs_scored.logits[0].argmax(1).numpy()
    refused = plan.columns["refused"].index
    mask = customers_of(given, package).options.action_mask.numpy()
    theirs = plan.arm == RL
    expected = np.where(mask[np.arange(600), best] | ~theirs, 0, best)
    assert (refused == expected).all() and (expected > 0).any()
    rules = set(plan.columns["rule"].take(np.flatnonzero(refused)))
    assert "age wine: Age >= 18" in rules or "eligible five_off: Tier in ['gold', 'silver']" in rules


def test_lots_among_ties_are_not_those_of_the_arms():
    ids = [f"K{k}" for k in range(2000)]
    spend, mask = torch.full((2000, 12), 0.5), torch.ones(2000, 12, dtype=torch.bool)
    _, rank, _ = ShopRule(None, ",", CATALOGUE).wanted(ids, spend, mask, CATALOGUE)
    assert abs(np.corrcoef(rank.numpy(), hash_uniform(ids, 0).numpy())[0, 1]) < 0.1


def test_the_shops_own_decisions_are_taken_in_their_order_within_rules_and_money(package, tmp_path):
    customers = customers_of(table(200), package)
    ids = customers.ids
    path = tmp_path / "decisions.csv"
    path.write_text("customer,offer,channel\n" + "".join(f"{name},five_off,letter\n" for name in reversed(ids)))
    plan = plan_of(customers, package, setting(60.0, arms=Arms(7, 0.0, 0.0, 1.0), decisions=str(path), sigma=0.0))
    bau = plan.arm == BAU
    allowed = customers.options.action_mask.numpy()[:, CATALOGUE.action_codec.encode(2, 2)]
    sent = plan.action[bau] > 0
    assert plan.refused_by_shop_rule == (bau & ~allowed).sum() > 0
    place = np.flatnonzero(bau & allowed)[::-1]
    taken = plan.action[place] > 0
    assert taken.any() and not taken.all() and (np.diff(taken.astype(int)) <= 0).all()
    assert plan.arms["bau"].spend <= plan.arms["bau"].money
    assert (plan.columns["propensity"][bau] == 1).all() and sent.sum() == taken.sum()
