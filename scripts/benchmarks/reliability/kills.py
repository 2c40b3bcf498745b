"""Kill trainings and writers at random moments: nothing may be half-written, and a resumed run may not differ.

A training is killed (SIGKILL) or asked to stop (SIGTERM) some times, each time resumed from its checkpoint, and then
runs to its end. Its metrics and its checkpoint must equal those of a run that nobody killed, bit for bit.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.offers.logs.schema import COLUMNS
from rlcore.offline.log_files import read_log
from rlcore.runs import checkpoint
from scripts.benchmarks.common.display import show, table_of

ROOT = Path(__file__).resolve().parents[3]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
ENDED = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a script that was killed or not
TIMINGS = ("seconds", "steps_per_second")
WRITERS_SIZE = 1 << 16  # numbers in the tensor of the checkpoint that a writer writes
PNG_END = b"IEND\xaeB`\x82"
# A process that has the scripts' imports behind it forks the others, which so take no seconds to start.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["scripts.train", "scripts.collect", "email_rl.training.ppo", "email_rl.training.sft"])


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    kills: int,
    kills_in_a_row: int,
    writers: dict[str, int],
    writing_seconds: float,
    log: list[str],
    settings: dict[str, list[str]],
    trainings: dict[str, dict[str, list[str]]],
) -> dict:
    """Kill each of `trainings` `kills` times and the `writers` as often as they say; return what was found wrong."""
    rng = random.Random(seed)
    common = [f"device={device}", "threads=1"]
    rows = {}
    with importable():
        log_path = directory / "log.parquet"
        finish("collect", [*log, f"out={log_path}", *common], directory / "collect")
        for env, of_env in trainings.items():
            for name, overrides in of_env.items():
                chosen = [f"algo={name}", f"env={env}", *settings[env], *overrides, *common]
                chosen = [x.format(log=log_path, cache="{cache}") for x in chosen]
                rows[name] = kill_training(rng, directory / name, chosen, kills, kills_in_a_row)
        rows["collect"] = kill_collect(rng, directory / "writers", [*log, *common], writers["collect"])
        for name, write, check in (("checkpoint", write_files, check_file), ("folder", write_folders, check_folder)):
            rows[name] = kill_writer(rng, directory / name, write, check, writers[name], writing_seconds)
    found = ("kills", "half_written", "temporaries", "runs_resumed", "differ")
    columns = ["", "SIGKILL", "SIGTERM", "half-written files", "temporaries left", "runs resumed", "of them differ"]
    lines = [
        [name, *(str(row["signals"].get(x.name, 0)) for x in SIGNALS), *(str(row[key]) for key in found[1:])]
        for name, row in rows.items()
    ]
    show(table_of("killed at random moments", columns, lines))
    return {"killed": rows, **{key: sum(row[key] for row in rows.values()) for key in found}}


def outcome(signals: Counter, half_written: int, temporaries: int, resumed: int = 0, differ: int = 0) -> dict:
    """Name the results of the kills of one kind."""
    return {
        "kills": sum(signals.values()),
        "signals": dict(signals),
        "half_written": half_written,
        "temporaries": temporaries,
        "runs_resumed": resumed,
        "differ": differ,
    }


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def importable() -> Iterator[None]:
    """Let the server of forks import this project in this context."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start(target: Callable, *arguments: Any):
    """Start a function in a process of its own."""
    process = FORKED.Process(target=target, args=arguments)
    process.start()
    return process


def run_script(script: str, overrides: list[str], output: str) -> None:
    """Run a script as from the command line, its output added to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    path = str(ROOT / "scripts" / f"{script}.py")
    sys.argv = [path, *overrides]
    runpy.run_path(path, run_name="__main__")


def start_script(script: str, overrides: list[str], folder: Path):
    """Start a script that writes its run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    output = str(folder.with_name(f"{folder.name}.txt"))
    return start(run_script, script, [*overrides, f"hydra.run.dir={folder}"], output)


