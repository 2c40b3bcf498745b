"""What every script shares: the device, one line for bad input, and an exit code that tells."""
from __future__ import annotations

import functools
import sys
from typing import Callable

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode

failed: list[str] = []


def guarded(main: Callable) -> Callable:
    """Turn bad input (ValueError, OSError), however deep, into one line and exit code 2.

    In a multirun the job fails alone; `finish` gives the exit code after the last one.
    """
    @functools.wraps(main)
    def run(cfg):
        try:
            return main(cfg)
        except (ValueError, OSError, InstantiationException) as error:
            while isinstance(error, InstantiationException) and error.__cause__ is not None:
                error = error.__cause__
            if not isinstance(error, (ValueError, OSError)):
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            failed.append(str(error))
            if HydraConfig.get().mode == RunMode.RUN:
                sys.exit(2)
            return None
    return run


def finish() -> None:
    """Leave with exit code 2 if a job failed."""
    if failed:
        sys.exit(2)


def choose_device(name: str, threads: int | None) -> torch.device:
    """Return the device asked for (`auto`: a GPU if there is one) and set the number of CPU threads."""
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    torch.set_flush_denormal(True)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: '{name}' can't be used here: {str(error).splitlines()[0]}") from error
    return device
