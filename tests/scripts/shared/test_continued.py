"""resume=PATH with new data: a finished training goes on, and is judged before and after on old and on new data."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

import script_runner
from crm_rl import train
from rlcore.bandit import NeuralBandit
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.paired import Halves
from rlcore.runs import checkpoint
from rlcore.runs.before_after import OLD, BeforeAfter, before_after_report, better, by_age
from scripts.shared import seen_data
from scripts.shared.seen_data import earlier_stages, files_of, find_origin, logs_apart, own_stage
from small_runs import OFFERS

LOG = [
    "algo=bandit",
    "env=log",
    "env.actions=[letter]",
    "env.reward=profit",
    "env.propensity=share",
    "env.num_agents=32",
    "env.min_level_count=5",
    "env.evaluation.off_policy.replications=10",
    "ope/model@env.evaluation.off_policy.model=linear",
    "algo.total_steps=1280",
    "algo.network.hidden=[16]",
    "algo.batch_size=64",
    "algo.optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
]


def write_log(path, rows: int, seed: int, helps: str) -> str:
    """Write a randomised test of two letters, of which `helps` brings 3 more to those with an age above 50."""
    rng = random.Random(seed)
    lines = ["age,letter,share,profit"]
    for _ in range(rows):
        age, letter = rng.randint(20, 80), rng.choice("ab")
        profit = rng.gauss(1.0, 0.5) + 3.0 * (letter == helps and age > 50)
        lines.append(f"{age},{letter},0.5,{profit:.3f}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A bandit that has learned from a first log."""
    folder = tmp_path_factory.mktemp("first")
    path = write_log(folder / "first.csv", 400, 1, helps="a")
    train(*LOG, f"log={path}", directory=folder / "run")
    return folder


def resume(first, *overrides: str):
    return [*LOG, f"resume={first / 'run/checkpoint.pt'}", *overrides]


@pytest.mark.long
def test_a_bandit_learns_on_from_old_and_new_decisions_and_both_judge(first, tmp_path, monkeypatch):
    """In the new decisions the other letter helps: what was learned first is worse there than chance."""
    sizes = []
    given = NeuralBandit.set_dataset
    monkeypatch.setattr(NeuralBandit, "set_dataset", lambda self, data: (sizes.append(data), given(self, data)))
    hashed, digest = [], seen_data.digest
    monkeypatch.setattr(seen_data, "digest", lambda path: hashed.append(path) or digest(path))
    new = write_log(tmp_path / "second.csv", 1200, 2, helps="b")
    train(*resume(first, f"log={new}"), directory=tmp_path / "on")
    assert sorted(hashed) == sorted([new, str(first / "first.csv")])  # each file once
    (data,) = sizes
    assert len(data) > 0.5 * 1600 and len(data.unit.unique()) == len(data)  # no unit of one file is one of the other
    found = json.loads((tmp_path / "on/metrics.json").read_text())["before_and_after"]
    rows = found["policies"]
    assert found["kept"] == "after"
    assert rows["new data"]["gained"][1] > 0.5 > 0.0 > rows["old data"]["gained"][2]
    for row in rows.values():
        assert row["gained"][0] == pytest.approx(row["after"][0] - row["before"][0])
    saved = checkpoint.load(str(tmp_path / "on/checkpoint.pt"))
    assert saved["before"] is None and saved["finished"]
    assert [stage["data"]["log"]["path"] for stage in saved["seen"]] == [str(first / "first.csv"), new]


