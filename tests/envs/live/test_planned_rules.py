"""What the arms of plans brought in a log of sends: who left still counts, and who changed the arm does not."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

pytest.importorskip("pyarrow")  # extra `logs`
from envs.live.plan.arms import ARMS, BAU, HOLDOUT, RL, Arms
from envs.live.planned_rules import assigned_weeks, margin_before
from envs.offers.logs.customer_weeks import CustomerWeeks
from envs.offers.logs.send_log import Calendar
from envs.offers.populations.base import hash_uniform
from plan_files import HALF, write_plan
from rlcore.ope.logged_rules import compare_rules
from stand_in_package import CATALOGUE

CALENDAR = Calendar(False, 0, 100, 100, True, 1.5, 0.25)


def log(ids, weeks):
    """A log in which everybody is there and buys for 1 in every week."""
    made = CustomerWeeks.empty(tuple(ids), weeks)
    made.last[:] = weeks - 1
    made.bought[:], made.margin[:] = True, 1.0
    return made


def leave(made, customer, last):
    """Let a customer leave after a week."""
    made.last[customer] = last
    made.bought[last + 1 :, customer], made.margin[last + 1 :, customer] = False, 0.0


def weeks_of(found):
    """Each decision's customer and week → arm and profit."""
    data = found.decisions
    names = data.names_of_units(data.unit)
    rows = zip(names, data.step.tolist(), data.policy.tolist(), data.reward.tolist())
    return {(name, week): (ARMS[arm], reward) for name, week, arm, reward in rows}


def test_whom_an_arm_drives_away_brings_nothing_and_is_not_forgotten(tmp_path):
    """All bring 1.25 a week; half of the arm rl leaves after the first of 12 weeks, and later plans lack them."""
    ids = [f"K{k}" for k in range(200)]
    made = log(ids, 12)
    arm = HALF.of(ids, np.zeros(200, dtype=bool))
    gone = np.flatnonzero(arm == RL)[::2]
    for k in gone:
        leave(made, k, 0)
    for week in range(12):
        there = {name: int(arm[k]) for k, name in enumerate(ids) if made.is_present(week)[k]}
        write_plan(tmp_path, week, there)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    report = compare_rules(found.decisions, ["rl", "bau"], 0.95, found.before, found.notes)
    rows, assigned = report.rows, int((arm == RL).sum())
    stayed = assigned - len(gone)
    assert rows["rl"]["units"] == assigned and rows["rl"]["decisions"] == 12 * assigned
    assert rows["rl"]["profit"] == pytest.approx(1.25 * (assigned + 11 * stayed) / (12 * assigned), rel=1e-6)
    assert rows["bau"]["profit"] == pytest.approx(1.25)
    assert report.extra["verdicts"][0].startswith("rl was worse than bau by profit")
    assert f"rl: {len(gone)} of {assigned} customers left, and bring 0 from then on" in report.caption
    assert f"bau: 0 of {(arm == BAU).sum()} customers left" in report.caption


def test_who_had_left_before_the_first_week_with_both_arms_is_in_neither(tmp_path):
    """In week 1 all are in rl; K0 left before every plan, K1 before the test, K2 and K3 in it. The table keeps all."""
    made = log([f"K{k}" for k in range(8)], 5)
    for customer, last in ((0, 0), (1, 1), (2, 2), (3, 3)):
        leave(made, customer, last)
    write_plan(tmp_path, 1, dict.fromkeys(made.ids, RL))
    for week in (2, 3, 4):
        write_plan(tmp_path, week, {name: (RL, BAU)[k % 2] for k, name in enumerate(made.ids)})
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    assert "rl: 1 of 3 customers left, and bring 0 from then on" in found.notes
    assert "bau: 1 of 3 customers left, and bring 0 from then on" in found.notes
    rows = compare_rules(found.decisions, ["rl", "bau"], 0.95).rows
    assert [(rows[rule]["units"], rows[rule]["decisions"]) for rule in ("rl", "bau")] == [(3, 9), (3, 9)]
    assert rows["rl"]["profit"] == pytest.approx(1.25 * 7 / 9) and rows["bau"]["profit"] == pytest.approx(1.25 * 8 / 9)


