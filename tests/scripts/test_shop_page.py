"""The commands of docs/shop.md and of docs/start.md, run one after another in an empty folder, at small sizes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import script_runner
from small_runs import SHOP_POLICY

for package in ("pyarrow", "onnxscript", "onnxruntime", "jinja2"):  # extra `live`
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
TWIN = [
    "algo.members=1",
    "algo.twin.hidden_states.steps=2",
    "algo.twin.hidden_states.passes=2",
    "algo.twin.hidden_states.nodes=[2,2]",
    "algo.twin.reference_size=300",
    "algo.twin.score_customers=20",
    "algo.evaluation.uplift.replications=3",
]
TEST = [
    "table.min_level_count=5",
    "ab_test.replications=5",
    "ab_test.folds=2",
    "ab_test.learners.T_network.model.steps=5",
]


MAILS = ["algo.encoder.steps=1", "algo.encoder.dim=8", "algo.encoder.ffn_dim=8", "algo.encoder.heads=1"]
COLD_START = [
    "benchmark.customers=[150]",
    "benchmark.weeks=[12]",
    "~benchmark.choices.half",
    "~benchmark.choices.tenth",
    "benchmark.judged=150",
    "benchmark.env.evaluation.customers=30",
    "benchmark.env.evaluation.seasons=1",
    "benchmark.env.evaluation.tuning_customers=20",
    "benchmark.env.evaluation.fees=[0.5]",
    "benchmark.env.evaluation.regression_customers=300",
    "benchmark.twin.twin.hidden_states.steps=2",
    "benchmark.twin.twin.hidden_states.passes=2",
    "benchmark.twin.twin.hidden_states.nodes=[2,2]",
    "benchmark.twin.twin.reference_size=300",
    "benchmark.twin.holdout.stopping=0.3",
]
NEXT_MONTH = [
    "benchmark.customers=150",
    "benchmark.env.evaluation.customers=30",
    "benchmark.twin.holdout.stopping=0.3",
    "benchmark.next_twin.holdout.stopping=0.3",
    "benchmark.first_weeks=12",
    "benchmark.weeks=24",
    "benchmark.env.num_agents=48",
    "benchmark.env.evaluation.seasons=1",
    "benchmark.env.evaluation.tuning_customers=20",
    "benchmark.env.evaluation.calibration_seasons=1",
    "benchmark.algo.total_steps=1728",
    "benchmark.algo.minibatches=2",
    "benchmark.algo.network.hidden=[16]",
    "benchmark.algo.critic.hidden=[16]",
    *(
        f"benchmark.{twin}.twin.{key}"
        for twin in ("twin", "next_twin")
        for key in (
            "hidden_states.steps=2",
            "hidden_states.passes=2",
            "hidden_states.nodes=[2,2]",
            "reference_size=300",
        )
    ),
]
BENCHES = {"shop/cold_start": COLD_START, "shop/next_month": NEXT_MONTH}


def commands(page: str) -> list[list[str]]:
    """Return a page's commands, in blocks and in sentences: script and arguments."""
    text = (ROOT / "docs" / page).read_text()
    lines = re.findall(r"^(python scripts/.*)$|`(python scripts/[^`]+)`", text, re.MULTILINE)
    words = [shlex.split(in_block or in_sentence) for in_block, in_sentence in lines]
    return [[Path(script).stem, *arguments] for _, script, *arguments in words]


def made_small(script: str, arguments: list[str]) -> list[str]:
    """Return what to add to a command so that it takes seconds."""
    if script == "example_shop":
        return ["--customers", "120"]
    if script == "uplift":
        return TEST
    if script == "bench":
        return BENCHES[arguments[0]]
    if script != "train":
        return []
    if "experiment=shop_mails" in arguments:
        return MAILS
    return TWIN if "algo=twin" in arguments else SHOP_POLICY


def run_page(page: str, folder: Path) -> dict[str, dict]:
    """Run a page's commands in a folder; return metrics.json by the run's folder."""
    for script, *arguments in commands(page):
        done = script_runner.run(folder, script, *arguments, *made_small(script, arguments))
        assert done.returncode == 0, f"{script} {' '.join(arguments)}\n{done.stderr[-2000:]}"
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/metrics.json")}


@pytest.mark.long
def test_the_commands_of_the_shop_page_run_in_an_empty_folder(tmp_path):
    pytest.importorskip("transformers")
    text = (ROOT / "docs/shop.md").read_text()
    assert [int(number) for number in re.findall(r"^# (\d+)\. ", text, re.MULTILINE)] == list(range(1, 11))
    results = run_page("shop.md", tmp_path)
    assert (tmp_path / "plan" / "week=48.parquet").is_file()
    assert results["in_truth"]["policies"]["none"]["incremental_profit"] == 0.0
    assert set(results) >= {"twin", "policy", "in_truth", "next_twin", "mailing"}


@pytest.mark.long
def test_the_commands_for_a_shop_without_a_log_run_in_an_empty_folder(tmp_path):
    results = run_page("start.md", tmp_path)
    assert set(results) == {"priors", "first_package"} and (tmp_path / "plan" / "week=0.parquet").is_file()