@pytest.mark.long
def test_a_third_file_forgets_neither_the_first_nor_the_second(first, tmp_path, monkeypatch):
    """The third training learns from all three files, and is judged on each."""
    sizes = []
    given = NeuralBandit.set_dataset
    monkeypatch.setattr(NeuralBandit, "set_dataset", lambda self, data: (sizes.append(len(data)), given(self, data)))
    logs = [str(first / "first.csv")]
    logs += [write_log(tmp_path / f"{k}.csv", rows, k, helps="a") for k, rows in ((2, 300), (3, 500))]
    train(*resume(first, f"log={logs[1]}"), directory=tmp_path / "second")
    on = f"resume={tmp_path / 'second/checkpoint.pt'}"
    train(*LOG, f"log={logs[2]}", on, directory=tmp_path / "third")
    assert 0.5 * 700 < sizes[0] < 700 and sizes[1] > sizes[0] + 0.5 * 500
    found = json.loads((tmp_path / "third/metrics.json").read_text())["before_and_after"]
    assert list(found["policies"]) == ["old data 1", "old data 2", "new data"]
    seen = checkpoint.load(str(tmp_path / "third/checkpoint.pt"))["seen"]
    assert [stage["data"]["log"]["path"] for stage in seen] == logs
    with pytest.raises(ValueError, match=r"^resume=\S+: log: that run has learned from this file before: expected new"):
        train(*LOG, f"log={logs[0]}", f"resume={tmp_path / 'third/checkpoint.pt'}", directory=tmp_path / "back")


@pytest.mark.long
def test_a_policy_that_got_worse_is_not_kept(first, tmp_path):
    """With a learning rate at which nothing is learned but noise, the policy from before stays."""
    new = write_log(tmp_path / "second.csv", 1200, 3, helps="a")
    run = train(*resume(first, f"log={new}", "algo.optimizer.lr=1.0", "seed=4"), directory=tmp_path / "on")
    found = json.loads((tmp_path / "on/metrics.json").read_text())["before_and_after"]
    assert found["kept"] == "before"
    old = checkpoint.load(str(first / "run/checkpoint.pt"))["agent"]["network"]
    for name, x in run.algorithm.network.state_dict().items():
        assert torch.equal(x, old[name]), name


@pytest.mark.long
def test_the_same_data_teach_nothing_more(first, tmp_path, capsys):
    train(*resume(first, f"log={first / 'first.csv'}"), directory=tmp_path / "on")
    assert "nothing more is learned" in capsys.readouterr().out
    assert "before_and_after" not in json.loads((tmp_path / "on/metrics.json").read_text())


@pytest.mark.long
def test_other_networks_and_a_file_that_has_changed_are_refused(first, tmp_path):
    new = write_log(tmp_path / "second.csv", 60, 2, helps="b")
    with pytest.raises(ValueError, match=r"^resume=\S+: other networks: algo.network.hidden was \[16\], is \[8\]$"):
        train(*resume(first, f"log={new}", "algo.network.hidden=[8]"), directory=tmp_path / "networks")
    state = checkpoint.load(str(first / "run/checkpoint.pt"))
    gone = {**state["seen"][0]["data"]["log"], "sha256": "0"}
    checkpoint.save(tmp_path / "changed.pt", {**state, "seen": [{**state["seen"][0], "data": {"log": gone}}]})
    with pytest.raises(
        ValueError, match=r"first.csv: expected the file that it learned from as it was.*init=.* forgets"
    ):
        train(*LOG, f"log={new}", f"resume={tmp_path / 'changed.pt'}", directory=tmp_path / "file")


def origin_of(cfg, state, name="bandit"):
    return find_origin(cfg, name, state, files_of(cfg))


NO_SENSE = [
    ("rlcore.bandit.NeuralBandit", {"finished": False}, "had not finished: expected its own data first"),
    ("envs.offers.twin.ensemble.TwinEnsemble", {}, "algo=some can't go on with another log: expected init=old.pt"),
    ("rlcore.bandit.NeuralBandit", {"seen": [{"data": {}, "config": {}}]}, "expected no log, like that run had"),
    ("rlcore.bandit.NeuralBandit", {"before": {"path": "first.pt"}}, "had not finished: expected its own data first"),
]


@pytest.mark.parametrize("kind, changes, message", NO_SENSE)
def test_what_makes_no_sense_is_refused_in_a_line(kind, changes, message, tmp_path):
    old = {"data": {"log": {"path": "old.csv", "sha256": "0"}}, "config": {}}
    state = {"before": None, "finished": True, "seen": [old]} | changes
    log = write_log(tmp_path / "new.csv", 3, 0, helps="a")
    cfg = OmegaConf.create({"resume": "old.pt", "log": log, "algo": {"_target_": kind, "_partial_": True}})
    with pytest.raises(ValueError, match=f"^resume=old.pt: .*{message}"):
        origin_of(cfg, state, "some")


