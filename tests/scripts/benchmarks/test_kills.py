"""The bench of kills finds what it looks for: half-written files, temporaries that stay, runs that differ."""

from __future__ import annotations

import io
import json
import math
import random
import time

import pytest
import torch

from configs import composed
from rlcore.runs import checkpoint
from scripts.benchmarks.reliability.forked_scripts import count_temporaries, importable
from scripts.benchmarks.reliability.killed_trainings import count_half_written, equal_runs
from scripts.benchmarks.reliability.killed_writers import check_file, kill_writer, write_files


def write_run(folder, weight: float = 1.0, **metrics) -> None:
    """Write the files of a run of one weight."""
    folder.mkdir()
    agent = {"network": {"w": torch.tensor([weight, 2.0])}, "kl": torch.tensor(math.nan), "iteration": 3}
    checkpoint.save(folder / "checkpoint.pt", {"agent": agent, "config": {}, "logger": {}, "name": "ppo"})
    (folder / "metrics.json").write_text(
        json.dumps({"seconds": metrics.pop("seconds"), "steps_per_second": 2, **metrics})
    )


def test_runs_are_equal_but_for_their_timings(tmp_path):
    write_run(tmp_path / "a", seconds=1, score=0.5)
    write_run(tmp_path / "same", seconds=9, evaluation_seconds=4, score=0.5)
    write_run(tmp_path / "score", seconds=1, score=0.6)
    write_run(tmp_path / "weight", weight=1.0 + 2**-23, seconds=1, score=0.5)
    found = {name: equal_runs(tmp_path / "a", tmp_path / name) for name in ("same", "score", "weight")}
    assert found == {"same": True, "score": False, "weight": False}


@pytest.mark.long
def test_the_overrides_of_all_that_it_starts_are_keys_of_today():
    bench = composed("benchmark=reliability/kills", name="bench").benchmark
    composed(*bench.log, name="collect")
    for env, of_env in bench.trainings.items():
        for name, overrides in of_env.items():
            filled = [override.format(log="log.parquet", cache="cache") for override in overrides]
            cfg = composed(f"algo={name}", f"env={env}", *bench.settings[env], *filled)
            assert name == "twin" or cfg.algo.checkpoint_every == 1  # or a kill would find nothing to go on from


def test_half_written_files_and_temporaries_are_counted(tmp_path):
    write_run(tmp_path / "run", seconds=1)
    assert count_half_written(tmp_path / "run") == count_temporaries(tmp_path) == 0
    for name in ("checkpoint.pt", "metrics.json"):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "run" / "prices.png").write_bytes(b"\x89PNG")
    (tmp_path / "run" / f".x{checkpoint.TEMPORARY}").touch()
    (tmp_path / f".x{checkpoint.REPLACED}").mkdir()
    assert count_half_written(tmp_path / "run") == 3 and count_temporaries(tmp_path) == 2


def write_carelessly(path) -> None:
    """Write a checkpoint for ever, without the temporary file, and slowly, so that most kills meet half of it."""
    state = {"agent": {"network": {"weight": torch.ones(8)}, "number": 1}, "config": {}, "logger": {}, "name": ""}
    whole = io.BytesIO()
    torch.save(state, whole)
    half = len(whole.getvalue()) // 2
    while True:
        with path.open("wb") as file:
            file.write(whole.getvalue()[:half])
            file.flush()
            time.sleep(0.1)
            file.write(whole.getvalue()[half:])


@pytest.mark.long
def test_a_careful_writer_leaves_whole_files_and_a_careless_one_does_not(tmp_path):
    rng = random.Random(0)
    with importable():
        careful = kill_writer(rng, tmp_path / "a", write_files, check_file, 8, 0.05)
        careless = kill_writer(rng, tmp_path / "b", write_carelessly, check_file, 40, 0.05)
    assert careful.kills == 8 and careful.half_written == careful.temporaries == 0
    assert careless.half_written > 0
