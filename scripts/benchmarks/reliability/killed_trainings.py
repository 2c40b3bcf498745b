"""Trainings that are killed, resumed from their checkpoints, and compared with one that nobody killed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from rlcore.runs import checkpoint
from scripts.benchmarks.reliability.forked_scripts import (
    ENDED,
    Outcome,
    check_exit,
    count_temporaries,
    finish,
    kill,
    start_script,
)

TIMINGS = ("seconds", "steps_per_second", "evaluation_seconds")
PNG_END = b"IEND\xaeB`\x82"


def kill_training(rng: random.Random, folder: Path, overrides: list[str], kills: int, in_a_row: int) -> Outcome:
    """Kill a training `kills` times, in chains of at most `in_a_row` that each run to their end at last."""
    if not kills:
        return Outcome(Counter(), 0, 0)
    whole = folder / "whole"
    seconds = finish("train", with_cache(overrides, whole), whole)
    signals: Counter[str] = Counter()
    half_written = temporaries = resumed = differ = 0
    while signals.total() < kills:
        chain = folder / f"chain_{resumed}"
        for _ in range(min(in_a_row, kills - signals.total())):
            process = start_script("train", with_resume(overrides, chain), chain)
            was_running = kill(rng, process, seconds, signals)
            check_exit(process, chain, ENDED)
            half_written += count_half_written(chain)
            if not was_running:
                break
        finish("train", with_resume(overrides, chain), chain)
        resumed += 1
        half_written += count_half_written(chain)
        temporaries += count_temporaries(chain)
        differ += not equal_runs(chain, whole)
    return Outcome(signals, half_written, temporaries, resumed, differ)


def with_cache(overrides: list[str], folder: Path) -> list[str]:
    """Give a run a cache of models of its own, where its overrides ask for one."""
    return [x.format(cache=folder / "cache") for x in overrides]


def with_resume(overrides: list[str], folder: Path) -> list[str]:
    """Let a run go on from its own checkpoint, if there is one."""
    path = folder / "checkpoint.pt"
    return [*with_cache(overrides, folder), *([f"resume={path}"] if path.exists() else [])]


def equal_runs(a: Path, b: Path) -> bool:
    """Tell whether two runs have the same metrics, but for their timings, and the same state of the algorithm."""
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (a, b)]
    for values in metrics:
        for key in TIMINGS:
            values.pop(key, None)
    states = [checkpoint.load(folder / "checkpoint.pt")["agent"] for folder in (a, b)]
    return metrics[0] == metrics[1] and equal_states(*states)


def equal_states(a: Any, b: Any) -> bool:
    """Tell whether nested containers of tensors are equal bit for bit; NaN equals NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal_states, a, b))
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return bool(a == b or (a != a and b != b))


def count_half_written(folder: Path) -> int:
    """Count a run's result files that can't be read."""
    found = 0
    for path in folder.glob("*"):
        try:
            if path.suffix == ".pt":
                checkpoint.load(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".png":
                found += not path.read_bytes().endswith(PNG_END)
        except ValueError:
            found += 1
    return found
