"""The ten commands of docs/shop.md, run one after another in an empty folder, at small sizes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import script_runner
from small_runs import OFFERS

for package in ("pyarrow", "onnxscript", "onnxruntime", "jinja2"):  # extra `live`
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
TWIN = [
    "algo.members=1",
    "algo.twin.hidden_states.steps=2",
    "algo.twin.hidden_states.shares=[1.0]",
    "algo.twin.hidden_states.nodes=2",
    "algo.twin.reference_size=300",
    "algo.twin.score_customers=20",
    "algo.evaluation.uplift.replications=3",
]
POLICY = [
    *(key for key in OFFERS if "population" not in key),
    "env.evaluation.hard_budget_rule=null",
    "algo.critic.hidden=[16]",
    "algo.total_steps=1152",
    "algo.minibatches=2",
]
TEST = [
    "table.min_level_count=5",
    "ab_test.replications=5",
    "ab_test.folds=2",
    "ab_test.learners.T_network.model.steps=5",
]


def commands() -> list[list[str]]:
    """Return the page's commands: script and arguments."""
    lines = (ROOT / "docs/shop.md").read_text().splitlines()
    words = [shlex.split(line) for line in lines if line.startswith("python scripts/")]
    return [[Path(script).stem, *arguments] for _, script, *arguments in words]


def made_small(script: str, arguments: list[str]) -> list[str]:
    """Return what to add to a command so that it takes seconds."""
    if script == "example_shop":
        return ["--customers", "120"]
    if script == "uplift":
        return TEST
    if script != "train":
        return []
    return TWIN if "algo=twin" in arguments else POLICY


@pytest.mark.slow
@pytest.mark.long
def test_the_ten_commands_of_the_page_run_in_an_empty_folder(tmp_path):
    assert len(commands()) == 10
    for script, *arguments in commands():
        done = script_runner.run(tmp_path, script, *arguments, *made_small(script, arguments))
        assert done.returncode == 0, f"{script} {' '.join(arguments)}\n{done.stderr[-2000:]}"
    assert (tmp_path / "plan" / "week=48.parquet").is_file()
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")}
    assert results["in_truth"]["policies"]["none"]["incremental_profit"] == 0.0
    assert set(results) >= {"twin", "policy", "in_truth", "next_twin", "mailing"}
