"""A shop's log of sends judges what is learned from it; a season is simulated where it is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from configs import composed
from envs.configuration import CONF
from envs.offers.twin.ensemble import TwinEnsemble
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from script_runner import run
from scripts import evaluate, train
from scripts.shared.seen_data import files_of, logs_behind
from scripts.shared.stored_runs import Trained

LOG = "envs.logged.evaluation.LogEvaluator"
SEASON = "envs.offers.evaluation.evaluator.OffersEvaluator"


@pytest.mark.parametrize(
    "overrides, is_sends, expected",
    [
        (["log=x.parquet"], True, LOG),
        (["log=x.parquet"], False, SEASON),  # of a simulator, whose season is the truth
        (["log=x.parquet", "env/evaluation=offers"], True, SEASON),
        (["log=x.parquet", "env.evaluation.customers=50"], True, SEASON),
        ([], True, SEASON),
    ],
)
def test_who_judges(monkeypatch, capsys, overrides, is_sends, expected):
    monkeypatch.setattr(train, "is_send_log", lambda path: is_sends)
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            whole = compose("train", overrides=["algo=bandit", *overrides], return_hydra_config=True)
            HydraConfig.instance().set_config(whole)
            cfg = train.judged_by_its_log(compose("train", overrides=["algo=bandit", *overrides]))
    finally:
        HydraConfig.instance().cfg = before
    assert cfg.env.evaluation._target_ == expected and cfg.log == (None if not overrides else "x.parquet")
    assert ("env/evaluation=log" in capsys.readouterr().out) == (expected == LOG)


@pytest.mark.long
def test_was_one_rule_better_than_the_other(tmp_path):
    """A log whose column says which rule decided; no policy and no world."""
    pytest.importorskip("pyarrow")
    lines = ["letter,profit,share,donor,arm,age"]
    for k in range(400):
        rl = k % 2
        lines.append(f"{'yes' if k % 3 else 'no'},{k % 7 + 2 * rl},0.5,d{k},{'rl' if rl else 'bau'},{k % 40}")
    (tmp_path / "test.csv").write_text("\n".join(lines))
    columns = ("env.actions=[letter]", "env.reward=profit", "env.propensity=share", "env.customer=donor")
    asked = ("env=log", f"log={tmp_path / 'test.csv'}", *columns, "env.rule=arm")
    done = run(tmp_path, "evaluate", *asked, "rules=[rl,bau]", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert (
        "rl was better than bau by profit (+2." in done.stdout
        or "rl was better than bau by profit (+1.9" in done.stdout
    )
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["policies"]
    assert [rows[rule][kind] for rule in ("rl", "bau") for kind in ("decisions", "units")] == [200] * 4
    row = rows["rl less bau"]
    assert row["profit_ci"][0] < 2.0 < row["profit_ci"][1]
    refused = run(tmp_path, "evaluate", *asked, "rules=[rl,ours]")
    assert refused.returncode == 2 and "rules: expected two of bau, rl, got 'ours'" in refused.stderr


# ── scripts/evaluate.py ─────────────────────────────────────────────────────────────────────────────────────────────
class Sided:
    """An environment that only reads logs."""

    def __init__(self, has_sides):
        self.sides = has_sides

    def has_sides(self, path):
        return self.sides

    def read_log(self, path, split):
        return path, split


@pytest.mark.parametrize(
    ("learned", "sides", "warned"),
    [("x.csv", False, True), ("moved.csv", False, True), ("x.csv", True, False), ("y.csv", False, False)],
)
def test_a_policy_valued_on_what_it_learned_from_is_said_to_be(monkeypatch, tmp_path, learned, sides, warned):
    """A policy was distilled from a teacher that began with a policy that learned from a log."""
    monkeypatch.setattr(evaluate, "evaluate_dataset", lambda *given: given)
    for name, text in (("x.csv", "a"), ("moved.csv", "a"), ("y.csv", "b")):
        (tmp_path / name).write_text(text)

    def after(stage, parents, start=None):
        """Save a checkpoint of a run that learned from a log, or came from other checkpoints; return its path."""
        cfg = OmegaConf.create(parents)
        logs = logs_behind(cfg, [{"data": files_of(OmegaConf.create({"log": stage}))}], start)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        parts = {"name": "cql", "agent": {}, "config": {}, "logger": {}}
        checkpoint.save(path, {**parts, "logs": logs})
        return str(path)

    first = after(str(tmp_path / learned), {})
    teacher = after(None, {"env": {"population": {"path": str(tmp_path / "y.csv")}}}, checkpoint.load(first))
    assert logs_behind(OmegaConf.create({"resume": first, "init": first}), [], None) == []  # neither was restored
    last = checkpoint.load(after(None, {"algo": {"teacher": {"checkpoint": teacher}}}))
    found = Trained(Sided(sides), "agent", "cql", OmegaConf.create({}), {}, last["logs"])
    path = str(tmp_path / "x.csv")
    cfg = {"log": path, "ope": {}, "shop_rule": {"decisions": None}}
    dataset, *_, warnings = evaluate.value_on_log(found, OmegaConf.create(cfg))
    assert dataset == (path, "test") and len(warnings) == warned
    assert all(warning.startswith("cql learned from this very log") for warning in warnings)


def test_rules_are_compared_in_the_weeks_of_the_file():
    """A customer's first decision may lie in any week."""
    feedback = {"n_rounds": 4, "n_actions": 2, "context": [[0.0]] * 4, "action": [0] * 4, "reward": [0.0] * 4}
    dataset = LoggedDataset.from_obp(feedback)[torch.tensor([2, 0, 3])]
    env = SimpleNamespace(roles={"week": "month"}, read=lambda path: {"month": np.array([3.0, 1.0, 5.0, 3.0])})
    assert evaluate.in_weeks_of_the_log(dataset, env, "x.csv").step.tolist() == [1, 0, 0]
    env.roles = {}
    alike = evaluate.in_weeks_of_the_log(replace(dataset, episode=torch.arange(3)), env, "x.csv")
    assert alike.step.tolist() == alike.episode.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=c.pt"], "resume: evaluate.py trains nothing, expected checkpoint=c.pt"),
        (["init=c.pt"], "init: evaluate.py trains nothing, expected checkpoint=c.pt"),
        (["plans=sent"], "plans: expected rules="),
    ],
)
def test_a_key_that_has_no_use_in_an_evaluation_is_refused(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate.check_request(composed(*overrides, name="evaluate"))


def test_what_decides_nothing_is_refused():
    twin = Trained(None, TwinEnsemble.__new__(TwinEnsemble), "twin", OmegaConf.create({}), {}, [])
    mails = twin._replace(agent=None, name="ppo_kl")
    for log in (None, "x.csv"):
        with pytest.raises(ValueError, match="^checkpoint=c.pt: expected a policy, got a twin, which decides nothing"):
            evaluate.check_decides(twin, OmegaConf.create({"checkpoint": "c.pt", "log": log}))
    with pytest.raises(ValueError, match="^log=x.csv: expected a checkpoint of a policy that .*, got ppo_kl$"):
        evaluate.check_decides(mails, OmegaConf.create({"checkpoint": "c.pt", "log": "x.csv"}))
    evaluate.check_decides(mails, OmegaConf.create({"checkpoint": "c.pt", "log": None}))
