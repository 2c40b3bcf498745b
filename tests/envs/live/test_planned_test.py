"""What a test of two arms would find, by a log from before: by hand, and by the comparison that ends such a test."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")  # extra `logs`
from envs.live.plan.arms import BAU, HOLDOUT, RL, Arms, expected_shares
from envs.live.planned_rules import assigned_weeks, decisions_of, margin_before
from envs.live.planned_test import planned_test
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from plan_files import write_plan
from rlcore.ope.detectable import found_with
from rlcore.ope.logged_rules import compare_rules
from stand_in_package import CATALOGUE

CALENDAR = Calendar(False, 0, 100, 100, True, 1.0, 0.25)
HALVES = expected_shares(holdout=0.0, random=0.0, bau=0.5)


def log(customers, weeks):
    """A log in which everybody is there."""
    made = CustomerWeeks.empty(tuple(f"K{k}" for k in range(customers)), weeks)
    made.last[:] = weeks - 1
    return made


def table(made, calendar=CALENDAR, **changes):
    settings = {"rules": ["rl", "bau"], "shares": HALVES, "weeks": [2], "level": 0.95, "power": 0.8}
    return planned_test(made, calendar, CATALOGUE, **{**settings, **changes})


def test_a_row_is_right_by_hand():
    """One of five customers leaves after the first of the two weeks, one came with it, and one comes too late."""
    made = log(6, 4)
    made.margin[:, :5] = [[2, 1, 4, 0, 0], [4, 1, 0, 2, 0], [2, 3, 9, 0, 8], [4, 0, 7, 4, 0]]
    made.bought[:] = made.margin != 0
    made.first[4], made.first[5], made.last[4] = 2, 3, 2
    made.offer[3, 2], made.channel[3, 2], made.redeemed[3, 2] = 2, 2, True  # five_off by letter, 5 + .9
    found = table(made, weeks=[2, 3])
    (row,) = found.rows.values()
    profit = [(6 + 0.5) / 2, (3 + 0.25) / 2, (16 + 0.5 - 5.9) / 2, (4 + 0.25) / 2, (8 + 0.25) / 2]
    before = [3, 1, 2, 1, 7 / 4]  # the fifth's past is unknown
    deviation, rho = statistics.stdev(profit), statistics.correlation(profit, before)
    plain = (1.959963985 + 0.841621234) * deviation * math.sqrt(2 / (5 / 2))  # five are in the log's last week
    assert row == pytest.approx(
        {
            "customers": 5,
            "mean": statistics.mean(profit),
            "deviation": deviation,
            "correlation": rho,
            "plain": plain,
            "adjusted": plain * math.sqrt(1 - rho**2),
        },
        rel=1e-6,
    )
    assert "left out, without as many weeks before: 3 weeks" in found.caption
    assert "rl would have fewer than 30 customers" in found.caption
    cells = [show(row) for show in found.columns.values()]
    assert cells[0] == "5" and cells[-2] == f"{plain:.3g} ({plain / row['mean']:.1%})"


def lives(customers, weeks, seed):
    """Lives of customers who differ for good, and who buy by chance: their margins are skewed."""
    generator = np.random.default_rng(seed)
    made = log(customers, weeks)
    rate = generator.beta(1.5, 3, customers)
    made.bought[:] = generator.random((weeks, customers)) < rate
    made.margin[:] = np.where(made.bought, generator.lognormal(1, 0.6, (weeks, customers)), 0)
    return made


def test_the_comparison_of_the_last_weeks_plans_has_the_numbers_that_were_said(tmp_path):
    """Customers left before the test and in it, and the customer table, so every plan, has them all to the end.

    Before the test the policy ran alone: what customers brought then was before the test, too.
    """
    weeks, customers = 6, 4000
    made = lives(customers, 26, seed=0)
    made.last[: customers // 2] = np.random.default_rng(1).integers(0, 26, customers // 2)
    gone = np.arange(26)[:, None] > made.last
    made.bought[gone], made.margin[gone] = False, 0.0
    said = table(made, weeks=[weeks])
    shares = Arms(3, 0.0, 0.0, 0.5)
    arm = shares.of(made.ids, np.zeros(customers, dtype=bool))
    for week in (0, 9):
        write_plan(tmp_path, week, dict.fromkeys(made.ids, RL), Arms(3, 0.0, 0.0, 0.0))
    for week in range(26 - weeks, 26):
        write_plan(tmp_path, week, dict(zip(made.ids, arm.tolist())), shares)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    rows = compare_rules(found.decisions, ["rl", "bau"], 0.95, found.before, found.notes).rows
    units, row = [rows[rule]["units"] for rule in ("rl", "bau")], said.rows["6"]
    assert row["customers"] == sum(units) == made.is_present(26 - weeks).sum() < customers
    mean = sum(n * rows[rule]["profit"] for n, rule in zip(units, ("rl", "bau"))) / sum(units)
    assert row["mean"] == pytest.approx(mean, rel=1e-9)
    more = math.sqrt(sum(1 / n for n in said.extra["customers"].values()) / sum(1 / n for n in units))
    for key, name in (("plain", "rl less bau"), ("adjusted", "rl less bau, adjusted")):
        low, high = rows[name]["profit_ci"]
        assert row[key] == pytest.approx(more * found_with((high - low) / 2 / 1.959963985, 0.95, 0.8), rel=0.02)


@pytest.mark.long
def test_a_comparison_of_arms_finds_what_was_said_as_often_as_was_said():
    """Tests of six weeks, each on new lives of the same kind; an effect is added to the ends of an interval."""
    weeks, customers, tests = 6, 300, 250
    shares = expected_shares(holdout=0.1, random=0.0, bau=0.3)
    said = table(lives(customers=4000, weeks=26, seed=0), shares=shares, weeks=[weeks]).rows["6"]
    found = {"plain": 0, "adjusted": 0}
    for seed in range(1, tests + 1):
        made = lives(customers, 26, seed)
        arm = np.full(made.offer.shape, -1, dtype=np.int8)
        arm[-weeks:] = np.random.default_rng(seed).choice([RL, BAU, HOLDOUT], customers, p=[0.63, 0.27, 0.1])
        decisions = decisions_of(made, CALENDAR, CATALOGUE, arm)
        rows = compare_rules(decisions, ["rl", "bau"], 0.95, margin_before(made, arm)[decisions.unit]).rows
        for key, name in (("plain", "rl less bau"), ("adjusted", "rl less bau, adjusted")):
            effect = said[key] * math.sqrt(4000 / customers)
            found[key] += rows[name]["profit_ci"][0] + effect > 0
    assert found["plain"] / tests == pytest.approx(0.8, abs=0.05)
    assert found["adjusted"] / tests == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": ["rl", "ours"]}, "rules: expected two of holdout, random, bau, rl, got rl, ours"),
        ({"rules": ["rl", "rl"]}, "rules: expected two of"),
        ({"rules": []}, "rules: expected two of .*, got none"),
        (
            {"shares": expected_shares(holdout=0.0, random=0.0, bau=0.0)},
            "arms: .* rl and bau two customers or more each, got 50.0 and 0.0 of the 50 in the log's last week",
        ),
        ({"weeks": [4, 6]}, "weeks: expected .* as many before it .*, got 4, 6 in a log of 6 weeks"),
        ({"weeks": []}, "weeks: expected .*, got none in a log of 6 weeks"),
    ],
)
def test_what_tells_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(lives(50, 6, 0), **changes)


def test_logs_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match="purchases of sends alone"):
        table(log(50, 6), Calendar(False, 0, 100, 100, False, 1.0, 0.25))
    with pytest.raises(ValueError, match="customers of unequal profit, got the same of all in its last 2 weeks"):
        table(log(50, 6))
    late = lives(50, 6, 0)
    late.first[1:] = 5
    with pytest.raises(ValueError, match="and two customers at its start, got 2"):
        table(late)


def test_a_loss_has_no_share():
    made = lives(50, 6, 0)
    made.margin[:] -= 5
    assert table(made).columns["found"](table(made).rows["2"]).count("%") == 0


def test_the_spread_is_in_float64():
    made = lives(50, 4, 0)
    made.margin[:] *= 1e9
    by_hand = torch.from_numpy(made.margin[-2:].mean(0) + 0.25 * made.bought[-2:].mean(0))
    assert table(made).rows["2"]["deviation"] == pytest.approx(by_hand.std().item(), rel=1e-12)