def finish(script: str, overrides: list[str], folder: Path) -> float:
    """Run a script to its end; return its seconds. Raises ValueError where the script fails."""
    started = time.perf_counter()
    process = start_script(script, overrides, folder)
    process.join()
    check_exit(process, folder, (0,))
    return time.perf_counter() - started


def check_exit(process, folder: Path, expected: tuple[int, ...]) -> None:
    """Raise ValueError, with the end of its output, where a script ended in another way than expected."""
    if process.exitcode not in expected:
        output = folder.with_name(f"{folder.name}.txt").read_text().strip().splitlines()
        raise ValueError(f"{folder}: exit code {process.exitcode}: {' / '.join(output[-3:])}")


def kill(rng: random.Random, process, seconds: float, signals: Counter) -> bool:
    """Send one of SIGNALS after at most so many seconds; tell whether the process was still running."""
    process.join(rng.uniform(0.0, seconds))
    number = rng.choice(SIGNALS)
    was_running = process.exitcode is None
    if was_running:
        os.kill(process.pid, number)
        signals[number.name] += 1
    process.join()
    return was_running


# ── trainings ───────────────────────────────────────────────────────────────────────────────────────────────────────
def kill_training(rng: random.Random, folder: Path, overrides: list[str], kills: int, in_a_row: int) -> dict:
    """Kill a training `kills` times, in chains of at most `in_a_row` that each run to their end at last."""
    if not kills:
        return outcome(Counter(), 0, 0)
    whole = folder / "whole"
    seconds = finish("train", with_cache(overrides, whole), whole)
    signals: Counter = Counter()
    half_written = temporaries = resumed = differ = 0
    while sum(signals.values()) < kills:
        chain = folder / f"chain_{resumed}"
        for _ in range(min(in_a_row, kills - sum(signals.values()))):
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
    return outcome(signals, half_written, temporaries, resumed, differ)


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
            values.pop(key)
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


def count_temporaries(folder: Path) -> int:
    """Count the temporary and the replaced files and folders in and below a folder."""
    return sum(1 for path in folder.rglob(".*") if path.name.endswith((checkpoint.TEMPORARY, checkpoint.REPLACED)))


# ── writers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def kill_collect(rng: random.Random, folder: Path, overrides: list[str], kills: int) -> dict:
    """Kill collect.py, which writes one log again and again; the log must be whole or absent each time."""
    if not kills:
        return outcome(Counter(), 0, 0)
    path = folder / "log.parquet"
    overrides = [*overrides, f"out={path}"]
    seconds = finish("collect", overrides, folder / "run")
    expected = len(read_log(path, COLUMNS))
    path.unlink()
    signals: Counter = Counter()
    half_written = 0
    while sum(signals.values()) < kills:
        process = start_script("collect", overrides, folder / "run")
        kill(rng, process, seconds, signals)
        check_exit(process, folder / "run", ENDED)
        if path.exists():
            half_written += not is_whole(path, expected)
    finish("collect", overrides, folder / "run")
    return outcome(signals, half_written, count_temporaries(folder))


def is_whole(path: Path, rows: int) -> bool:
    """Tell whether a log can be read and has all its rows."""
    try:
        return len(read_log(path, COLUMNS)) == rows
    except ValueError:
        return False


def kill_writer(
    rng: random.Random, folder: Path, write: Callable, check: Callable[[Path], bool], kills: int, seconds: float
) -> dict:
    """Kill a process that writes the same file or folder without a pause; check it each time."""
    folder.mkdir(parents=True)
    path = folder / "written"
    signals: Counter = Counter()
    half_written = temporaries = 0
    while sum(signals.values()) < kills:
        process = start(write, path)
        while not path.exists():
            time.sleep(0.001)
        kill(rng, process, seconds, signals)
        checkpoint.sweep(folder)  # as the next start does
        half_written += not check(path)
        temporaries += count_temporaries(folder)
    return outcome(signals, half_written, temporaries)


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