def test_a_customer_counts_from_the_first_plan_on_and_money_is_profit_at_the_logs_price(tmp_path):
    made = log("xyz", 4)
    made.first[2] = 3
    made.offer[2, 0], made.channel[2, 0], made.redeemed[2, 0] = 2, 2, True  # five_off by letter, 5 + .9
    write_plan(tmp_path, 1, {"x": RL, "z": RL, "nobody": RL}, handed_over=True)
    write_plan(tmp_path, 2, {"x": RL, "y": HOLDOUT, "z": RL})
    write_plan(tmp_path, 3, {"x": RL, "y": HOLDOUT, "z": RL})
    write_plan(tmp_path, 9, {"x": RL})
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    expected = {("x", 1): 1.25, ("x", 2): 1.25 - 5.9, ("x", 3): 1.25, ("z", 3): 1.25}
    assert {key: money for key, (arm, money) in weeks_of(found).items() if arm == "rl"} == pytest.approx(expected)
    assert {key for key, (arm, _) in weeks_of(found).items() if arm != "rl"} == {("y", 2), ("y", 3)}
    assert found.decisions.net_reward.min().item() == pytest.approx(1.25 - 5.9 - 0.5 * 5.9)
    assert "1 customers of the plans are in no week of the log: left out" in found.notes


def test_who_left_counts_in_the_arm_that_a_later_plan_would_have_drawn_and_who_moved_is_left_out(tmp_path):
    """Every customer leaves or stays alike in both arms, and the share of bau falls: neither arm is better."""
    ids = [f"K{k}" for k in range(4000)]
    made = log(ids, 4)
    leavers = torch.rand(4000, generator=torch.Generator().manual_seed(0)).numpy() < 0.4
    for k in np.flatnonzero(leavers):
        leave(made, k, 0)
    nobody = np.zeros(4000, dtype=bool)
    fewer = Arms(3, 0.05, 0.01, 0.2)
    for week, shares in enumerate((HALF, HALF, fewer, fewer)):
        arm = shares.of(ids, nobody)
        write_plan(tmp_path, week, {ids[k]: int(arm[k]) for k in np.flatnonzero(made.is_present(week))}, shares)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    moved = int((HALF.of(ids, nobody) != fewer.of(ids, nobody)).sum())
    assert f"{moved:,} customers are of two arms in these plans: left out" in found.notes
    report = compare_rules(found.decisions, ["rl", "bau"], 0.95)
    for rule, k in (("rl", RL), ("bau", BAU)):
        always = (HALF.of(ids, nobody) == k) & (fewer.of(ids, nobody) == k)
        assert report.rows[rule]["units"] == always.sum()
        kept = 1 - leavers[always].mean()
        assert report.rows[rule]["profit"] == pytest.approx(1.25 * (1 + 3 * kept) / 4, rel=1e-6)


def test_a_share_that_changes_gives_new_customers_no_other_arms_than_old_ones(tmp_path):
    """bau grows from a tenth to a half; new customers, who bring half as much, come after the change."""
    ids = [f"K{k}" for k in range(6000)]
    made = log(ids, 4)
    is_new = np.arange(6000) >= 3000
    made.first[is_new] = 2
    made.bought[:, is_new], made.margin[:, is_new] = False, 0.5
    made.margin[:2, is_new] = 0.0
    tenth = Arms(3, 0.05, 0.01, 0.1)
    nobody = np.zeros(6000, dtype=bool)
    for week, shares in enumerate((tenth, tenth, HALF, HALF)):
        arm = shares.of(ids, nobody)
        there = np.flatnonzero(made.is_present(week))
        write_plan(tmp_path, week, {ids[k]: int(arm[k]) for k in there}, shares)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    share_of_new = [
        is_new[np.unique(found.decisions.unit[found.decisions.policy == k].numpy())].mean() for k in (RL, BAU)
    ]
    assert share_of_new[0] == pytest.approx(share_of_new[1], abs=0.06)  # without the rule: .36 and .83
    (low, high) = compare_rules(found.decisions, ["rl", "bau"], 0.95).rows["rl less bau"]["profit_ci"]
    assert low < 0 < high


OTHER_LOTS = Arms(99, 0.05, 0.01, 0.5)  # stand for those of a program that draws arms otherwise


