"""From a log to a policy and back, as a user runs it: collect, train on it, value on another; bad input."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext

import pytest
import torch

from comparisons import identical
from crm_rl import train
from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log, write_log
from rlcore.runs.checkpoint import load, save
from script_runner import run as script
from small_runs import OFFERS

pytestmark = pytest.mark.slow
PART = ["env.num_agents=40", "env.population.reference_size=500", "device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a log, a bandit that learned from it, and a log of the bandit."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("log")
    done = script(
        folder,
        "collect",
        *PART,
        "logging_policy=uplift",
        "logging_policy.epsilon=0.5",
        "decisions=960",
        "out=logs/rule.csv",
    )
    assert done.returncode == 0 and "logs/rule.csv: 960 decisions of uplift" in done.stdout, done.stderr
    done = script(
        folder,
        "train",
        *(x for x in OFFERS if "minibatches" not in x),
        "algo=bandit",
        "algo.memory=960",
        "algo.batch_size=64",
        "log=logs/rule.csv",
        "algo.total_steps=1500",
        "hydra.run.dir=trained",
    )
    assert done.returncode == 0, done.stderr
    done = script(
        folder,
        "collect",
        "logging_policy=agent",
        "logging_policy.epsilon=0.3",
        "checkpoint=trained/checkpoint.pt",
        "env.num_agents=80",
        "decisions=960",
        "out=own.parquet",
        "all_propensities=true",
        "device=cpu",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_a_policy_is_valued_on_a_log(folder):
    log = read_log(folder / "own.parquet", COLUMNS)
    assert log.policies == ("bandit",) and len(log) == 960 and log.probs.amax() > 0.7
    done = script(
        folder,
        "evaluate",
        "checkpoint=trained/checkpoint.pt",
        "log=own.parquet",
        "ope/model=linear",
        "ope.replications=100",
        "hydra.run.dir=valued",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "valued/metrics.json").read_text())
    assert {"as logged", "FQE", "sequential DR"} < set(found["estimators"]) and found["log"]["episodes"] == 80
    row = found["estimators"]["sequential DR"]
    assert row["net_ci"][0] < row["net"] < row["net_ci"][1] and found["log"]["unsupported"] == 0.0
    assert {"off_policy.png", "weights.png"} <= {path.name for path in (folder / "valued").iterdir()}


@pytest.mark.long
def test_a_policy_is_trained_on_a_twin_of_the_log(folder):
    done = script(folder, "collect", *PART, "decisions=1920", "out=random.parquet")
    assert done.returncode == 0, done.stderr
    done = script(
        folder,
        "train",
        "algo=twin",
        "algo.members=2",
        "algo.twin.reference_size=500",
        "algo.twin.rounds=1",
        "device=cpu",
        "algo.evaluation.uplift.replications=5",
        "log=random.parquet",
        *PART[:2],
        "hydra.run.dir=twin",
    )
    assert done.returncode == 0, done.stderr
    assert {"calibration.png", "weeks.png", "drivers.png"} <= {path.name for path in (folder / "twin").iterdir()}
    assert len(json.loads((folder / "twin/metrics.json").read_text())["weeks"]) == 12
    on_base = [x.replace("env.population.", "env.population.base.") for x in OFFERS]
    done = script(
        folder,
        "train",
        *on_base,
        "env/population=twin",
        "env.population.path=twin/checkpoint.pt",
        "algo.total_steps=960",
        "hydra.run.dir=on_twin",
    )
    assert done.returncode == 0, done.stderr
    members = json.loads((folder / "on_twin/metrics.json").read_text())["members"]
    assert set(members) == {"member 1", "member 2"} and all(row["bound"] > 0 for row in members.values())
    done = script(
        folder, "evaluate", "checkpoint=on_twin/checkpoint.pt", "+env.population.path=null", "hydra.run.dir=in_truth"
    )
    assert done.returncode == 0, done.stderr
    assert "members" not in json.loads((folder / "in_truth/metrics.json").read_text())


@pytest.mark.long
def test_a_log_is_of_the_world_of_an_experiment_whatever_it_trains(folder):
    """The jobs of an experiment that is a sweep have files of their own, or none is written."""
    few = [*PART, "decisions=480", "env.evaluation.customers=30"]
    for name in ("full_information", "learner/full_information"):
        done = script(folder, "collect", *few, f"experiment={name}", f"out={name.partition('/')[0]}.csv")
        assert done.returncode == 0, done.stderr
    assert (folder / "learner.csv").read_bytes() == (folder / "full_information.csv").read_bytes()
    done = script(folder, "collect", *few, "experiment=tradeoff", "out=sweep.csv", "env.reward.trips=0.0,1.0", "seed=1")
    assert done.returncode == 2 and done.stderr.count("out=sweep.csv: each job of a sweep would write it") == 2
    assert not (folder / "sweep.csv").exists()
    own = ["env.reward.trips=0.0,1.0", "seed=1", "out=sweep_${hydra:job.num}.csv"]
    done = script(folder, "collect", *few, "experiment=tradeoff", *own)
    assert done.returncode == 0, done.stderr
    assert (folder / "sweep_0.csv").read_bytes() != (folder / "sweep_1.csv").read_bytes()


@pytest.mark.long
def test_a_stopped_twin_goes_on_in_its_own_folder_as_if_it_had_not_stopped(folder, monkeypatch):
    """What it had logged stays. Another number of members, and a log of another size, are refused."""
    done = script(folder, "collect", *PART, "decisions=1920", "out=twin.csv")
    assert done.returncode == 0, done.stderr
    fit = ["algo=twin", "algo.members=2", "algo.twin.reference_size=500", "algo.twin.rounds=1", "device=cpu"]
    fit += [f"log={folder / 'twin.csv'}", "algo.evaluation.uplift.replications=5", "logger=csv", *PART[:2]]
    on = f"resume='{folder / 'stopped/checkpoint.pt'}'"
    train(*fit, directory=folder / "whole")
    with monkeypatch.context() as stopped, pytest.raises(SystemExit):  # after the first member
        stopped.setattr("scripts.train.interrupts", lambda: nullcontext([signal.SIGINT]))
        train(*fit, directory=folder / "stopped")
    train(*fit, on, directory=folder / "stopped")
    whole, resumed = (load(str(folder / name / "checkpoint.pt")) for name in ("whole", "stopped"))
    assert identical(resumed["agent"], whole["agent"]) and resumed["logger"]["step"] == whole["logger"]["step"]
    whole_rows, rows = (fitted_rows(folder / name / "scalars.csv") for name in ("whole", "stopped"))
    assert rows == whole_rows and len({row.partition(",")[0] for row in rows}) == 2
    weeks, weeks_resumed = (
        json.loads((folder / x / "metrics.json").read_text())["weeks"] for x in ("whole", "stopped")
    )
    assert weeks_resumed == weeks

    with pytest.raises(ValueError, match="algo.members: expected 2, .*, got 3"):
        train(*fit, on, "algo.members=3", directory=folder / "other")
    resumed["logger"]["step"] -= 2
    save(folder / "stopped/checkpoint.pt", resumed)
    with pytest.raises(
        ValueError, match="had 2,758 steps, and would have 2,760 here: expected .*: algo.clip was 20.0, is"
    ):
        train(*fit, on, "algo.clip=5", directory=folder / "other")


def fitted_rows(path) -> list[str]:
    """Return the rows of a file of scalars that are not about time, nor about the test."""
    return [row for row in path.read_text().splitlines()[1:] if "SPS" not in row and "test/" not in row]


def test_bad_input_is_one_line(folder):
    log = read_log(folder / "own.parquet", COLUMNS)
    bad = torch.where(torch.arange(960) == 17, torch.nan, log.reward)
    write_log(folder / "bad.parquet", [type(log)(**{**log.__dict__, "reward": bad})])
    checkpoint = "checkpoint=trained/checkpoint.pt"
    for name, overrides, message in (
        ("collect", [checkpoint, "out=x.csv"], "checkpoint: logging_policy=uniform follows no checkpoint"),
        (
            "evaluate",
            [checkpoint, "log=bad.parquet"],
            "bad.parquet: row 19, column 'profit': expected a number, got nan",
        ),
        ("train", [*PART, "log=own.parquet"], "ppo can't learn from a log"),
        ("train", ["algo=bandit", "env=offers_sequential", "log=own.parquet"], "doesn't fit an environment of 23"),
    ):
        done = script(folder, name, *overrides)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert message in done.stderr
    assert not (folder / "x.csv").exists()
