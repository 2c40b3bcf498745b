"""Kill trainings and writers at random moments: nothing may be half-written, and a resumed run may not differ.

A training is killed (SIGKILL) or asked to stop (SIGTERM) some times, each time resumed from its checkpoint, and then
runs to its end. Its metrics and its checkpoint must equal those of a run that nobody killed, bit for bit.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch

from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.reliability.forked_scripts import SIGNALS, finish, importable
from scripts.benchmarks.reliability.killed_trainings import kill_training
from scripts.benchmarks.reliability.killed_writers import (
    check_file,
    check_folder,
    kill_collect,
    kill_writer,
    write_files,
    write_folders,
)

COUNTS = {
    "half_written": "half-written files",
    "temporaries": "temporaries left",
    "runs_resumed": "runs resumed",
    "differ": "of them differ",
}


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    kills: dict[str, int],
    kills_in_a_row: int,
    writing_seconds: float,
    log: list[str],
    settings: dict[str, list[str]],
    trainings: dict[str, dict[str, list[str]]],
) -> dict:
    """Kill `trainings` and writers as often as `kills` says of each; return what was found wrong."""
    rng = random.Random(seed)
    common = [f"device={device}", "threads=1"]
    rows = {}
    with importable():
        log_path = directory / "log.parquet"
        finish("collect", [*log, f"out={log_path}", *common], directory / "collect")
        for env, of_env in trainings.items():
            for name, overrides in of_env.items():
                chosen = [f"algo={name}", f"env={env}", *settings[env], *overrides, *common]
                chosen = [override.format(log=log_path, cache="{cache}") for override in chosen]
                rows[name] = kill_training(rng, directory / name, chosen, kills[name], kills_in_a_row)
        rows["collect"] = kill_collect(rng, directory / "writers", [*log, *common], kills["collect"])
        for name, write, check in (("checkpoint", write_files, check_file), ("folder", write_folders, check_folder)):
            rows[name] = kill_writer(rng, directory / name, write, check, kills[name], writing_seconds)
    found = {name: outcome.to_metrics() for name, outcome in rows.items()}
    lines = [
        [name, *(str(row["signals"].get(x.name, 0)) for x in SIGNALS), *(str(row[key]) for key in COUNTS)]
        for name, row in found.items()
    ]
    show(text_table("killed at random moments", ["", *(x.name for x in SIGNALS), *COUNTS.values()], lines))
    return {"killed": found, **{key: sum(row[key] for row in found.values()) for key in ("kills", *COUNTS)}}
