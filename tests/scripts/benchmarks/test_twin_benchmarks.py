"""Benchmarks of twins run from end to end on little, and their figures agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from rlcore.runs import checkpoint
from scripts.benchmarks.common.planning import ESTIMATED, TRUE
from scripts.benchmarks.learning.twin_policies import IN_THE_WORLD, ON_THE_TWIN

CPU = torch.device("cpu")
TWIN = [
    "benchmark.twin.members=1",
    "benchmark.twin.twin.reference_size=2000",
    "benchmark.twin.twin.score_customers=200",
]
ROUGH = [*TWIN, "benchmark.twin.twin.hidden_states.steps=8", "benchmark.twin.twin.hidden_states.passes=2"]


def run(name: str, folder: Path, *changes: str) -> dict:
    """Run a benchmark."""
    config = composed(f"benchmark=learning/{name}", *changes, name="bench").benchmark
    return instantiate(config, _convert_="all")(folder, CPU, 0)


def smaller(env: str) -> list[str]:
    """Return an environment's evaluation on few customers."""
    sizes = {"customers": 60, "seasons": 1, "tuning_customers": 60, "validation": 40, "regression_customers": 2000}
    return [
        *(f"{env}.evaluation.{key}={value}" for key, value in sizes.items()),
        f"{env}.evaluation.bound.max_evaluations=12",
    ]


@pytest.mark.slow
def test_what_a_twin_recovers_and_what_a_policy_of_it_earns(tmp_path, capsys):
    sizes = ("benchmark.decisions=9600", "benchmark.agents=400", "benchmark.new=300")
    found = run("recovery", tmp_path, *sizes, *TWIN, *smaller("benchmark.env"))
    assert found["parameters"]["log margin"]["error"] < 0.3 and len(found["seconds"]) == 1
    scores = {name: row["score"] for name, row in found["planning"]["policies"].items()}
    share, low, high = found["planning"]["share"]
    assert share == pytest.approx(scores[ESTIMATED] / scores[TRUE]) and low < share < high
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path)["agent"]["iteration"] == 1

    env = "benchmark.env_of_view.belief"
    ppo = ("benchmark.ppo.total_steps=9600", "benchmark.ppo.average_decay=0.0", f"{env}.num_agents=400")
    found = run("twin_policies", tmp_path, f"benchmark.twin={path}", *ppo, *smaller(env))["views"]["belief"]
    rows = found["policies"]
    assert set(rows) == {f"planning on {TRUE}", f"planning on {ESTIMATED}", ON_THE_TWIN, IN_THE_WORLD}
    assert rows[f"planning on {TRUE}"]["score"] == pytest.approx(scores[TRUE])  # the same customers and chance
    share = found["share"][f"{ON_THE_TWIN} / planning on {ESTIMATED}"][0]
    assert share == pytest.approx(rows[ON_THE_TWIN]["score"] / rows[f"planning on {ESTIMATED}"]["score"])
    assert "paired by customer" in capsys.readouterr().out
    with pytest.raises(ValueError, match="benchmark.twin: expected the path of a twin's checkpoint"):
        run("twin_policies", tmp_path)
    with pytest.raises(ValueError, match=r"benchmark.views: expected some of belief, history, got 'state'"):
        run("twin_policies", tmp_path, f"benchmark.twin={path}", "benchmark.views=[state]")


@pytest.mark.slow
def test_policies_of_a_twin_are_judged_in_a_world_unlike_it(tmp_path):
    worlds = ("~benchmark.worlds.shocks", "~benchmark.worlds.segments")
    sizes = ("benchmark.decisions=4800", "benchmark.agents=400", "benchmark.customers=40", "benchmark.seasons=1")
    ppo = ("benchmark.ppo_steps=9600", "benchmark.on_twin.num_agents=400", "benchmark.fees=[0.0,0.5]")
    small = (*smaller("benchmark.family"), *smaller("benchmark.on_twin"))
    rows = run("unlike", tmp_path, *worlds, *sizes, *ppo, *small, *ROUGH)["worlds"]["link"]["rows"]
    assert rows["none"]["profit"] == 0 and rows["frequent buyers"]["ahead"] == 0
    for row in rows.values():
        assert row["ahead"] == pytest.approx(row["profit"] - rows["frequent buyers"]["profit"])
        assert row["behind"] == pytest.approx(rows["PPO on the twin"]["profit"] - row["profit"])
        assert (row["behind_half_width"] > 0) == (row is not rows["PPO on the twin"])
    assert rows["planning on the twin"]["profit"] != 0 and "PPO on the twin" in rows
    with pytest.raises(ValueError, match="benchmark.offer: expected a number from 1 to 5, got 6"):
        run("unlike", tmp_path, "benchmark.offer=6")


@pytest.mark.slow
def test_misfits_are_counted_log_by_log(tmp_path):
    worlds = ("~benchmark.worlds.shocks", "~benchmark.worlds.segments")
    found = run(
        "misfit", tmp_path, *worlds, "benchmark.decisions=4800", "benchmark.agents=400", "benchmark.logs=1", *ROUGH
    )
    assert {name: len(logs) for name, logs in found["worlds"].items()} == {"all": 1, "part": 1, "link": 1}
