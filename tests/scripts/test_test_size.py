"""scripts/test_size.py as a shop runs it, on a log of sends: its table, its file, and one line for bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

import script_runner
from envs.configuration import CONF
from envs.offers.logs import send_log
from envs.offers.logs.customer_weeks import CustomerWeeks

pytest.importorskip("pyarrow")
OFFERS = ["nothing", *(f"euro_{value}" for value in ("0_50", "1_00", "1_50", "2_00", "2_50"))]
CHANNELS = ["push", "email", "in_app", "sms", "mail"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a log of twelve weeks of 200 customers, who buy as often as they used to."""
    path = tmp_path_factory.mktemp("shop")
    made = CustomerWeeks.empty(tuple(f"K{k}" for k in range(200)), 12)
    made.last[:] = 11
    made.bought[:] = np.random.default_rng(0).random((12, 200)) < np.linspace(0.05, 0.95, 200)
    made.margin[:] = 4.0 * made.bought
    send_log.write(path / "log.parquet", made, send_log.Calendar(False, 0, 12, 12, True, 1.0, 0.0), OFFERS, CHANNELS)
    (path / "sends.csv").write_text("customer,date\n")
    return path


@pytest.mark.slow
def test_the_table_of_a_log(folder):
    done = script_runner.run(folder, "test_size", "log=log.parquet", "arms.bau=0.3", "hydra.run.dir=size")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "size" / "metrics.json").read_text())
    assert list(found["weeks"]) == ["4"]  # the log has too few weeks for the other lengths
    row = found["weeks"]["4"]
    assert 0 < row["adjusted"] < row["plain"] and row["correlation"] > 0.5
    assert found["customers"] == pytest.approx({"rl": 200 * 0.95 * 0.99 * 0.7, "bau": 200 * 0.95 * 0.99 * 0.3})
    shown = " ".join(done.stdout.split())
    assert f"{row['plain']:.3g} ({row['plain'] / row['mean']:.1%})" in shown
    assert "left out, without as many weeks before: 8, 12, 26 weeks" in shown


def test_the_arms_are_those_of_a_plan_but_for_bau():
    """Which is 0 in a plan, so that nothing could be compared."""
    of_test, of_plan = (yaml.safe_load((CONF / f"{name}.yaml").read_text())["arms"] for name in ("test_size", "plan"))
    assert {**of_plan, "bau": 0.5} == {**of_test, "salt": None}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("test_size", ["log=log.parquet"], "hydra.mode=MULTIRUN: each job of a sweep would print the same"),
        ("import_sends", ["out=new.parquet"], "out=new.parquet: each job of a sweep would write it"),
    ],
)
def test_an_experiment_that_is_a_sweep_is_refused_or_one_job(folder, name, overrides, message):
    """Each job has its line, and Hydra no warning of a callback of the experiment's."""
    few = ["experiment=information", "env.population.r2=0.3", "env/observation=history", *overrides]
    done = script_runner.run(folder, name, *few, "seed=0,1")
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2 and len(lines) == 2, done.stderr[-2000:]
    assert all(line.startswith(f"error: {message}") for line in lines)
    assert not (folder / "new.parquet").exists()
    done = script_runner.run(folder, name, *few, "seed=0", "hydra.mode=RUN", "hydra.run.dir=one")
    if name == "test_size":
        assert done.returncode == 0 and not done.stderr and (folder / "one/metrics.json").exists()
    else:  # as far as the files of sends, which are not given
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: sends.path")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "log: expected the path of a log of sends, as in log=log.parquet"),
        (["log=sends.csv"], "sends.csv: expected a log that scripts/import_sends.py wrote"),
        (["log=log.parquet", "arms.bau=1"], "arms: expected shares that give rl and bau two customers or more each"),
        (["log=log.parquet", "weeks=[7]"], "weeks: expected a number of weeks with as many before it in the log"),
        (["log=log.parquet", "power=0.4"], "power: expected a number in [0.5, 1), got 0.4"),
        (["log=log.parquet", "env=email"], "env: expected the offers and channels of log.parquet"),
    ],
)
def test_bad_input_is_one_line(folder, overrides, message):
    done = script_runner.run(folder, "test_size", *overrides)
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}"), line
