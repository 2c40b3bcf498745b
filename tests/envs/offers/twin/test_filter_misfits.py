"""Filtered predictions beside what happened: calibrated where the equations hold, and named where they do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from configs import load
from envs.offers.twin.checks.filter_misfits import (
    Decisions,
    Segments,
    deciles,
    groups,
    misfits,
    predict_season,
)
from envs.offers.twin.checks.residual_tests import Comparison, Groups, residuals, significant_groups
from envs.offers.twin.predictions import OutcomePrediction
from envs.offers.world.belief_observation import start_marginals
from hidden_markov import simulate


@pytest.fixture(scope="module")
def shop():
    """6,000 customers, their world, and the marginals of their start."""
    env = load("offers_full_information", torch.device("cpu"), 0, num_agents=10, population={"reference_size": 1000})
    sample = env.population.draw(6000, torch.Generator().manual_seed(1), "train")
    return env.world, env.world.inhabit(sample.customers), sample.state, start_marginals(sample.state)


@pytest.mark.slow
def test_nothing_is_wrong_with_a_log_of_the_equations(shop):
    world, customers, state, start = shop
    seen, _ = simulate(world, customers, state, torch.Generator().manual_seed(2), 12)
    predicted = predict_season(customers, world, start, seen)
    assert misfits(predicted, Decisions.of_season(seen), world.catalogue, 0.01) == []
    for outcome in predicted.values():
        tenths = deciles(outcome, slice(6, None))
        assert len(tenths) == 10 and all(abs(x.z) < 4 for x in tenths)
        assert tenths[0].predicted < tenths[-1].predicted and tenths[0].observed < tenths[-1].observed


@pytest.mark.slow
def test_what_the_equations_cannot_explain_is_named(shop):
    """In the log messages through SMS are seen by more than the equations say: its pairs stand out, and only they."""
    world, customers, state, start = shop
    channel = world.catalogue.channels.index("sms")
    omega = customers.omega.clone()
    omega[channel] += 1.5
    log_of = replace(customers, omega=omega)
    seen, _ = simulate(world, log_of, state, torch.Generator().manual_seed(2), 12)
    predicted = predict_season(customers, world, start, seen)
    named = misfits(predicted, Decisions.of_season(seen), world.catalogue, 0.01)
    assert len(named) == 5 and all("by sms" in text or "redeemed" in text for text in named)
    assert any("by sms (z = +" in text for text in named)


def test_residuals_and_deciles_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(3, 40, generator=generator, dtype=torch.float64)
    happened, possible = (torch.rand(3, 40, generator=generator) < share for share in (0.5, 0.8))
    group = torch.randint(4, (3, 40), generator=generator)
    outcomes = OutcomePrediction(probability, happened, possible)
    excess, variance, rows = [0.0] * 5, [0.0] * 5, []
    for t in range(3):
        for i in range(40):
            if possible[t, i]:
                p = probability[t, i].item()
                excess[group[t, i]] += happened[t, i].item() - p
                variance[group[t, i]] += p * (1 - p)
                if t:
                    rows.append((p, happened[t, i].item()))
    wanted = [x / v**0.5 if v else 0.0 for x, v in zip(excess, variance)]
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(residuals(outcomes, group, 5)[0], wanted)
    without = torch.where(group == 2, -1, group)
    torch.testing.assert_close(residuals(outcomes, without, 5)[0], wanted * (torch.arange(5) != 2))
    lowest = sorted(rows)[: -(-len(rows) // 10)]
    found = deciles(outcomes, slice(1, None))[0]
    assert found.predicted == pytest.approx(sum(p for p, _ in lowest) / len(lowest))
    assert found.observed == pytest.approx(sum(y for _, y in lowest) / len(lowest))


def test_a_feature_of_any_name_leaves_the_other_groups_as_they_are(shop):
    world, customers, state, _ = shop
    seen, _ = simulate(world, customers[torch.arange(60)], type(state)(*(x[:60] for x in state)), torch.Generator(), 3)
    decisions, names = Decisions.of_season(seen), ["pair", "week", "contacts", "purchases", "redemptions"]
    features = torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    judging = torch.arange(60) % 3 == 0
    segments = Segments(features, names, judging, features[:3], names[:3])
    alone, both = (groups(decisions, world.catalogue, x) for x in (None, segments))
    assert len(both) == len(alone) + 5 + 3
    for name in names:
        thirds = both[f"thirds of {name}"].of
        assert (thirds[:, judging] >= 0).all() and (thirds[:, ~judging] == -1).all()
    for kind, (group, labels) in alone.items():
        assert torch.equal(both[kind].of, group) and both[kind].names == labels


@pytest.mark.slow
def test_customers_in_whom_two_parameters_are_on_the_same_side_are_named(shop):
    """They ignore discounts, and others do not."""
    world, customers, state, start = shop
    high = [x > x.median() for x in (customers.alpha, customers.beta)]
    beta = torch.where(high[0] == high[1], 0.0, customers.beta)
    seen, _ = simulate(world, replace(customers, beta=beta), state, torch.Generator().manual_seed(2), 12)
    predicted, decisions = predict_season(customers, world, start, seen), Decisions.of_season(seen)
    theta = torch.stack((customers.alpha, customers.phi, customers.beta))
    segments = Segments(theta[:0], [], torch.ones(6000, dtype=torch.bool), theta, ["alpha", "phi", "beta"])
    named = misfits(predicted, decisions, world.catalogue, 0.001, segments)
    assert "alpha and beta on the same side of their medians, contacted (z = -" in named[0]
    group, labels = groups(decisions, world.catalogue, segments)["sides of alpha and beta"]
    sent = seen[3].offer > 0
    assert torch.equal(
        group[3] == labels.index("alpha and beta on opposite sides of their medians, contacted"),
        sent & (high[0] != high[1]),
    )
    as_they_seem, _ = simulate(world, customers, state, torch.Generator().manual_seed(2), 12)
    predicted = predict_season(customers, world, start, as_they_seem)
    assert misfits(predicted, Decisions.of_season(as_they_seem), world.catalogue, 0.001, segments) == []


def test_groups_with_little_variance_are_not_tested():
    """Ten decisions of probability 10⁻⁴, one of which happened, are 32 standard errors off, and no evidence."""
    few, many = torch.zeros(1, 10, dtype=torch.long), torch.ones(1, 200, dtype=torch.long)
    group = torch.cat((few, many), 1)
    probability = torch.where(group == 0, 1e-4, 0.5)
    happened = torch.zeros_like(group, dtype=torch.bool)
    happened[0, 0] = happened[0, 10:110] = True
    outcomes = {"trips": OutcomePrediction(probability, happened, torch.ones_like(happened))}
    grouped = {"pair": Groups(group, ["few", "many"])}
    assert residuals(outcomes["trips"], group, 2)[0][0] > 30
    assert significant_groups(outcomes, grouped, torch.zeros_like(group), 0.05) == []
    outcomes["trips"].happened[0, 10:170] = True
    (text,) = significant_groups(outcomes, grouped, torch.zeros_like(group), 0.05)
    assert text.startswith("trips, many (z = +8.5")


def test_a_misfit_that_is_spread_over_many_groups_is_named():
    """Forty groups are each 3 standard errors off: none is significant alone, all together are; one of them is not."""
    group = torch.arange(40)[:, None].expand(40, 400)
    happened = torch.arange(400).expand(40, 400) < 230
    outcomes = {"trips": OutcomePrediction(torch.full((40, 400), 0.5), happened, torch.ones(40, 400).bool())}
    names = [f"group {k}" for k in range(40)]
    (text,) = significant_groups(outcomes, {"some": Groups(group, names)}, group, 0.001)
    assert text.startswith("trips, group ") and "(z = +3.0, p = " in text and "over its kind" in text
    few = {"some": Groups(torch.where(group < 1, group, -1), names)}
    assert significant_groups(outcomes, few, group, 0.001) == []
    two = Comparison("trips", few["some"], [0, 1], torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert two.p_value == pytest.approx(math.exp(-2.5))  # the tail of χ² with 2 degrees of freedom


def test_groups_know_only_what_came_before(shop):
    world, customers, state, _ = shop
    seen, _ = simulate(world, customers[torch.arange(50)], type(state)(*(x[:50] for x in state)), torch.Generator(), 6)
    found = groups(Decisions.of_season(seen), world.catalogue)
    other = seen[-1]._replace(bought=~seen[-1].bought, redeemed=~seen[-1].redeemed)
    changed = groups(Decisions.of_season([*seen[:-1], other]), world.catalogue)
    for kind, (group, names) in found.items():
        assert torch.equal(group, changed[kind][0]) and group.amax() < len(names)
    purchases, contacts = found["purchases"][0], found["contacts"][0]
    for i in range(50):
        for t in range(6):
            assert purchases[t, i] == sum(int(seen[k].bought[i]) for k in range(t))
            assert contacts[t, i] == sum(int(seen[k].offer[i] > 0) for k in range(max(t - 3, 0), t))
