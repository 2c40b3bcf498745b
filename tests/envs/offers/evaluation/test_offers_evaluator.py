"""Evaluation: two forms of the score agree, lost profit adds up, common random numbers, new customers."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from configs import load
from envs.offers.evaluation.profit_decomposition import (
    SEGMENTS,
    ScoreTerms,
    decompose_gap,
    decompose_lost_profit,
    paired_difference,
    score_terms,
    share_of_gap,
    summarise_seasons,
)
from envs.offers.evaluation.simulation import EvaluationMarket, SeasonRecord, simulate_season
from envs.offers.evaluation.validation import Validation
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.knapsack import clear
from envs.offers.planning.state_values import VisitedStates
from envs.offers.policies.baselines import KnapsackPolicy, NoContact, RandomContacts, ResponseRanking
from envs.offers.policies.information import ORACLE
from envs.offers.policies.learned import PriceGridPolicy
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.world.customers import CustomerState
from envs.offers.world.response import outcomes
from policies import LogitsPolicy
from reference_world import references
from small_offers import small_evaluation

CHANNELS = 5
POLICIES = ("none", "random", "myopic", "planning")


def uniforms(market: EvaluationMarket, seasons: int, seed=0) -> list:
    """Draw the uniforms of seasons."""
    generator = torch.Generator().manual_seed(seed)
    return [market.sample_uniforms(generator) for _ in range(seasons)]


@pytest.fixture(scope="module")
def small():
    """80 customers, their bound, and 20 seasons of four policies under the same random numbers."""
    evaluation = small_evaluation()
    sample = evaluation.env.population.draw(80, torch.Generator().manual_seed(1), "test")
    market = EvaluationMarket.from_sample(sample, evaluation.world, evaluation.env.budget, evaluation.env.contact_rules)
    bound, c, w = evaluation.solve_bound(market), market.customers, market.world

    def policy(name):
        return {
            "none": NoContact,
            "random": lambda: RandomContacts(c, w, seed=0),
            "myopic": lambda: KnapsackPolicy(c, w, ORACLE, values=None, fee=0.0),
            "planning": lambda: KnapsackPolicy(c, w, ORACLE, values=bound.values, fee=0.0),
        }[name]()

    u = uniforms(market, 20)
    records = {name: [simulate_season(policy(name), market, x, bound) for x in u] for name in POLICIES}
    return SimpleNamespace(
        market=market,
        bound=bound,
        policy=policy,
        u=u,
        records=records,
        evaluation=evaluation,
        rows={name: summarise_seasons(records[name], market, bound) for name in POLICIES},
    )


@pytest.mark.long
# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_planning_is_next_to_the_bound_and_nobody_does_better(small):
    score = {name: row["score"] for name, row in small.rows.items()}
    assert 0.95 < score["planning"] <= 1 + 1e-9
    assert score["planning"] > score["myopic"] + 0.3 > score["none"] + 0.3
    assert score["random"] < 0.1


def test_of_silence_the_score_is_exactly_nothing(small):
    row = small.rows["none"]
    assert row["score"] == row["score_direct"] == row["incremental_profit"] == 0
    assert row["score_ci"] == row["score_direct_ci"] == [0, 0]
    assert row["score_by_loss"] != 0  # by chance
    for name in POLICIES[1:]:
        ahead = paired_difference(small.records[name], small.records["none"], small.market, small.bound)
        assert ahead == [small.rows[name]["score"], *small.rows[name]["score_ci"]]


def half_width(interval):
    return (interval[1] - interval[0]) / 2


@pytest.mark.parametrize("name", POLICIES)
def test_the_score_has_less_noise_than_either_account(small, name):
    row, bound = small.rows[name], small.bound
    terms = score_terms(small.records[name], small.market, bound)
    by_loss, by_advantage = (share_of_gap(x, terms.used, bound) for x in (terms.by_loss, terms.by_advantage))
    assert by_loss == pytest.approx([row["score_by_loss"], *row["score_by_loss_ci"]])
    assert by_advantage[0] == pytest.approx(row["score_direct"])
    assert half_width(row["score_ci"]) <= 1.1 * min(half_width(by_loss[1:]), half_width(by_advantage[1:]))
    variances = [half_width(x[1:]) ** 2 for x in (by_advantage, by_loss)]
    weights = [x / sum(variances) for x in reversed(variances)]
    assert row["score"] == pytest.approx(weights[0] * by_advantage[0] + weights[1] * by_loss[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES[1:])
def test_the_interval_of_the_score_holds_its_nominal_share(small, name):
    """Of customers drawn anew from 1,600 whose accounts have one mean: as often as the intervals of either account."""
    accounts, count, draws = [], 200, 1000
    for record in small.records[name]:
        terms = score_terms([record], small.market, small.bound)
        accounts.append(torch.stack((terms.by_advantage, terms.by_loss, small.bound.gain)))
    advantage, loss, gain = torch.cat(accounts, 1)
    loss = loss + (advantage - loss).mean()
    budget = (small.bound.gap - small.bound.gain.sum().item()) * count / 80  # at its price, all used
    truth = (loss.mean() * count + budget) / (gain.mean() * count + budget)
    generator = torch.Generator().manual_seed(0)
    errors, held = [], []
    for _ in range(draws):
        i = torch.randint(len(gain), (count,), generator=generator)
        bound = replace(small.bound, value=small.bound.none + gain[i].sum().item() + budget, gain=gain[i])
        terms = ScoreTerms(advantage[i], loss[i], budget)
        found = [share_of_gap(x, budget, bound) for x in (terms.mixed(bound), advantage[i], loss[i])]
        errors.append([score - truth for score, *_ in found])
        held.append([low <= truth <= high for _, low, high in found])
    error, coverage = torch.tensor(errors, dtype=torch.float64), torch.tensor(held).double().mean(0)
    assert coverage[0] > coverage[1:].min() - 0.02, coverage
    assert coverage[0] > 0.88, coverage
    bias, deviation = error.mean(0), error.std(0)
    assert deviation[0] < 1.1 * deviation[1:].min()
    assert bias[0].abs() < bias[1:].abs().max() + 0.1 * deviation[0]


def test_money_and_stock_that_roll_over_leave_silence_at_nothing(small):
    prices = small.bound.prices.sort(descending=True).values
    scarcity = torch.full_like(small.bound.scarcity, 0.3)
    stock = torch.full_like(small.bound.stock, 4.0)
    value = small.bound.none + (prices * small.market.budget).sum() + (scarcity * stock).sum() + small.bound.gain.sum()
    bound = replace(
        small.bound, prices=prices, scarcity=scarcity, stock=stock, rollover=True, value=value.item(), values=None
    )
    for name in POLICIES:
        records = small.records[name]
        row, terms = summarise_seasons(records, small.market, bound), score_terms(records, small.market, bound)
        by_loss = share_of_gap(terms.by_loss, terms.used, bound)
        assert by_loss == pytest.approx([row["score_by_loss"], *row["score_by_loss_ci"]])
        if name == "none":
            assert row["score"] == 0 and row["score_ci"] == [0, 0]


@pytest.mark.parametrize("name", POLICIES)
def test_both_accounts_of_the_score_agree_to_monte_carlo_error(small, name):
    """J(π) − J(none) = E Σ A⁰ and L − J(π) = E Σ ρ + Σ λ (B − E spend), so that they add up to L − J(none)."""
    bound, market = small.bound, small.market
    sums = (
        torch.stack(
            [
                r.incremental_profit.sum()
                + r.lost_profit.sum()
                + (bound.prices * (market.budget - r.expected_spend.sum(1))).sum()
                for r in small.records[name]
            ]
        )
        / bound.gap
    )
    error = sums.std() / len(sums) ** 0.5
    assert error < 0.02
    assert abs(sums.mean() - 1) < 4 * error
    row = small.rows[name]
    assert 1 + row["score_direct"] - row["score_by_loss"] == pytest.approx(sums.mean().item(), abs=1e-9)
    low, high = row["score_direct_ci"]
    assert low - 4 * error <= row["score"] <= high + 4 * error


def test_score_is_the_share_of_attainable_profit(small):
    for row in small.rows.values():
        assert row["incremental_profit"] == pytest.approx(row["score"] * small.bound.gap)
        low, high = row["score_ci"]
        assert low <= row["score"] <= high


def test_interval_is_that_of_a_bootstrap_over_customers(small):
    bound = small.bound
    for name in ("myopic", "random"):
        each, rest = decompose_gap(small.records[name], small.market, bound)
        fixed = bound.gap - bound.gain.sum()  # Σ λ·B
        i = torch.randint(80, (4000, 80), generator=torch.Generator().manual_seed(0))
        ratios = (each[i].sum(1) + rest) / (bound.gain[i].sum(1) + fixed)
        ratio, low, high = share_of_gap(each, rest, bound)
        assert ratio == pytest.approx(((each.sum() + rest) / bound.gap).item())
        assert high - ratio == pytest.approx(ratio - low) == pytest.approx(1.96 * ratios.std().item(), rel=0.1)


def test_a_share_of_nothing_is_refused(small):
    each, rest = decompose_gap(small.records["myopic"], small.market, small.bound)
    with pytest.raises(ValueError, match="to whom a contact is allowed and pays"):
        share_of_gap(each, rest, replace(small.bound, value=small.bound.none))


def test_summary_counts_money_and_contacts(small):
    budget = small.market.budget
    for name, row in small.rows.items():
        records = small.records[name]
        spend = sum(r.expected_spend.sum().item() for r in records) / len(records)
        assert row["spend_ratio"] == pytest.approx(spend / budget.sum().item())
        assert all((r.expected_spend.sum(1) <= budget * (1 + 1e-9)).all() for r in records)
        over = [paid > limit for r in records for paid, limit in zip(r.realised_spend.sum(1).tolist(), budget.tolist())]
        assert row["weeks_breached"] == pytest.approx(sum(over) / len(over))
        sent = [a > 0 for r in records for a in r.action.flatten().tolist()]
        assert row["contact_rate"] == pytest.approx(sum(sent) / len(sent))
        assert row["prices"] == pytest.approx(
            [sum(p) / len(p) for p in zip(*(r.clearing_price.tolist() for r in records))]
        )
    assert small.rows["none"]["spend_ratio"] == small.rows["none"]["contact_rate"] == 0
    assert small.rows["planning"]["spend_ratio"] > 0.9


@pytest.mark.long
# ── the record ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_season_equals_scalar_customers(small):
    """Replay what was sent to a few customers: states, spend, payments, and A⁰ and ρ from recursions over 79 states."""
    market, bound, n = small.market, small.bound, 2
    people = references(market.customers[torch.arange(n)], market.world)
    v0, v = [r.no_contact_values() for r in people], [r.plan(bound.prices.tolist()) for r in people]
    starts = list(zip(*(x[:n].tolist() for x in market.initial_state)))
    for name in ("random", "planning"):
        record, u = small.records[name][0], small.u[0]
        for i, (r, s) in enumerate(zip(people, starts)):
            for t, x in enumerate(r.season):
                assert record.habit[t, i] == s[0]
                a = divmod(record.action[t, i].item(), CHANNELS)
                assert a in r.allowed(s)

                def near(field, expected):
                    assert getattr(record, field)[t, i].item() == pytest.approx(expected, abs=1e-8)

                near("incremental_profit", r.q(s, t, a, v0[i][t + 1], 0.0) - v0[i][t][s])
                near("lost_profit", v[i][t][s] - r.q(s, t, a, v[i][t + 1], bound.prices[t].item()))
                best = divmod(record.planned_action[t, i].item(), CHANNELS)
                assert r.q(s, t, best, v[i][t + 1], bound.prices[t].item()) == pytest.approx(v[i][t][s], abs=1e-8)
                near("expected_spend", r.spend(s, x, a))
                s, _, redeemed = r.draw(s, x, a, u[t, :, i].tolist())
                near("realised_spend", 0.0 if a == (0, 0) else r.values[a[0]] * redeemed + r.costs[a[1]])


def test_nothing_is_lost_by_the_plan_and_nothing_gained_by_silence(small):
    for records in small.records.values():
        for r in records:
            assert (r.lost_profit > -1e-9).all() and r.lost_profit[r.action == r.planned_action].abs().max() < 1e-9
            assert not r.incremental_profit[r.action == 0].any() and not r.realised_spend[r.action == 0].any()
    free = simulate_season(small.policy("myopic"), small.market, small.u[0])  # without a bound
    assert not free.lost_profit.any() and not free.planned_action.any()
    assert torch.equal(free.action, small.records["myopic"][0].action)


@pytest.mark.long
def test_the_same_policy_twice_leaves_the_same_record(small):
    for name in POLICIES:
        policy = small.policy(name)
        for u, before in zip(small.u[:2], small.records[name]):
            if name == "random":  # it has a stream of its own, that goes on from season to season
                continue
            again = simulate_season(policy, small.market, u, small.bound)
            assert all(torch.equal(getattr(again, f.name), getattr(before, f.name)) for f in fields(SeasonRecord))
    first, again = (simulate_season(small.policy("random"), small.market, small.u[0]) for _ in range(2))
    assert torch.equal(first.action, again.action) and torch.equal(first.action, small.records["random"][0].action)
    assert not torch.equal(small.records["random"][1].action, first.action)


# ── lost profit ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", POLICIES)
def test_lost_profit_adds_up_by_every_split(small, name):
    row, lost = small.rows[name], small.rows[name]["lost"]
    split = decompose_lost_profit(small.records[name], small.market, small.bound)
    assert lost == {**split, "chance": lost["chance"]}
    assert lost["chance"] == pytest.approx(row["score_by_loss"] - row["score"])
    total, unspent = 1 - row["score"] - lost["chance"], lost["cause"]["unspent budget"]
    assert sum(lost["cause"].values()) == pytest.approx(total)
    assert sum(lost["week_unspent"]) == pytest.approx(unspent)
    for split in ("segment", "channel"):
        assert sum(lost[split].values()) + unspent == pytest.approx(total)
    assert sum(lost["week"]) + unspent == pytest.approx(total)
    assert len(lost["week"]) == len(lost["week_unspent"]) == 12


def test_lost_profit_is_laid_to_its_cause(small):
    """Sum up with loops, case by case."""
    names = small.market.world.catalogue.channels
    for name in POLICIES:
        records = small.records[name][:3]
        cause = dict.fromkeys(("missed contact", "needless contact", "wrong channel", "wrong offer"), 0.0)
        segment, channel = dict.fromkeys(SEGMENTS, 0.0), dict.fromkeys(names, 0.0)
        scale = small.bound.gap * len(records)
        for r in records:
            for a, p, h, lost in zip(
                *(x.flatten().tolist() for x in (r.action, r.planned_action, r.habit, r.lost_profit))
            ):
                (o, k), (o_plan, k_plan) = divmod(a, CHANNELS), divmod(p, CHANNELS)
                if a != p:
                    cause[
                        "missed contact"
                        if o == 0
                        else "needless contact"
                        if o_plan == 0
                        else "wrong offer"
                        if k == k_plan
                        else "wrong channel"
                    ] += lost / scale
                    channel[names[k_plan if o_plan else k]] += lost / scale
                segment[list(SEGMENTS)[h // 2]] += lost / scale
        found = decompose_lost_profit(records, small.market, small.bound)
        del found["cause"]["unspent budget"]
        assert (found["cause"], found["segment"], found["channel"]) == (
            pytest.approx(cause),
            pytest.approx(segment),
            pytest.approx(channel),
        )


def test_of_silence_all_is_missed_contact(small):
    cause = small.rows["none"]["lost"]["cause"]
    spent = (small.bound.prices * small.market.budget).sum().item() / small.bound.gap
    assert cause["unspent budget"] == pytest.approx(spent)
    assert cause["missed contact"] == pytest.approx(1 - small.rows["none"]["lost"]["chance"] - spent)
    assert not any(cause[x] for x in ("needless contact", "wrong channel", "wrong offer"))


def test_money_beyond_the_budget_is_no_gain(small):
    """A policy that misjudges costs spends more than the budget: its unspent budget counts 0, not less."""
    records = [replace(r, expected_spend=3 * r.expected_spend) for r in small.records["planning"]]
    row = summarise_seasons(records, small.market, small.bound)
    lost = sum(r.lost_profit.sum() for r in records) / len(records)
    assert row["spend_ratio"] == pytest.approx(3 * small.rows["planning"]["spend_ratio"])
    assert row["lost"]["cause"]["unspent budget"] == 0 == sum(row["lost"]["week_unspent"])
    assert row["score_by_loss"] == pytest.approx(1 - lost.item() / small.bound.gap) and row["score"] <= 1


def test_paired_differences(small):
    records, rows = small.records, small.rows
    for name in POLICIES:
        assert paired_difference(records[name], records[name], small.market, small.bound) == [0, 0, 0]
    ahead, low, high = paired_difference(records["planning"], records["myopic"], small.market, small.bound)
    assert ahead == pytest.approx(rows["planning"]["score"] - rows["myopic"]["score"])
    behind = paired_difference(records["myopic"], records["planning"], small.market, small.bound)
    assert behind == pytest.approx([-ahead, -high, -low])
    assert 0 < low < ahead < high


# ── policies ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("week, uplift", [(0, False), (0, True), (9, True)])
def test_response_ranks_are_those_of_scalar_customers(small, week, uplift):
    c, world, n = small.market.customers, small.market.world, 20
    g = torch.Generator().manual_seed(week)
    state = CustomerState(*(torch.randint(k, (80,), generator=g) for k in (6, 4, 3, 2)))
    steps = ResponseRanking(c, world, uplift=uplift).increments(
        week, state, small.market.contact_policy(state.status == 0, [])
    )
    for i, r in enumerate(references(c[torch.arange(n)], world)):
        s, x = tuple(y[i].item() for y in state), world.season[week].item()
        score = steps.price[i, 0].item()
        if s[3] > 0:
            assert score == -torch.inf
            continue
        buy = {a: r.respond(s, x, a)[1] for a in r.pairs}
        best = max(r.pairs[1:], key=buy.get)
        assert divmod(steps.action[i, 0].item(), CHANNELS) == best
        assert steps.spend[i, 0].item() == pytest.approx(r.spend(s, x, best))
        gain = (r.margin + 0.5) * (buy[best] - buy[0, 0]) - r.spend(s, x, best)
        assert score == pytest.approx(gain if uplift else buy[best])


@pytest.mark.parametrize("name", POLICIES[1:])
def test_only_the_subscribed_are_contacted_and_only_as_can_be(small, name):
    n, g = 80, torch.Generator().manual_seed(0)
    state = CustomerState(*(torch.randint(k, (n,), generator=g) for k in (6, 4, 3, 3)))
    action, _ = clear(
        small.policy(name).increments(3, state, small.market.contact_policy(state.status == 0, [])),
        torch.tensor(torch.inf),
    )
    assert not action[state.status > 0].any()
    assert ((action == 0) | (action >= CHANNELS)).all() and (action[state.status == 0] > 0).any()


@pytest.mark.slow
def test_a_fee_is_charged_a_contact(small):
    def contacts(fee):
        policy = KnapsackPolicy(small.market.customers, small.market.world, ORACLE, values=None, fee=fee)
        return (simulate_season(policy, small.market, small.u[0]).action > 0).sum().item()

    assert contacts(0.0) > contacts(0.5) > contacts(3.0) > contacts(1e6) == 0


@pytest.mark.long
def test_a_learned_policy_that_knows_all_clears_as_the_myopic_knapsack(small):
    """The observation is enough to price every pair: customer, state, week, price and drift."""
    market, env = small.market, small.evaluation.env
    c, world, seen = market.customers, market.world, []
    low, high = env.price_range

    def logits(obs):
        parts, grid = obs.split((24, 6, 4, 3, 3, 12, 1, 1), -1), len(obs) // 80
        assert torch.equal(parts[0], market.features.float().repeat(grid, 1))
        (week,) = parts[5].argmax(-1).unique().tolist()
        price = torch.exp(
            parts[6][:, 0].double() * (torch.tensor(high / low).log() / 12**0.5) + torch.tensor(high * low).log() / 2
        )
        seen.append((price, parts[7]))
        state = CustomerState(*(x.argmax(-1) for x in parts[1:5]))
        crowd = c[torch.arange(80).repeat(grid)]
        nothing, contact = action_values(crowd, world, week, VisitedStates(state, price), price, None)
        none = nothing + torch.tensor([0, 1, 1, 1, 1])[:, None]  # what does not exist looks best
        return torch.cat((none, contact.flatten(0, 1))).T

    drift = -0.04
    policy = PriceGridPolicy(
        LogitsPolicy(logits), None, env.codec, c, world, market.features, prices=small.evaluation.prices, drift=drift
    )
    records = [simulate_season(policy, market, u, small.bound) for u in small.u[:8]]
    ours = summarise_seasons(records, market, small.bound)
    exact = summarise_seasons(small.records["myopic"][:8], market, small.bound)
    assert ours["score"] == pytest.approx(exact["score"], abs=0.03)
    assert ours["contact_rate"] == pytest.approx(exact["contact_rate"], rel=0.05)
    assert ours["prices"] == pytest.approx(exact["prices"], rel=0.1)
    price, told = map(torch.cat, zip(*seen))
    asked = small.evaluation.prices.double().repeat_interleave(80).repeat(8 * 12)  # in every week of every season
    torch.testing.assert_close(price, asked, rtol=1e-4, atol=0)
    torch.testing.assert_close(told, torch.full_like(told, (drift + 0.05) * 12**0.5 / 0.2))


def test_a_learned_spend_prices_value_and_cost_of_the_pair(small):
    market, env = small.market, small.evaluation.env
    redeem = torch.rand(80, 6, 5, generator=torch.Generator().manual_seed(0))

    def logits(obs):  # whatever the price: the dearest pair
        return torch.arange(30.0).expand(len(obs), -1)

    def increments(status, head=lambda context: redeem):
        policy = PriceGridPolicy(
            LogitsPolicy(logits),
            head,
            env.codec,
            market.customers,
            market.world,
            market.features,
            prices=small.evaluation.prices,
            drift=0.0,
        )
        state = market.initial_state._replace(status=torch.full((80,), status))
        options = market.contact_policy(state.status == 0, [])
        options = options._replace(memory=env.codec.start_memory(market.features))
        return policy.information, policy.increments(0, state, options)

    information, steps = increments(0)
    assert information.knows == "features, states" and (steps.action[:, 0] == 29).all()
    torch.testing.assert_close(steps.spend[:, 0].double(), 2.5 * redeem[:, 5, 4].double() + 0.07)
    information, oracle = increments(0, None)
    assert information.knows == "features, states, true spend"
    true = outcomes(market.customers, market.world, 0, market.initial_state).spend[:, 29]
    torch.testing.assert_close(oracle.spend[:, 0], true)
    for gone in (1, 2):
        assert (increments(gone)[1].price == -torch.inf).all()


# ── θ̂ ───────────────────────────────────────────────────────────────────────────────────────────────────────────────
def population(make_catalogue, r2):
    """Build the shipped population with features of a given r2."""
    return load("population/synthetic", make_catalogue(), r2=r2, reference_size=5000)


@pytest.mark.parametrize("r2, within", [(1.0, 1e-4), (0.9, 0.03), (0.6, 0.03), (0.3, 0.03)])
def test_the_estimator_explains_the_share_that_features_tell(make_catalogue, r2, within):
    people = population(make_catalogue, r2)
    fit, new = (people.draw(6000, torch.Generator().manual_seed(seed), "train") for seed in (0, 1))
    guess, truth = theta_to_matrix(ParameterRegression(fit, ridge=1e-4)(new.features)), theta_to_matrix(new.customers)
    explained = 1 - (guess - truth).square().mean(0) / truth.var(0)
    assert explained.mean().item() == pytest.approx(r2, abs=within)
    assert explained.min() > r2 - max(0.04, within)
    error = guess - truth
    assert (error.mean(0) / truth.std(0)).abs().max() < 0.06  # not to one side
    assert (guess >= theta_to_matrix(fit.customers).amin(0)).all() and (
        guess <= theta_to_matrix(fit.customers).amax(0)
    ).all()


def test_columns_round_trip(make_catalogue):
    c = population(make_catalogue, 1.0).draw(50, torch.Generator().manual_seed(0), "train").customers
    back = theta_from_matrix(theta_to_matrix(c))
    for f in fields(c):
        torch.testing.assert_close(getattr(back, f.name), getattr(c, f.name))


@pytest.mark.parametrize("r2", [1.0, 0.6, 0.3])
def test_features_tell_their_share_of_the_variance(make_catalogue, r2):
    people = population(make_catalogue, r2)
    sample = people.draw(20_000, torch.Generator().manual_seed(0), "train")
    theta = theta_to_matrix(sample.customers)
    x = torch.cat((torch.ones(20_000, 1, dtype=torch.float64), theta), 1)
    left = sample.features - x @ torch.linalg.lstsq(x, sample.features).solution
    assert (left.var(0).mean() / sample.features.var(0).mean()).item() == pytest.approx(1 - r2, abs=0.01)
    assert sample.features.var(0).mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("r2", [0.0, -0.1, 1.5])
def test_a_senseless_share_is_refused(make_catalogue, r2):
    with pytest.raises(Exception, match=r"env\.population\.r2: expected a share in \(0, 1\], got"):
        population(make_catalogue, r2)


@pytest.mark.long
def test_planning_on_what_features_reveal_is_planning(small):
    market, evaluation = small.market, small.evaluation
    guess = evaluation.on_estimates.certainty_equivalent_planner(market)
    assert guess.information.knows == "features, states, equations"
    score = summarise_seasons(
        [simulate_season(guess, market, u, small.bound) for u in small.u[:8]], market, small.bound
    )["score"]
    assert score > 0.97 * summarise_seasons(small.records["planning"][:8], market, small.bound)["score"]


# ── a whole evaluation ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def agent():
    """An untrained agent: random logits and random P(redeem)."""
    g = torch.Generator().manual_seed(0)
    actor, head = torch.randn(54, 30, generator=g), torch.randn(52, 30, generator=g)
    redeem = SimpleNamespace(predict=lambda obs: torch.sigmoid(obs[:, : len(head)] @ head).view(-1, 6, 5))
    return SimpleNamespace(
        policy=LogitsPolicy(lambda obs: obs @ actor), auxiliary=redeem, learned_from=("a simulator",)
    )


@pytest.fixture(scope="module")
def whole(agent):
    """An evaluation with an agent; `draws` are all its customers."""
    evaluation, draws = small_evaluation(frontier=[0.6]), []
    draw = evaluation.env.population.draw

    def spy(n, generator, split):
        sample = draw(n, generator, split)
        draws.append((split, sample.customers.margin))
        return sample

    evaluation.env.population.draw = spy
    evaluation.validate(agent)
    return SimpleNamespace(report=evaluation.evaluate(agent, "ppo"), draws=draws, evaluation=evaluation)


@pytest.mark.long
def test_nobody_in_the_test_was_trained_or_fitted_on(whole):
    test, train = (torch.cat([x for split, x in whole.draws if split == wanted]) for wanted in ("test", "train"))
    assert sorted({len(x) for split, x in whole.draws if split == "train"}) == [40, 50, 1000]
    assert {len(x) for split, x in whole.draws if split == "test"} == {60}
    assert test.unique().numel() == 60  # the frontier is that of the same customers
    for seed in range(3):
        env = load(
            "offers_full_information", torch.device("cpu"), seed, num_agents=2000, population={"reference_size": 1000}
        )
        for _ in range(2):
            env.reset()
            train = torch.cat((train, env.customers.margin.double()))
    assert not torch.isin(test.float(), train.float()).any()


def test_rows_stand_by_what_they_were_given_and_from_the_best_down(whole):
    rows = whole.report.rows
    given = {
        "oracles (true θ)": (
            "planning",
            "one-step lookahead",
            "propensity",
            "uplift rank",
            "myopic knapsack",
            "myopic + fee",
        ),
        "equations + features": (
            "propensity on θ̂",
            "uplift rank on θ̂",
            "myopic knapsack on θ̂",
            "myopic + fee on θ̂",
            "one-step lookahead on θ̂",
            "planning on θ̂",
            "planning on θ̂, calibrated",
        ),
        "features + simulator in training": ("ppo",),
        "nothing": ("none", "random"),
    }
    knows = {"nothing": "nothing", "oracles (true θ)": "true θ, states, equations", "ppo": "features, states"}
    for group, names in given.items():
        assert {name for name, row in rows.items() if row["group"] == group} == set(names)
        for name in names:
            expected = knows.get(name) or knows.get(group) or "features, states, equations"
            assert rows[name]["information"] == expected
    order = [list(given).index(row["group"]) for row in rows.values()]
    assert order == sorted(order)
    for group in given:
        scores = [row["score"] for row in rows.values() if row["group"] == group]
        assert scores == sorted(scores, reverse=True)
    assert rows["ppo"]["training"] == "a simulator" and "training" not in rows["planning"]
    assert rows["planning on θ̂"]["training"] == "true parameters of training customers"
    rivals = given["equations + features"]
    assert rows["ppo"]["best_rival"] == max(rivals, key=lambda name: rows[name]["score"])
    assert rows["planning"]["score"] > 0.9 and rows["none"]["score"] == 0
    low, high = whole.evaluation.env.drift_range
    assert low <= rows["ppo"]["drift"] <= high
    assert set(rows["ppo"]["ahead_of"]) == set(rows) - {"ppo"}
    for other, (ahead, *_) in rows["ppo"]["ahead_of"].items():
        assert ahead == pytest.approx(rows["ppo"]["score"] - rows[other]["score"])


@pytest.mark.long
def test_an_evaluation_is_the_same_again_and_leaves_the_environment_alone(agent):
    few = {"customers": 20, "tuning_customers": 20, "seasons": 1, "validation": 20, "regression_customers": 200}
    evaluation = small_evaluation(**few)
    before = evaluation.env.state_dict()["generator"].clone(), torch.get_rng_state()
    first, again = evaluation.evaluate(None, "").to_metrics(), small_evaluation(**few).evaluate(None, "").to_metrics()
    assert first == again and "ppo" not in first["policies"]
    assert evaluation.validate(agent) == evaluation.validate(agent)
    assert torch.equal(before[0], evaluation.env.state_dict()["generator"])
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.slow
def test_score_in_the_course_of_training(whole, agent):
    result = whole.evaluation.validate(agent)
    assert set(result) == {"validation/score", "validation/spend_ratio", "validation/contact_rate"}
    assert all(isinstance(x, float) for x in result.values()) and result["validation/score"] < 0.9


@pytest.mark.long
def test_the_fee_is_the_one_that_earns_most():
    evaluation = small_evaluation(fees=[50.0, 0.7, 0.0])
    market = EvaluationMarket.from_sample(
        evaluation.env.population.draw(100, torch.Generator().manual_seed(3), "train"),
        evaluation.world,
        evaluation.env.budget,
        evaluation.env.contact_rules,
    )

    def gain(fee):
        policy = KnapsackPolicy(market.customers, market.world, ORACLE, values=None, fee=fee)
        return sum(simulate_season(policy, market, u).incremental_profit.sum().item() for u in uniforms(market, 10))

    assert gain(0.7) > gain(0.0) + 10 and gain(50.0) < 1e-6 + gain(0.7)
    assert evaluation.tune_fee(market, partial(evaluation.myopic_policy, market)) == 0.7


def test_every_budget_of_the_frontier_has_its_own_bound(whole):
    (point,) = whole.report.frontier
    assert point["share"] == 0.6
    # of the shipped share, .3
    assert point["weekly_budget"] == pytest.approx(2 * whole.report.bound.budget[0].item())
    assert 2 * whole.report.bound.gap > point["bound"] > whole.report.bound.gap
    for name in ("ppo", "myopic knapsack"):
        assert point[name]["incremental_profit"] == pytest.approx(point[name]["score"] * point["bound"])


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_metrics_are_json_and_keep_their_keys(whole):
    metrics = json.loads(json.dumps(whole.report.to_metrics(), allow_nan=False))
    assert {"value", "none", "prices", "gap"} <= set(metrics["bound"]) and metrics["customers"] == 60
    assert metrics["bound"]["gap"] == pytest.approx(metrics["bound"]["value"] - metrics["bound"]["none"])
    for row in metrics["policies"].values():
        assert {"score", "score_ci", "incremental_profit", "spend_ratio", "weeks_breached", "contact_rate"} <= set(row)
    assert len(metrics["frontier"]) == 1
    for name, row in metrics["policies"].items():
        result = whole.report.result(name)
        assert (result.of, result.metric, result.value) == (name, "score", row["score"]) and result.higher_is_better
        assert result.metrics["incremental_profit"] == row["incremental_profit"]


def test_table_and_markdown_show_every_row(whole):
    console = Console(width=160, file=io.StringIO())
    console.print(whole.report.to_table())
    shown, lines = console.file.getvalue(), whole.report.to_markdown().splitlines()
    table, below = lines[: 3 + len(whole.report.rows)], lines[3 + len(whole.report.rows) :]
    assert len({line.count("|") for line in table}) == 1 and "upper bound" in table[2] and "upper bound" in shown
    for (name, row), line in zip(whole.report.rows.items(), table[3:]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:3] == [name, row["information"], f"{row['score']:.3f}"]
        assert name in shown and cells[2] in shown
    for group in {row["group"] for row in whole.report.rows.values()}:
        assert sum(line.strip() == group for line in shown.splitlines()) == 1
    rival = whole.report.rows["ppo"]["best_rival"]
    ahead, low, high = whole.report.rows["ppo"]["ahead_of"][rival]
    verdict = f"ppo less {rival}, the best of equal information: {ahead:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
    assert any(verdict in line for line in below) and verdict in shown
    assert ahead < 0 and f"{rival}, of equal information, scores above ppo" in shown


def test_who_is_first_among_equals_is_not_told_otherwise(whole):
    rows = {name: dict(row) for name, row in whole.report.rows.items()}
    rival = rows["ppo"]["best_rival"]
    rows["ppo"]["ahead_of"] = {rival: [0.02, 0.01, 0.03]}
    console = Console(width=160, file=io.StringIO())
    console.print(replace(whole.report, rows=rows).to_table())
    assert "not first" not in console.file.getvalue() and "+0.020, 95 % interval +0.010" in console.file.getvalue()
    console.print(replace(whole.report, rows=rows, agent=None).to_table())
    assert console.file.getvalue().count("equal information") == 1


@pytest.mark.parametrize(
    ("lead", "fee_lead", "said"),
    [
        ([0.02, 0.01, 0.03], 0.1, []),
        ([0.02, -0.01, 0.05], 0.2, ["the interval of ppo less planning on θ̂, of equal information, contains 0"]),
        ([-0.02, -0.05, 0.01], 0.2, ["planning on θ̂, of equal information, scores above ppo"]),
        ([0.02, 0.01, 0.03], 0.09, ["ppo is less than 0.1 above myopic + fee on θ̂: +0.090"]),
        (
            [0.0, -0.01, 0.01],
            -0.3,
            [
                "planning on θ̂, of equal information, scores above ppo",
                "ppo is less than 0.1 above myopic + fee on θ̂: -0.300",
            ],
        ),
    ],
)
def test_what_a_learned_policy_falls_short_of_is_said_above_the_table(whole, lead, fee_lead, said):
    rival = "planning on θ̂"
    ahead_of = {rival: lead, "myopic + fee on θ̂": [fee_lead, fee_lead - 0.05, fee_lead + 0.05]}
    rows = {**whole.report.rows, "ppo": {**whole.report.rows["ppo"], "best_rival": rival, "ahead_of": ahead_of}}
    title = replace(whole.report, rows=rows).to_table().title
    assert title.splitlines()[2:] == said


@pytest.mark.long
def test_figures_are_drawn(whole, tmp_path):
    figures = whole.report.to_figures("ppo", "score", {"score": [(1000, 0.1), (2000, 0.4)]})
    assert set(figures) == {"lost_profit", "prices", "training", "frontier"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=30)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    widths = {}
    for bar in figures["lost_profit"].axes[0].patches:
        widths[round(bar.get_y(), 6)] = widths.get(round(bar.get_y(), 6), 0.0) + bar.get_width()
    rows = [row for name, row in whole.report.rows.items() if name != "none"]
    assert [w for _, w in sorted(widths.items())] == pytest.approx(
        [sum(max(x, 0.0) for x in row["lost"]["cause"].values()) for row in rows]
    )
    assert set(replace(whole.report, frontier=[]).to_figures(None, "score", {})) == {"lost_profit"}


@pytest.mark.long
def test_a_paired_validation_says_how_far_ahead_of_planning_on_estimates_a_policy_is():
    """The rival is level with itself, customer by customer; never contacting anyone is behind by the rival's score."""
    evaluation = small_evaluation()
    validation = Validation(evaluation, 40, paired=True)
    rival = validation.simulate(evaluation.on_estimates.certainty_equivalent_planner(validation.market))
    level = validation.metrics_of(rival)
    assert level["validation/ahead_of_rival"] == level["validation/ahead_of_rival_half_width"] == 0.0
    nobody = validation.simulate(NoContact())
    behind = validation.metrics_of(nobody)
    bound = validation.bound
    scores = [summarise_seasons(records, validation.market, bound)["score"] for records in (nobody, rival)]
    assert behind["validation/ahead_of_rival"] == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert behind["validation/ahead_of_rival"] < -0.2 and behind["validation/ahead_of_rival_half_width"] > 0
    assert "validation/ahead_of_rival" not in Validation(evaluation, 40, paired=False).metrics_of(rival)
