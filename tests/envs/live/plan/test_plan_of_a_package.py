"""The plan of an exported policy, asked from Python."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from envs.live.package import Package
from envs.live.package_files import read_files
from envs.live.plan.inputs.exported import ExportedPolicy
from envs.offers.world.history import SeenWeek
from small_package import TODAY, config_of, export_small, rows, untrained, write_table


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a table, and the package of a policy on it."""
    folder = tmp_path_factory.mktemp("package")
    config = config_of(folder)
    env, agent = untrained(config)
    return folder, export_small(folder, config, env, agent)


def test_the_same_policy_exported_again_is_the_same_policy(exported):
    folder, package = exported
    config = config_of(folder)
    env, agent = untrained(config)
    (folder / "metrics.json").write_text('{"policies": {}}')
    again = export_small(folder, config, env, agent)
    assert again.manifest != package.manifest
    assert ExportedPolicy(again).version == ExportedPolicy(package).version
    with torch.no_grad():
        next(agent.policy.parameters()).add_(0.1)
    assert ExportedPolicy(export_small(folder, config, env, agent)).version != ExportedPolicy(package).version


def test_rows_far_from_training_are_refused_by_row_and_column(exported):
    folder, package = exported
    table = rows(20)
    table[4]["spend"] = 1e6
    path = write_table(folder / "far.csv", table)
    with pytest.raises(ValueError, match=r"far\.csv: row 6, column 'spend': expected"):
        package.plan(str(path), week=2, money=8.0, today=TODAY)


def test_the_files_hold_the_plan_and_a_key_that_is_none_is_one_line(exported, tmp_path):
    folder, package = exported
    made = package.plan(
        str(folder / "customers.csv"), week=14, money=8.0, today=TODAY, out=str(tmp_path / "week=14.parquet")
    )
    paths = made.write()
    with paths[1].open() as file:
        sent = list(csv.DictReader(file))
    assert {x["customer"] for x in sent} == {made.customers.ids[k] for k in made.plan.sent.tolist()}
    assert set(made.table()["week"].to_pylist()) == {14 % package.weeks}
    for keys in ({"moneey": 3}, {"money": -1.0}, {"sigma": 9.0}, {"arms": {"bau": 2.0}}):
        with pytest.raises(ValueError, match=next(iter(keys))):
            package.plan(str(folder / "customers.csv"), week=2, today=TODAY, **keys)


def test_the_order_of_rows_changes_no_decision_of_a_package(exported, tmp_path):
    folder, package = exported
    order = np.random.default_rng(0).permutation(300)
    path = write_table(tmp_path / "other.csv", [rows(300)[k] for k in order])
    keys = {"week": 3, "money": 30.0, "today": TODAY}
    plans = [package.plan(str(x), **keys).table().to_pylist() for x in (folder / "customers.csv", path)]
    first, second = ({x["customer"]: x for x in plan} for plan in plans)
    assert sum(bool(x["offer"]) for x in plans[0]) > 10
    for name in ("decision", "arm", "offer", "channel", "next_offer", "next_channel", "refused", "rule"):
        assert {x: first[x][name] for x in first} == {x: second[x][name] for x in second}
    assert all(first[x]["propensity"] == pytest.approx(second[x]["propensity"], abs=1e-4) for x in first)


def test_a_second_season_begins_as_in_training(exported):
    """Frequency and recency of a history say how many weeks are known, and no training in a simulator saw thirteen."""
    _, package = exported
    features = package.features(package.read(str(package.folder.parent / "customers.csv"), today=TODAY))
    n = len(features)
    sent = torch.ones(n, dtype=torch.long)
    opted_out = torch.arange(n) % 7 == 0
    week = SeenWeek(sent, sent * 0, sent > 0, sent > 0, opted_out, torch.ones(n))
    memory = package.start_memory(n)
    for number in range(package.weeks):
        memory = package.remember(memory, features, number, week)
    start = package.start_memory(n)
    expected = torch.where(torch.arange(start.shape[1]) == 0, opted_out[:, None].float(), start)
    assert not torch.equal(memory, start) and torch.equal(package.next_season(memory), expected)
    manifest = {**package.manifest, "learned_from_log": True}
    carried = Package(package.folder, manifest, read_files(package.folder)[1], 1).next_season(memory)
    own = carried.shape[1] - 1 - len(package.codec.counts)
    assert torch.equal(carried[:, -own:], memory[:, -own:]) and own > 2
