"""Scripts as a user runs them, each in a process of its own, forked from one that has the imports behind it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.reliability.forked_scripts import FORKED  # a process has one server: its last list holds

ROOT = Path(__file__).parents[2]
FORKED.set_forkserver_preload(["script_runner_preload"])
PATIENCE = 3600.0  # seconds after which a process hangs, however slow the machine is


def run(folder: Path, script: str, *overrides: str) -> subprocess.CompletedProcess:
    """Run scripts/SCRIPT.py in a folder, as subprocess.run does with its output as text."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = (Path(kept) / name for name in ("out", "err"))
        process = start(run_here, str(folder), script, overrides, str(out), str(err))
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([script, *overrides], PATIENCE, out.read_text(), err.read_text())
        return subprocess.CompletedProcess([script, *overrides], process.exitcode, out.read_text(), err.read_text())


def start(target: Callable, *args) -> multiprocessing.Process:
    """Start a function in a process of its own."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where the server, when it starts, finds what to import
    try:
        process = FORKED.Process(target=target, args=args)
        process.start()
        return process
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def launch_training(folder: Path, *overrides: str) -> subprocess.Popen:
    """Start scripts/train.py in a folder, as a process that can be sent signals, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_until(has_happened: Callable[[], bool], is_running: Callable[[], bool]) -> None:
    """Wait for what a process or a thread does; fail where it ended without having done that, or hangs."""
    patience = time.monotonic() + PATIENCE
    while not has_happened():
        assert is_running() or has_happened(), "it ended before"
        assert time.monotonic() < patience, "it hangs"
        time.sleep(0.01)


def run_here(folder: str, script: str, overrides: tuple[str, ...], *files: str) -> None:
    """Run a script in this process, its output in files."""
    for descriptor, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.pop("PYTHONPATH", None)
    path = str(ROOT / "scripts" / f"{script}.py")
    sys.argv = [path, *overrides]
    sys.path[0] = str(ROOT / "scripts")
    runpy.run_path(path, run_name="__main__")