def test_who_left_keeps_the_arm_where_plans_follow_other_lots_than_their_shares(tmp_path):
    ids = [f"K{k}" for k in range(400)]
    made = log(ids, 4)
    arm = OTHER_LOTS.of(ids, np.zeros(400, dtype=bool))
    leavers = np.arange(400) % 3 == 0
    for k in np.flatnonzero(leavers):
        leave(made, k, 0)
    for week in range(4):
        write_plan(tmp_path, week, {ids[k]: int(arm[k]) for k in np.flatnonzero(made.is_present(week))})
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    assert not any("of two arms" in note for note in found.notes)
    rows = compare_rules(found.decisions, ["rl", "bau"], 0.95).rows
    for rule, k in (("rl", RL), ("bau", BAU)):
        assert rows[rule]["units"] == (arm == k).sum()
        assert rows[rule]["profit"] == pytest.approx(1.25 * (1 + 3 * (1 - leavers[arm == k].mean())) / 4)


def test_customers_who_came_after_all_lots_were_drawn_anew_are_left_out(tmp_path):
    """New customers, who bring half as much, would be an eighth of bau, and old ones who kept the arm a fiftieth."""
    ids = [f"K{k}" for k in range(3000)]
    made = log(ids, 4)
    is_new = np.arange(3000) >= 1500
    made.first[is_new], made.margin[:, is_new] = 2, 0.5
    made.bought[:2, is_new], made.margin[:2, is_new] = False, 0.0
    nobody = np.zeros(3000, dtype=bool)
    eighth = Arms(3, 0.05, 0.01, 0.125)
    other, own = (shares.of(ids, nobody) for shares in (Arms(99, 0.05, 0.01, 0.125), eighth))
    for week, arm in enumerate((other, other, own, own)):
        write_plan(tmp_path, week, {ids[k]: int(arm[k]) for k in np.flatnonzero(made.is_present(week))}, eighth)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    counted = np.zeros(3000, dtype=bool)
    counted[found.decisions.unit.numpy()] = True
    assert (counted == (~is_new & (other == own))).all()
    row = compare_rules(found.decisions, ["rl", "bau"], 0.95).rows["rl less bau"]
    assert row["profit"] == pytest.approx(0, abs=1e-12)


def sizes_of(found):
    """The p-value of the arms' sizes, and what the line says of them."""
    (line,) = [note for note in found.notes if note.startswith("customers: ")]
    said, p = line.split(" (p = ")
    return said, float(p[:-1])


