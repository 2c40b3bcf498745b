"""The propensities of plans in a log of what was really sent."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.live.planned_weeks import planned_weeks
from envs.offers.logs.customer_weeks import ARMS, CustomerWeeks, Rows
from envs.offers.logs.planned_weeks import PlannedWeek, put_planned, put_unplanned
from rlcore.offline.logged_dataset import LoggedDataset

IDS = ("sent", "nothing", "bounced", "other offer", "other channel", "unplanned", "not in the plan", "gone")
PLAN = PlannedWeek(
    source="week=1.parquet",
    week=1,
    customers=["unknown", *IDS[:6], "gone"],
    offer=np.array([1, 2, 0, 1, 2, 2, 0, 0]),
    channel=np.array([0, 1, 0, 0, 1, 1, 0, 0]),
    propensity=np.arange(1, 9) / 10,
    arm=np.array([ARMS.index("rl")] * 7 + [ARMS.index("random")]),
)
NO_ROWS = Rows.of_purchases(*(np.empty(0, dtype) for dtype in (np.int64, np.int64, float)))


def log():
    made = CustomerWeeks.empty(IDS, 3)
    made.last[:] = 2
    made.last[-1] = 0  # who is gone in week 1
    made.propensity[:] = 0.95
    made.offer[1] = [2, 0, 0, 1, 2, 1, 0, 0]
    made.channel[1] = [1, 0, 0, 1, 0, 0, 0, 0]
    return made


def test_a_decision_has_the_plans_propensity_only_where_the_plan_decided_it():
    made = log()
    said = put_planned(made, PLAN)
    nan = np.nan
    np.testing.assert_array_equal(made.propensity[1], [0.2, 0.3, nan, nan, nan, nan, nan, nan])
    assert (made.propensity[[0, 2]] == 0.95).all()
    assert said == (
        "week 1: 1 of 5 planned sends were made, 4 were not; 3 sends were not planned; "
        "5 decisions are not the plan's and have no propensity, nor have 0 of the arms holdout and bau, which draw no "
        "lot"
    )
    assert [ARMS[k] if k >= 0 else None for k in made.arm[1]] == [*["rl"] * 6, None, None]
    assert (made.arm[[0, 2]] == -1).all()


def test_decisions_of_an_arm_that_draws_nothing_have_no_propensity():
    made = log()
    arm = np.array([ARMS.index(name) for name in ("rl", "bau", "holdout", "rl", "rl", "rl", "rl", "rl")])
    said = put_planned(made, replace(PLAN, arm=arm, propensity=np.full(8, 0.25)))
    np.testing.assert_array_equal(made.propensity[1], [np.nan] * 8)
    assert [ARMS[k] for k in made.arm[1, :2]] == ["bau", "holdout"]
    assert said.endswith("nor have 2 of the arms holdout and bau, which draw no lot")


def test_a_policy_is_valued_on_planned_weeks_by_the_arms_that_draw():
    """Half of 6,000 customers are in the arm bau, which sends nothing. Always to send is worth 12."""
    n = 6000
    generator = torch.Generator().manual_seed(0)
    is_bau = torch.rand(n, generator=generator) < 0.5
    action = torch.where(is_bau, 0, torch.randint(2, (n,), generator=generator))
    ids = [str(k) for k in range(n)]
    made = CustomerWeeks.empty(tuple(ids), 1)
    made.last[:] = 0
    made.offer[0] = action
    arm = torch.where(is_bau, ARMS.index("bau"), ARMS.index("rl"))
    given_arm = torch.where(is_bau, 1.0, 0.5)
    put_planned(made, PlannedWeek("p", 0, ids, action.numpy(), np.zeros(n, int), given_arm.numpy(), arm.numpy()))
    feedback = {
        "n_rounds": n,
        "n_actions": 2,
        "context": torch.randn(n, 1, generator=generator).numpy(),
        "action": action.numpy(),
        "reward": (10 + 2.0 * action + torch.randn(n, generator=generator)).numpy(),
        "pscore": made.propensity[0],
    }
    log = LoggedDataset.from_obp(feedback)
    log = replace(log, policies=ARMS, policy=torch.from_numpy(made.arm[0]).long())
    config = composed("ope/model=linear", "ope.replications=2", name="evaluate").ope
    found = instantiate(config, _convert_="all")(log, torch.tensor([[0.0, 1.0]]).expand(n, 2))
    for estimator in ("IPS", "SNIPS", "DR"):
        assert found.rows[estimator]["net"] == pytest.approx(12, abs=0.25)
    assert found.diagnostics["decisions"] == int((~is_bau).sum())
    assert not [x for x in found.warnings if "mean weight" in x]


def test_weights_of_the_arms_that_draw_lots_value_a_policy_and_those_of_all_arms_do_not():
    """Half of the customers, the keen, bring 3 with a message, the others 1, all 0 without one.

    "Send to everyone" is worth 2. One arm tosses a coin, the shop's own rule sends to the keen.
    """
    keen = np.array([0, 0, 1, 1] * 2, dtype=bool)
    coin = np.array([0, 1, 0, 1])
    action = np.concatenate((coin, keen[4:]))
    by_lot = np.arange(8) < 4
    made = CustomerWeeks.empty(tuple("abcdefgh"), 1)
    made.last[:] = 0
    made.offer[0] = action
    chance = np.where(by_lot, 0.5, 1.0)
    arm = np.where(by_lot, ARMS.index("rl"), ARMS.index("bau"))
    plan = PlannedWeek("week=0.parquet", 0, list(made.ids), action, np.zeros_like(action), chance, arm)
    assert "nor have 4 of the arms holdout and bau" in put_planned(made, plan)
    value = action * np.where(keen, 3.0, 1.0)
    assert np.nanmean(action / made.propensity[0] * value) == 2.0
    assert np.mean(action / chance * value) == 1.75  # with the decisions of the shop's rule


def test_nothing_was_certain_in_a_week_without_plan_and_send():
    made = log()
    made.propensity[:] = np.nan
    made.propensity[2, 0] = 0.6  # of the file
    assert put_unplanned(made, 2, True, NO_ROWS) == (
        "week 2 has no plan and no send: the propensity of nothing is 1, where the sends' file gives none"
    )
    np.testing.assert_array_equal(made.propensity[2], [0.6, 1, 1, 1, 1, 1, 1, np.nan])
    assert np.isnan(made.propensity[:2]).all()


def test_the_propensities_of_a_week_with_sends_and_without_a_plan_stay_as_the_file_has_them():
    made = log()
    made.propensity[1] = [0.2, *[np.nan] * 7]
    before = made.propensity.copy()
    assert put_unplanned(made, 1, False, NO_ROWS).startswith(
        "week 1 has sends and no plan: its decisions have only the propensities"
    )
    np.testing.assert_array_equal(made.propensity, before)


def test_a_plan_of_another_log_is_refused():
    other = PlannedWeek("week=1.parquet", 1, ["x"], np.array([1]), np.array([0]), np.array([0.5]), np.array([3]))
    with pytest.raises(ValueError, match="week=1.parquet: expected a plan of the log's customers"):
        put_planned(log(), other)


def test_plans_are_read_by_the_catalogues_names(tmp_path, make_catalogue, capsys):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    from envs.live.plan.output.plan_file import KEY

    catalogue = make_catalogue()

    def write(week, offer, handed_over=True):
        rows = {"customer": ["a", "b"], "offer": [offer, ""], "channel": [catalogue.channels[2], ""]}
        table = pa.table({**rows, "propensity": [0.25, 0.75], "arm": ["rl", "holdout"]})
        facts = {KEY: json.dumps({"week": week}).encode()}
        pa.parquet.write_table(table.replace_schema_metadata(facts), tmp_path / f"week={week}.parquet")
        if handed_over:
            (tmp_path / f"week={week}.csv").touch()

    assert list(planned_weeks(tmp_path, catalogue)) == []
    write(7, catalogue.offers[2])
    (plan,) = planned_weeks(tmp_path, catalogue)
    assert plan.week == 7 and plan.customers == ["a", "b"] and plan.propensity.tolist() == [0.25, 0.75]
    assert [ARMS[k] for k in plan.arm] == ["rl", "holdout"]
    assert plan.offer.tolist() == [2, 0] and plan.channel.tolist() == [2, 0]
    assert not capsys.readouterr().err
    write(6, "nonsense", handed_over=False)  # the job was killed between the two files
    assert [plan.week for plan in planned_weeks(tmp_path, catalogue)] == [7]
    assert "week=6.parquet: no sender's file, week=6.csv, lies beside it" in capsys.readouterr().err
    write(8, "nonsense")
    with pytest.raises(ValueError, match=r"week=8.parquet: column 'offer': expected one of .*, got 'nonsense'"):
        list(planned_weeks(tmp_path, catalogue))
    with pytest.raises(ValueError, match="plans: expected a folder of plans, week=….parquet, got .*missing"):
        list(planned_weeks(tmp_path / "missing", catalogue))
