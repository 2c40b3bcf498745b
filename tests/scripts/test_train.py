"""The scripts as a user runs them: results, resume, multirun, interrupts, bad input."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import script_runner
from rlcore.ppo import PPO
from script_runner import PATIENCE, launch_training, wait_until
from small_runs import OFFERS

ROOT = Path(__file__).parents[2]
ITERATION = 48 * 12
pytestmark = pytest.mark.slow


def sized(*overrides):
    """Overrides for a small size, plus the given ones; a checkpoint has its own, and a twin has a base population."""
    if any(x.startswith("checkpoint=") for x in overrides):
        return ["device=cpu", "threads=1", *overrides]
    small = OFFERS
    if "env/population=twin" in overrides:
        small = [x.replace("env.population.", "env.population.base.") for x in small]
    said = {x.partition("=")[0] for x in overrides}
    return [*(x for x in small if x.partition("=")[0] not in said), *overrides]


def run(tmp_path, script, *overrides, check=True):
    """Run a script in a folder of its own."""
    done = script_runner.run(tmp_path, script, *sized(*overrides))
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def killed_in_its_third_update(*of_script):
    """Run a script, which dies in the middle of its third iteration."""
    update, calls = PPO.update, itertools.count(1)

    def die(self, batch):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, batch)

    PPO.update = die
    script_runner.run_here(*of_script)


def metrics(folder):
    """metrics.json without its timings."""
    return {
        k: v
        for k, v in json.loads((folder / "metrics.json").read_text()).items()
        if k not in ("seconds", "steps_per_second")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 6 iterations."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, "train", f"algo.total_steps={6 * ITERATION}", "hydra.run.dir=out")
    return folder / "out", done


def test_a_run_leaves_everything_it_promises(whole):
    folder, done = whole
    assert {"checkpoint.pt", "metrics.json", "prices.png", "lost_profit.png", "training.png"} <= {
        p.name for p in folder.iterdir()
    }
    result = json.loads((folder / "metrics.json").read_text())
    assert result["steps"] == 6 * ITERATION and result["steps_per_second"] > 0
    assert {"value", "none", "prices", "gap"} <= set(result["bound"])
    names = set(result["policies"])
    assert {
        "none",
        "random",
        "propensity",
        "uplift rank",
        "myopic knapsack",
        "planning on θ̂",
        "planning",
        "ppo",
    } <= names
    for row in result["policies"].values():
        assert {
            "information",
            "score",
            "score_ci",
            "incremental_profit",
            "spend_ratio",
            "weeks_breached",
            "contact_rate",
        } <= set(row)
        assert row["score_ci"][0] <= row["score"] <= row["score_ci"][1]
    assert all(name in done.stdout for name in names)
    log = (folder / "train.log").read_text()
    assert all(f"iteration {k + 1}, step {(k + 1) * ITERATION}: losses/policy_loss " in log for k in range(6))
    assert "evaluation, step 1152: validation/score " in log and all(f"| {name} |" in log for name in names)


def test_tensorboard_has_the_fields_names(whole):
    events = EventAccumulator(str(whole[0]), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        "losses/policy_loss",
        "losses/value_loss",
        "losses/entropy",
        "losses/approx_kl",
        "losses/old_approx_kl",
        "losses/clipfrac",
        "losses/explained_variance",
        "charts/SPS",
        "charts/learning_rate",
        "validation/score",
    } <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("losses/approx_kl")] == [k * ITERATION for k in range(1, 7)]
    assert {"test/prices", "test/lost_profit", "test/training"} <= set(tags["images"])
    assert "test/table/text_summary" in tags["tensors"]


@pytest.mark.long
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path):
    overrides, files = sized(f"algo.total_steps={6 * ITERATION}", "hydra.run.dir=cut"), (tmp_path / "o", tmp_path / "e")
    process = script_runner.start(killed_in_its_third_update, str(tmp_path), "train", overrides, *map(str, files))
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL, files[1].read_text()[-3000:]
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["agent"]["iteration"] == 2
    assert not (tmp_path / "cut" / "metrics.json").exists()
    run(tmp_path, "train", f"algo.total_steps={6 * ITERATION}", "hydra.run.dir=on", "resume=cut/checkpoint.pt")
    assert metrics(tmp_path / "on") == metrics(whole[0])
    done = run(tmp_path, "train", f"algo.total_steps={6 * ITERATION}", "hydra.run.dir=end", "resume=on/checkpoint.pt")
    assert "on/checkpoint.pt had ended its training (6 of 6 iterations): nothing more is learned" in done.stdout
    assert metrics(tmp_path / "end") == metrics(whole[0])


@pytest.mark.long
def test_evaluate_gives_a_checkpoint_the_same_result(whole, tmp_path):
    run(tmp_path, "evaluate", f"checkpoint={whole[0] / 'checkpoint.pt'}", "hydra.run.dir=again")
    assert metrics(tmp_path / "again") == metrics(whole[0])
    run(
        tmp_path,
        "evaluate",
        f"checkpoint={whole[0] / 'checkpoint.pt'}",
        "hydra.run.dir=more",
        "env.evaluation.customers=33",
    )
    assert metrics(tmp_path / "more")["customers"] == 33
    refused = run(tmp_path, "evaluate", f"checkpoint={whole[0] / 'checkpoint.pt'}", "env/world=static", check=False)
    assert refused.returncode == 2 and "env/world=static" in refused.stderr


@pytest.mark.long
def test_ctrl_c_saves_and_leaves(tmp_path):
    overrides = sized(
        f"algo.total_steps={100000 * ITERATION}",
        "hydra.run.dir=out",
        "algo.checkpoint_every=100000",
        "algo.eval_every=100000",
    )
    process = launch_training(tmp_path, *overrides)
    log = tmp_path / "out" / "train.log"
    wait_until(lambda: log.exists() and "iteration 1," in log.read_text(), lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err and "resume=" in out
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["agent"]["iteration"] >= 1


@pytest.mark.long
def test_multirun_finishes_and_a_bad_job_fails_alone(tmp_path):
    done = run(
        tmp_path,
        "train",
        f"algo.total_steps={2 * ITERATION}",
        "algo.minibatches=4,7",
        "hydra.mode=MULTIRUN",
        "hydra.sweep.dir=sweep",
        check=False,
    )
    assert done.returncode == 2
    assert (tmp_path / "sweep" / "0_algo.minibatches=4" / "metrics.json").exists()
    assert not (tmp_path / "sweep" / "1_algo.minibatches=7" / "metrics.json").exists()
    assert done.stderr.count("error: ") == 1 and "algo.minibatches: expected " in done.stderr


@pytest.mark.long
def test_torchrun_trains_by_two_processes_of_which_one_writes(tmp_path):
    def torchrun(*overrides, processes):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={processes}",
                str(ROOT / "scripts" / "train.py"),
                "env=offers_sequential",
                "env.num_agents=4",
                "device=cpu",
                "env.evaluation.worlds=2",
                "env.evaluation.validation=2",
                "algo.total_steps=512",
                "algo.eval_every=1",
                *overrides,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    done = torchrun("hydra.run.dir=out", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 512  # of all agents
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    kept = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    first, second = kept["shards"]
    assert kept["config"]["env"]["num_agents"] == 4 and first["env"]["budget_left"].shape == second["env"][
        "budget_left"
    ].shape == (2,)
    assert not torch.equal(first["generator"], second["generator"])
    done = torchrun("resume=out/checkpoint.pt", "hydra.run.dir=on", processes=1)
    assert (
        "2 processes made it, 1 can't go on from it" in done.stderr and not (tmp_path / "on" / "metrics.json").exists()
    )


@pytest.mark.long
def test_ctrl_c_under_torchrun_keeps_a_checkpoint_of_both_processes_and_says_one_line(tmp_path):
    overrides = ["env.num_agents=4", "algo.total_steps=10000000", "algo.eval_every=10000", "algo.checkpoint_every=1"]
    with (tmp_path / "log.txt").open("w") as log:
        torchrun = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
                *(str(ROOT / "scripts" / "train.py"), "env=offers_sequential", "device=cpu", "hydra.run.dir=out"),
                *overrides,
            ],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        saved = tmp_path / "out" / "checkpoint.pt"
        wait_until(saved.exists, lambda: torchrun.poll() is None)
        torchrun.send_signal(signal.SIGINT)  # as a terminal does: its processes are in groups of their own
        assert torchrun.wait(PATIENCE) == 1  # torchrun's own, after its own traceback
    said = (tmp_path / "log.txt").read_text()
    (line,) = re.findall(r"stopped after iteration (\d+) of \d+; go on with resume=", said)
    assert str(ROOT) not in said.partition("Traceback")[2] and said.count("Traceback") == 1
    kept = torch.load(saved, weights_only=True)
    assert kept["agent"]["iteration"] == int(line) and len(kept["shards"]) == 2


@pytest.mark.long
def test_hydras_joblib_launcher_runs_jobs_beside_each_other(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "train.py"),
            "-m",
            "env=offers_sequential",
            "env.num_agents=4",
            "device=cpu",
            "env.evaluation.worlds=2",
            "env.evaluation.validation=2",
            "algo.total_steps=1",
            "algo.minibatches=1,7",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
            "hydra.sweep.dir=sweep",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "algo.minibatches: expected " in done.stderr
    assert (tmp_path / "sweep" / "0_algo.minibatches=1" / "metrics.json").exists() and not (
        tmp_path / "sweep" / "1_algo.minibatches=7" / "metrics.json"
    ).exists()


@pytest.mark.parametrize(
    "override, says",
    [
        ("resume=nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("resume=setup.cfg", "not a checkpoint"),
        ("hydra.run.dir=setup.cfg", "hydra.run.dir: setup.cfg: File exists"),
        ("hydra.run.dir=setup.cfg/run", "hydra.run.dir: setup.cfg/run: Not a directory"),
        ("env.population.r2=1.5", "env.population.r2"),
        ("env.catalogue.channels.email.cost=-1", "env.catalogue.channels.email.cost"),
        ("env.reward.outcomes=guessed", "env.reward.outcomes"),
        ("env=offers_twin", "env.twin: expected the path"),
        ("env/population=twin", "env.population.path: expected the path"),
        ("env.num_agents=many", "env.num_agents: expected a number, as in env.num_agents=4000, got 'many'"),
        ("algo.norm_reward=no", "algo.norm_reward: expected true or false"),
        ("algo.network.hidden=16", "algo.network.hidden: expected a list"),
        ("algo.network=16", "algo.network: expected keys"),
        ("env.num_agents=true", "env.num_agents: expected a number"),
        ("float32_matmul_precision=fast", "float32_matmul_precision: expected highest or high, got 'fast'"),
    ],
)
def test_bad_input_gets_one_line_and_code_2(tmp_path, override, says):
    (tmp_path / "setup.cfg").write_text("[metadata]\n")
    done = run(tmp_path, "train", override, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0]


def test_a_typo_is_one_line_too(tmp_path):
    done = run(tmp_path, "train", "algo.clipp=0.1", check=False)
    assert done.returncode == 2
    assert done.stderr == "error: algo.clipp: no such key; did you mean algo.clip?\n"
