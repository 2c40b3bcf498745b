"""Scripts and functions in processes that are forked, so that they start at once, and killed at random moments."""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.runs import checkpoint

ROOT = Path(__file__).resolve().parents[3]
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
ENDED = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a script that was killed or not
# A process that has the scripts' imports behind it forks the others, which so take no seconds to start.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["scripts.train", "scripts.collect", "email_rl.training.ppo", "email_rl.training.sft"])


@dataclass
class Outcome:
    """What the kills of one kind led to; `differ` of the `runs_resumed` differ from the run that nobody killed."""

    signals: Counter[str]  # kills by the name of their signal
    half_written: int
    temporaries: int  # left after the next start
    runs_resumed: int = 0
    differ: int = 0

    @property
    def kills(self) -> int:
        return self.signals.total()

    def to_metrics(self) -> dict:
        """Return the numbers as plain data."""
        return {**vars(self), "signals": dict(self.signals), "kills": self.kills}


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


def kill(rng: random.Random, process, seconds: float, signals: Counter[str]) -> bool:
    """Send one of SIGNALS after at most so many seconds; tell whether the process was still running."""
    process.join(rng.uniform(0.0, seconds))
    number = rng.choice(SIGNALS)
    was_running = process.exitcode is None
    if was_running:
        os.kill(process.pid, number)
        signals[number.name] += 1
    process.join()
    return was_running


def count_temporaries(folder: Path) -> int:
    """Count the temporary and the replaced files and folders in and below a folder."""
    return sum(1 for path in folder.rglob(".*") if path.name.endswith((checkpoint.TEMPORARY, checkpoint.REPLACED)))
