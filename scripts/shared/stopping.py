"""Signals that ask a training to stop, and how it ends then."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from rlcore.algorithm import Algorithm
from scripts.shared.cli import INTERRUPTED
from scripts.shared.overrides import key_of

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1, signal.SIGHUP] if os.name == "posix" else []))
PLAIN = r"[A-Za-z0-9_./+@%-]+"  # values that neither Hydra nor a shell takes for more than they are


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Note a signal that asks to stop in the list returned, so that the iteration ends and is saved.

    Ctrl-C sends one, and so do schedulers and containers before they kill, and a terminal that closes. A second Ctrl-C
    ends the run at once. A signal that the process was started to ignore, as nohup does with a closing terminal's, is
    ignored on, but for Ctrl-C's. Where a training inside the run (a warm start) was stopped, the run exits with the
    signal's code.
    """
    seen: list[int] = []

    def note(number: int, _: Any) -> None:
        seen.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous[signal.SIGINT])

    heard = [number for number in STOP_SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in heard}
    try:
        yield seen
    except KeyboardInterrupt:
        if not seen or seen[0] == signal.SIGINT:
            raise
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + seen[0])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_stopped(algorithm: Algorithm, directory: Path | None, interrupted: list[int]) -> NoReturn:
    """Exit with the code that shells give for the signal, after a line on how to go on, if there is a directory."""
    if directory is not None:
        print(
            f"stopped after iteration {algorithm.iteration} of {algorithm.iterations}; go on with "
            f"{' '.join(overrides_to_go_on(directory / 'checkpoint.pt'))}"
        )
    sys.exit(128 + (interrupted or [signal.SIGINT])[0])


def overrides_to_go_on(path: Path) -> list[str]:
    """Return what resumes a run, as a shell reads it; for a sweep's job, with the overrides that chose this job."""
    hydra = HydraConfig.get()
    chosen = hydra.overrides.task if hydra.mode == RunMode.MULTIRUN else []
    kept = [override for override in chosen if key_of(override) != "resume"]
    value = str(path)
    if not re.fullmatch(PLAIN, value):
        value = '"{}"'.format(value.replace('"', '\\"'))
    return [shlex.quote(override) for override in (*kept, f"resume={value}")]