def test_data_are_new_where_a_file_has_other_contents(tmp_path):
    log = write_log(tmp_path / "new.csv", 3, 0, helps="a")
    cfg = OmegaConf.create({"resume": "old.pt", "log": log, "algo": {"_target_": "rlcore.bandit.NeuralBandit"}})
    cfg.algo._partial_ = True
    state = {"before": None, "finished": True, "seen": [own_stage(cfg)], "agent": {"a": 1}}
    assert origin_of(cfg, state) is None and origin_of(cfg, None) is None
    copied = tmp_path / "copied.csv"
    copied.write_bytes((tmp_path / "new.csv").read_bytes())
    cfg.log = str(copied)
    assert origin_of(cfg, state) is None
    write_log(copied, 4, 0, helps="a")
    origin = origin_of(cfg, state)
    assert origin.begins and origin.agent == {"a": 1} and origin.seen[0]["data"]["log"]["path"] == log
    interrupted = {
        "before": origin._asdict(),
        "finished": False,
        "seen": [*earlier_stages(cfg, state, origin), own_stage(cfg)],
    }
    on = origin_of(cfg, interrupted)
    assert not on.begins and on.path == "old.pt" and earlier_stages(cfg, interrupted, on) == state["seen"]
    done = {**interrupted, "before": None, "finished": True}
    assert origin_of(cfg, done) is None and earlier_stages(cfg, done, None) == state["seen"]
    write_log(copied, 5, 0, helps="a")
    with pytest.raises(ValueError, match="^resume=old.pt: log has other data, and that run had not finished"):
        origin_of(cfg, interrupted)


def test_a_log_of_sends_holds_what_it_was_before_and_no_other_log_does(monkeypatch):
    files = [{"path": "a"}, {"path": "b", "weeks": 12}, {"path": "c"}, {"path": "b", "weeks": 24}]
    stages = [{"data": {"log": file}} for file in files]
    monkeypatch.setattr(seen_data.send_log, "is_send_log", lambda path: path == "sends")
    assert logs_apart(stages, "sends") == [files[0], files[2]]
    assert logs_apart(stages, "other") == [files[0], files[2], files[3]]


@pytest.mark.long
def test_ppo_learns_on_with_another_table_and_both_tables_judge(tmp_path, capsys):
    tables = {}
    for name, low in (("old", 0.1), ("new", 0.5)):
        rng = random.Random(7)
        rows = [f"{name}{k},{low + 0.4 * rng.random():.3f},{rng.uniform(10, 60):.1f},0.3" for k in range(120)]
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text("\n".join(["id,rate,spend,margin", *rows]) + "\n")
    keys = [key for key in OFFERS if "reference_size" not in key]
    ppo = ["algo=ppo", "env/population=customer_table", "env.evaluation.hard_budget_rule=null", *keys]
    old = f"env.population.path={tables['old']}"
    train(*ppo, "algo.total_steps=1152", old, directory=tmp_path / "run")
    on = f"resume={tmp_path / 'run/checkpoint.pt'}"
    new = f"env.population.path={tables['new']}"
    train(*ppo, "algo.total_steps=1152", new, on, directory=tmp_path / "on")
    found = json.loads((tmp_path / "on/metrics.json").read_text())["before_and_after"]
    assert set(found["policies"]) == {"old data", "new data"} and found["kept"] in ("before", "after")
    for row in found["policies"].values():
        assert row["gained"][0] == pytest.approx(row["after"][0] - row["before"][0], abs=0.2)
    printed = " ".join(capsys.readouterr().out.split())
    assert "whom no policy met in training" in printed and "old.csv" in printed


def test_the_better_policy_is_that_of_the_higher_mean_over_the_ages_of_the_data():
    assert better({"old": (1.0, 0.5), "new": (0.0, 0.6)}) == "after"
    assert better({"old": (1.0, 0.5), "new": (0.0, 0.4)}) == "before"
    assert better({"old": (1.0, 1.0), "new": (0.0, 0.0)}) == "before"


