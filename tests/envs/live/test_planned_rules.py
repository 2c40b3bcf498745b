"""The arms of plans, joined to the decisions of a log by customer and week."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from envs.live.plan.output.plan_file import KEY
from envs.live.planned_rules import with_planned_rules
from rlcore.offline.logged_dataset import LoggedDataset

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
IDS = ("x", "y", "z")


def write_plan(folder, week, arms):
    table = pa.table({"customer": list(arms), "arm": list(arms.values())})
    pa.parquet.write_table(
        table.replace_schema_metadata({KEY: json.dumps({"week": week}).encode()}), folder / f"week={week}.parquet"
    )


def log():
    """Three customers over four weeks in two seasons; the reward says customer and week."""
    unit = torch.arange(12) % 3
    week = torch.arange(12) // 3
    dataset = LoggedDataset.from_obp(
        {"n_rounds": 12, "n_actions": 2, "context": [[0.0]] * 12, "action": [0] * 12, "reward": [0.0] * 12}
    )
    return replace(dataset, unit=unit, episode=week // 2, step=week % 2, reward=(10 * week + unit).float())


def test_a_decision_has_the_arm_of_its_customer_in_its_week(tmp_path):
    write_plan(tmp_path, 1, {"z": "rl", "x": "bau"})
    write_plan(tmp_path, 2, {"y": "bau", "z": "holdout", "unknown": "rl"})
    write_plan(tmp_path, 9, {"x": "rl"})
    found = with_planned_rules(log(), IDS, 2, tmp_path)
    arms = {int(reward): found.policies[k] for reward, k in zip(found.reward, found.policy)}
    assert arms == {12: "rl", 10: "bau", 21: "bau", 22: "holdout"}


def test_plans_of_another_log_are_refused(tmp_path):
    with pytest.raises(ValueError, match="plans: expected a folder of plans"):
        with_planned_rules(log(), IDS, 2, tmp_path)
    write_plan(tmp_path, 9, {"x": "rl"})
    with pytest.raises(ValueError, match="expected plans of weeks and customers that are in the log, got none"):
        with_planned_rules(log(), IDS, 2, tmp_path)
