"""Training from Python does what the script does."""

from __future__ import annotations

import json

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

import crm_rl
from rlcore.ppo import PPO
from rlcore.runs.writers import CsvWriter

TINY = [
    "env=offers_sequential",
    "env.num_agents=4",
    "env.evaluation.worlds=2",
    "env.evaluation.validation=2",
    "device=cpu",
]


@pytest.mark.long
def test_a_run_from_python_has_its_result_and_its_files(tmp_path):
    before = HydraConfig.initialized()
    run = crm_rl.train(*TINY, "algo.total_steps=512", "algo.eval_every=1", "logger=csv", directory=tmp_path / "a" / "b")
    found = json.loads((tmp_path / "a" / "b" / "metrics.json").read_text())
    assert run.result.metric == "score" and run.result.value == found["policies"]["ppo"]["score"]
    assert found["headline"]["value"] == run.result.value and found["headline"]["higher_is_better"]
    assert found["curve"] == {
        "metric": "validation/score",
        "points": [list(point) for point in run.history["validation/score"]],
    }
    # what a sweeper optimises is the last validation: test data choose no setting
    assert run.tuning_value == run.history["validation/score"][-1][1] != run.result.value
    assert run._replace(history={}).tuning_value == run.result.value
    assert "| ppo |" in run.report.to_markdown()
    files = {path.name for path in run.directory.iterdir()}
    assert {"checkpoint.pt", "scalars.csv", "training.png"} <= files
    assert not any(name.startswith("events") for name in files)
    assert HydraConfig.initialized() == before


@pytest.mark.long
def test_bad_input_leaves_nothing(tmp_path):
    for override, error in (("algo.gamma=2", ValueError), ("algo.gama=0.9", HydraException)):
        with pytest.raises(error, match="gam"):
            crm_rl.train(*TINY, override, directory=tmp_path / "run")
    with pytest.raises(ValueError, match="algo.minibatches"):
        crm_rl.train(*TINY, "algo.minibatches=7", directory=tmp_path / "run")
    assert not list(tmp_path.rglob("events*")) and not list(tmp_path.rglob("*.csv"))


@pytest.mark.long
def test_a_folder_is_free_again_when_its_run_has_ended_or_failed(tmp_path, monkeypatch):
    ends: list[str] = []
    monkeypatch.setattr(CsvWriter, "close", lambda self, end: ends.append(end))
    short = [*TINY, "logger=csv", "algo.num_steps=128", "algo.total_steps=512"]
    first = crm_rl.train(*short, directory=tmp_path)
    on = f"resume='{tmp_path / 'checkpoint.pt'}'"
    longer = "algo.total_steps=1024"
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="is nan"):
        patched.setattr(PPO, "update", lambda *_: {"losses/value_loss": torch.tensor(torch.nan)})
        crm_rl.train(*short, longer, on, directory=tmp_path)
    second = crm_rl.train(*short, longer, on, directory=tmp_path)
    assert (first.algorithm.steps_done, second.algorithm.steps_done) == (512, 1024)
    assert ends == ["finished", "failed", "finished"]
    # steps are what charts and totals count: iterations of another length would move the old ones
    for other in ("algo.num_steps=64", "algo.num_steps=256"):
        with pytest.raises(ValueError, match=r"^resume=.*: its 2 iterations had 1,024 steps, and would have"):
            crm_rl.train(*short, "algo.total_steps=2048", on, other, directory=tmp_path / "other")