def test_an_arm_that_lost_customers_is_told_by_its_size(tmp_path):
    """Everybody brings the same, so nothing else tells that an import lost customers of one arm."""
    ids = [f"K{k}" for k in range(3000)]
    arm = HALF.of(ids, np.zeros(3000, dtype=bool))
    lost = set(np.flatnonzero(arm == RL)[::8].tolist())
    for week in (1, 2):
        write_plan(tmp_path, week, dict(zip(ids, arm.tolist())))
    whole = assigned_weeks(log(ids, 4), CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    n = [int((arm == k).sum()) for k in (RL, BAU)]
    expected = f"{sum(n) / 2:,.1f}"
    said, p = sizes_of(whole)
    assert said == f"customers: rl {n[0]:,} and bau {n[1]:,}; by the shares of the plans {expected} and {expected}"
    statistic = (n[0] - n[1]) ** 2 / sum(n)
    assert p == pytest.approx(chi2.sf(statistic, 1), rel=0.05) and p > 0.05
    known = [name for k, name in enumerate(ids) if k not in lost]
    assert sizes_of(assigned_weeks(log(known, 4), CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path))[1] < 0.02


@pytest.mark.parametrize("rules", [["rl", "bau"], ["rl", "holdout"], ["random", "bau"]])
def test_shares_that_changed_give_the_sizes_of_those_who_did_not_move(tmp_path, rules):
    ids = [f"K{k}" for k in range(5000)]
    for week, shares in ((1, Arms(3, 0.2, 0.1, 0.3)), (2, Arms(3, 0.1, 0.3, 0.6))):
        arm = shares.of(ids, np.zeros(5000, dtype=bool))
        write_plan(tmp_path, week, dict(zip(ids, arm.tolist())), shares)
    said, p = sizes_of(assigned_weeks(log(ids, 4), CALENDAR, CATALOGUE, rules, tmp_path))
    share = {"holdout": 0.1, "random": 0.8 * 0.1, "bau": 0.8 * 0.7 * 0.3, "rl": 0.8 * 0.7 * 0.4}
    ratio = share[rules[0]] / (share[rules[0]] + share[rules[1]])
    n = [int(x.replace(",", "")) for x in re.findall(r"(?:rl|bau|holdout|random) ([\d,]+)", said)]
    assert said.endswith(f"{sum(n) * ratio:,.1f} and {sum(n) * (1 - ratio):,.1f}") and p > 0.01
    write_plan(tmp_path, 3, dict(zip(ids, arm.tolist())), Arms(4, 0.1, 0.3, 0.6))
    notes = assigned_weeks(log(ids, 4), CALENDAR, CATALOGUE, rules, tmp_path).notes
    assert not [note for note in notes if note.startswith("customers: ")]  # the lots were drawn anew


def test_a_package_that_holds_out_by_other_lots_has_a_holdout_of_no_known_size(tmp_path):
    """The contact rules hold out a twentieth by their own lots, beside the twentieth of the plan's."""
    ids = [f"K{k}" for k in range(4000)]
    shares = Arms(3, 0.05, 0.01, 0.5)
    arm = shares.of(ids, hash_uniform(ids, 7).numpy() < 0.05)
    for week in (1, 2):
        write_plan(tmp_path, week, dict(zip(ids, arm.tolist())), shares)
    for rule in ("rl", "random"):
        notes = assigned_weeks(log(ids, 4), CALENDAR, CATALOGUE, [rule, "holdout"], tmp_path).notes
        assert not [note for note in notes if note.startswith("customers: ")]
    assert sizes_of(assigned_weeks(log(ids, 4), CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path))[1] > 0.01


def test_purchases_that_are_known_of_sends_alone_compare_no_arms(tmp_path):
    made = log("wxyz", 4)
    made.bought[:] = False
    write_plan(tmp_path, 2, {"w": RL, "x": RL, "y": BAU, "z": BAU})
    with pytest.raises(ValueError, match="purchases of sends alone"):
        assigned_weeks(made, replace(CALENDAR, knows_silence=False), CATALOGUE, ["rl", "bau"], tmp_path)


def test_a_plan_that_was_not_handed_over_counts_nowhere(tmp_path):
    made = log("xy", 12)
    write_plan(tmp_path, 9, {"x": RL, "y": BAU})
    write_plan(tmp_path, 10, {"x": RL, "y": BAU}, handed_over=False)
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    assert set(weeks_of(found)) == {("x", 9), ("y", 9)}


def test_plans_of_another_log_are_refused(tmp_path):
    def refused(message, rules=("rl", "bau")):
        with pytest.raises(ValueError, match=message):
            assigned_weeks(log("xyz", 4), CALENDAR, CATALOGUE, list(rules), tmp_path)

    refused("plans: expected a folder of plans")
    write_plan(tmp_path, 9, {"x": RL})
    refused("expected plans of weeks and customers that are in the log, got none")
    refused("rules: expected two of holdout, random, bau, rl, got 'ours'", rules=("rl", "ours"))


def test_what_a_customer_brought_before_its_first_week_with_both_arms(tmp_path):
    """In week 1 all are in rl: what they brought in it was before the test, as in `test_size`."""
    made = log("vwxyz", 6)
    made.margin[:] = np.arange(6)[:, None] + 10 * np.arange(5)
    made.first[3] = 3  # came with the test
    made.first[4] = 2
    made.margin[:3, 3], made.margin[:2, 4] = 0.0, 0.0
    write_plan(tmp_path, 1, dict.fromkeys("vwxyz", RL))
    write_plan(tmp_path, 3, {"v": BAU, "w": RL, "y": BAU, "z": RL})
    write_plan(tmp_path, 4, {"v": BAU, "w": RL, "x": RL, "y": BAU, "z": RL})
    found = assigned_weeks(made, CALENDAR, CATALOGUE, ["rl", "bau"], tmp_path)
    names = found.decisions.names_of_units(found.decisions.unit)
    before = dict(zip(names, found.before.tolist()))
    assert before["w"] == 11.0 and before["z"] == 42.0  # weeks 0–2, 2
    assert np.isnan(before["y"])
    of_all = margin_before(made, np.where(np.arange(6)[:, None] < 3, -1, np.zeros((6, 5), dtype=np.int8)))
    assert before["w"] == of_all[1] and before["z"] == of_all[4]
