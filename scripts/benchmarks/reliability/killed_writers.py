"""Processes that write the same file or folder again and again and are killed; what they leave must be whole."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log
from rlcore.runs import checkpoint
from scripts.benchmarks.reliability.forked_scripts import (
    ENDED,
    Outcome,
    check_exit,
    count_temporaries,
    finish,
    kill,
    start,
    start_script,
)

WRITERS_SIZE = 1 << 16  # numbers in the tensor of the checkpoint that a writer writes


def kill_collect(rng: random.Random, folder: Path, overrides: list[str], kills: int) -> Outcome:
    """Kill collect.py, which writes one log again and again; the log must be whole or absent each time."""
    if not kills:
        return Outcome(Counter(), 0, 0)
    path = folder / "log.parquet"
    overrides = [*overrides, f"out={path}"]
    seconds = finish("collect", overrides, folder / "run")
    expected = len(read_log(path, COLUMNS))
    path.unlink()
    signals: Counter[str] = Counter()
    half_written = 0
    while signals.total() < kills:
        process = start_script("collect", overrides, folder / "run")
        kill(rng, process, seconds, signals)
        check_exit(process, folder / "run", ENDED)
        if path.exists():
            half_written += not is_whole(path, expected)
    finish("collect", overrides, folder / "run")
    return Outcome(signals, half_written, count_temporaries(folder))


def is_whole(path: Path, rows: int) -> bool:
    """Tell whether a log can be read and has all its rows."""
    try:
        return len(read_log(path, COLUMNS)) == rows
    except ValueError:
        return False


def kill_writer(
    rng: random.Random, folder: Path, write: Callable, check: Callable[[Path], bool], kills: int, seconds: float
) -> Outcome:
    """Kill a process that writes the same file or folder without a pause; check it each time."""
    folder.mkdir(parents=True)
    path = folder / "written"
    signals: Counter[str] = Counter()
    half_written = temporaries = 0
    while signals.total() < kills:
        process = start(write, path)
        while not path.exists():
            if process.exitcode is not None:
                raise ValueError(f"{path}: its writer ended with exit code {process.exitcode}")
            time.sleep(0.001)
        kill(rng, process, seconds, signals)
        checkpoint.sweep(folder)  # as the next start does
        half_written += not check(path)
        temporaries += count_temporaries(folder)
    return Outcome(signals, half_written, temporaries)


def write_files(path: Path) -> None:
    """Write checkpoints for ever, each full of one number."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    number = 0
    while True:
        number += 1
        agent = {"network": {"weight": torch.full((WRITERS_SIZE,), float(number))}, "number": number}
        checkpoint.save(path, {"agent": agent, "config": {}, "logger": {}, "name": "kills"})


def check_file(path: Path) -> bool:
    """Tell whether a checkpoint of `write_files` is whole."""
    try:
        agent = checkpoint.load(path)["agent"]
    except ValueError:
        return False
    return bool((agent["network"]["weight"] == agent["number"]).all())


def write_folders(path: Path) -> None:
    """Write folders of two files for ever, both with one number."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    number = 0

    def write(folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).write_text(str(number) * WRITERS_SIZE)

    while True:
        number += 1
        checkpoint.atomic_folder(path, write)


def check_folder(path: Path) -> bool:
    """Tell whether a folder of `write_folders` is whole."""
    if not path.is_dir():
        return False
    texts = [(path / name).read_text() if (path / name).exists() else "" for name in ("a", "b")]
    return texts[0] == texts[1] != "" and len(texts[0]) % WRITERS_SIZE == 0