def test_old_data_are_numbered_where_there_are_several():
    assert by_age("ab") == {"old data": "a", "new data": "b"}
    assert list(by_age("abc")) == ["old data 1", "old data 2", "new data"]


def test_the_table_has_a_row_an_age_of_the_data():
    values = BeforeAfter([1.0, 0.9, 1.1], [1.5, 1.3, 1.7], [0.5, 0.4, 0.6])
    text = before_after_report({OLD: values}, "score", "after").to_markdown()
    assert "| old data | 1 | 0.1 | 1.5 | 0.2 | +0.5 | +0.4 | +0.6 |" in text


def decisions(rows: int) -> LoggedDataset:
    columns = {"context": [[0.0]] * rows, "action": [0] * rows, "reward": [1.0] * rows}
    return LoggedDataset.from_obp({"n_rounds": rows, "n_actions": 2, **columns})


def test_a_unit_either_chooses_or_judges_in_all_datasets():
    many = decisions(4000)
    halves, of_some = Halves.of(many, 5), Halves.of(many[many.unit % 3 == 0], 5)
    choosing, judging = (set(half.unit.tolist()) for half in halves)
    assert not choosing & judging and len(choosing) + len(judging) == 4000 and 1900 < len(choosing) < 2100
    assert set(of_some.choosing.unit.tolist()) == {unit for unit in choosing if unit % 3 == 0}
    with pytest.raises(ValueError, match="1 units are too few"):
        Halves.of(decisions(1), 5)


def test_a_unit_keeps_its_role_and_its_number_where_another_file_numbers_it_otherwise(monkeypatch):
    first = replace(decisions(40), unit_names=tuple(f"c{k}" for k in range(40)))
    second = replace(decisions(40), unit_names=tuple(f"c{k}" for k in range(20, 60)))
    halves = [Halves.of(data, 5) for data in (first, second)]
    chooses, judges = (
        [{data.unit_names[k] for k in part.unit.tolist()} for data, part in zip((first, second), parts)]
        for parts in zip(*halves)
    )
    assert not (chooses[0] | chooses[1]) & (judges[0] | judges[1])
    monkeypatch.setattr(seen_data, "check_unchanged", lambda checkpoint, key, file: "first.csv")
    monkeypatch.setattr(seen_data.send_log, "is_send_log", lambda path: False)
    both = seen_data.with_old([{"data": {"log": {}}}], "old.pt", second, "second.csv", lambda path: first)
    assert both.names_of_units(both.unit) == [*first.unit_names, *second.unit_names] and len(both.unit_names) == 60
    assert len(set(zip(both.unit.tolist(), both.episode.tolist()))) == 80  # no episode of one unit is another's


@pytest.mark.long
def test_a_bandit_goes_on_with_the_longer_log_of_a_shop(tmp_path):
    """Seasons that the shorter log had in whole are the old data; the log has both, and the new table too."""
    pytest.importorskip("pyarrow")

    def run(script: str, *arguments: str) -> None:
        done = script_runner.run(tmp_path, script, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]

    shop = ["-cd", "shop", "experiment=shop"]
    sends = ["sends.path=shop/sends_4.csv", "sends.purchases.path=shop/purchases_4.csv"]
    table = "env.population.path=shop/next_quarter.csv"
    small = [key for key in LOG if key.startswith(("algo.", "device", "threads", "env.eval", "ope"))]
    bandit = [*shop, "algo=bandit", "env/observation=history", "log=log.parquet", "env.num_agents=8", *small]
    judged = ["env/evaluation=log", "algo.auxiliary.hidden=[8]"]
    run("example_shop", "shop", "--customers", "120")
    run("import_sends", *shop, "sends=shop", "out=log.parquet")
    run("train", *bandit, *judged, "hydra.run.dir=run")
    run("import_sends", *shop, "sends=shop", table, *sends, "out=log.parquet")
    run("train", *bandit, *judged, table, "resume=run/checkpoint.pt", "hydra.run.dir=on")
    found = json.loads((tmp_path / "on/metrics.json").read_text())["before_and_after"]
    assert set(found["policies"]) == {"old data", "new data"}
    for row in found["policies"].values():
        assert row["gained"][1] <= row["gained"][0] <= row["gained"][2]
