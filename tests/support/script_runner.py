"""Scripts as a user runs them, each in a process of its own, forked from one that has the imports behind it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["script_runner_preload"])


def run(folder: Path, script: str, *overrides: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run scripts/SCRIPT.py in a folder, as subprocess.run does with its output as text."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = (Path(kept) / name for name in ("out", "err"))
        process = start(_run, str(folder), script, overrides, str(out), str(err))
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([script, *overrides], timeout, out.read_text(), err.read_text())
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


def _run(folder: str, script: str, overrides: tuple[str, ...], *files: str) -> None:
    for descriptor, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.pop("PYTHONPATH", None)
    path = str(ROOT / "scripts" / f"{script}.py")
    sys.argv = [path, *overrides]
    sys.path[0] = str(ROOT / "scripts")
    runpy.run_path(path, run_name="__main__")
