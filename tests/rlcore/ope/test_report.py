"""What the valuation of a file says of the file: columns out of the range of training, missing steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log, write_log
from rlcore.ope.report import describe_gaps, evaluate_dataset
from small_offers import random_log, random_season


def test_missing_steps_are_counted_by_episode():
    _, log = random_log(10)
    assert describe_gaps(log) == ""
    late_start = log[~((log.unit == 2) & (log.step < 4))]
    early_end = late_start[~((late_start.unit == 3) & (late_start.step > 6))]
    assert describe_gaps(early_end) == ""
    between = early_end[~(((early_end.unit == 4) | (early_end.unit == 7)) & (early_end.step == 5))]
    assert describe_gaps(between).startswith("2 of 10 seasons lack a week between two others")


def test_a_policy_is_valued_within_what_it_was_trained_on(tmp_path):
    pytest.importorskip("pyarrow")
    env, _ = random_log(40)
    log = random_season(env, seed=1)
    tiny = ["env=offers", "algo=bandit", "algo.network.hidden=[8]", "algo.memory=1000", "algo.batch_size=8"]
    algorithm = instantiate(composed(*tiny).algo, _convert_="all")(env, 0)
    evaluator = instantiate(composed("ope/model=linear", name="evaluate").ope, _convert_="all")
    far = log.obs.clone()
    far[log.unit == 3, 2] = 1e30
    kept = ~((log.unit == 4) & (log.step == 5))
    write_log(tmp_path / "far.parquet", [replace(log, obs=far)[kept]])
    report = evaluate_dataset(
        read_log(tmp_path / "far.parquet", COLUMNS), str(tmp_path / "far.parquet"), evaluator, algorithm, "bandit"
    )
    clipped, gaps = report.extra["warnings"][:2]
    assert clipped.startswith("clipped to the range of training: 'feature_2' (") and ") of 1 " in clipped
    assert gaps.startswith("1 of 40 seasons lack a week")
    assert all(abs(row["net"]) < 1e6 for row in report.rows.values())
    limits = env.static_limits()
    clamped = torch.minimum(far[:, 2], limits[1][2])
    obs = torch.cat((far[:, :2], clamped[:, None], far[:, 3:]), 1)
    write_log(tmp_path / "near.parquet", [replace(log, obs=obs)[kept]])
    again = evaluate_dataset(
        read_log(tmp_path / "near.parquet", COLUMNS), str(tmp_path / "near.parquet"), evaluator, algorithm, "bandit"
    )
    assert again.rows == report.rows
