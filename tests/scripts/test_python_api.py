"""Training from Python does what the script does."""

from __future__ import annotations

import json

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

import crm_rl

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
