"""Shared parts of all scripts: the device, one line for bad input, and the exit code."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from envs.configuration import CONF
from scripts.shared.explanations import explained, explained_input
from scripts.shared.overrides import check_config, overrides_first

# variables in the environment of all processes that a launcher starts
FAILED = "CRM_RL_FAILED"  # the folder in which a failed job leaves a file
TRACEBACKS = "CRM_RL_TRACEBACKS"  # 1: the user asks for them by HYDRA_FULL_ERROR=1

INTERRUPTED = "interrupted; what had been saved is kept"
UNEXPECTED = "crm_rl_unexpected"  # attribute of an error of a job that is not about its input
MAX_NAME = 150  # characters of the name of a job's folder: file systems take 255 bytes


def folder_name(number: int, overrides: str) -> str:
    """Name the folder of a sweep's job by its number and overrides, without what no folder's name may have."""
    name = "".join("." if letter in "/\\" else letter for letter in f"{number}_{overrides}")
    return name[:MAX_NAME].rstrip("_. ")


OmegaConf.register_new_resolver("job_folder", folder_name, replace=True)  # conf/train.yaml


def guarded(main: Callable) -> Callable:
    """Turn bad input (ValueError, OSError, a part that can't be built) at any depth into one line and exit code 2.

    In a multirun the job fails alone; `launch` gives the exit code after the last one.
    """

    @functools.wraps(main)
    def run(cfg):
        try:
            check_config(cfg)
            return main(cfg)
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if os.environ.get(TRACEBACKS) == "1":
                raise
            line = explained_input(error, cfg)
            if line is None:
                setattr(error, UNEXPECTED, True)
                raise
            print(f"error: {line}", file=sys.stderr)
            if HydraConfig.get().mode == RunMode.RUN:
                sys.exit(2)
            folder = os.environ.get(FAILED)
            if not folder or not os.path.isdir(folder):
                raise  # a job on another machine
            tempfile.mkstemp(dir=folder)
            return None

    return run


def launch(main: Callable[[], None], groups: tuple[str, ...] = ()) -> None:
    """Run a script, with its jobs by Hydra's launcher; exit with code 2 if a job failed.

    --help prints the script's docstring and the choices of its `groups`.

    A configuration that Hydra can't compose ends with one line and exit code 2, too.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage(sys.modules["__main__"].__doc__ or "", groups))
        return
    os.environ.setdefault(TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", "0"))
    try:
        sys.argv[1:] = overrides_first(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    threading.excepthook = report_thread
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors in its own way, and exits
    with ended_by_sigterm(), tempfile.TemporaryDirectory() as folder:
        os.environ[FAILED] = folder
        try:
            main()
        except KeyboardInterrupt:
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
        except Exception as error:  # of a job, or outside of jobs: Hydra could not compose, or make the run's folder
            if os.environ[TRACEBACKS] == "1" or hasattr(error, UNEXPECTED):
                raise
            print(f"error: {explained(error, Path(sys.argv[0]).stem)}", file=sys.stderr)
            sys.exit(2)
        if os.listdir(folder):
            sys.exit(2)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM, such as a container gets before it is killed, end the script like an exit, with the signal's code.

    The exit is raised wherever the program is. Where it meets code that is half-way through a change, such as
    OmegaConf's, another error may arise in its place; the code is still the signal's.
    """
    code = 128 + signal.SIGTERM
    received: list[int] = []

    def end(number: int, _: Any) -> None:
        received.append(number)
        sys.exit(code)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        if received:
            sys.exit(code)
        raise


def usage(docstring: str, groups: tuple[str, ...]) -> str:
    """Return a script's help: its docstring, the choices of its groups of conf/, and where more is said."""
    lines = [docstring.strip(), ""]
    for group in groups:
        folder = CONF / group
        choices = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        own = [choice for choice in choices if "/" not in choice] or choices  # a group's own groups hold its parts
        lines.append(f"  {group}=  {' | '.join(own)}")
    lines.append("  --cfg job: every key and value; --info defaults: the files they come from; --hydra-help: all flags")
    return "\n".join(lines)


def report_thread(failed: threading.ExceptHookArgs) -> None:
    """Print the error that ended a thread, but not an error of the disk: TensorBoard's writer raises it once more."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def choose_device(name: str, threads: int | None, matmul: str) -> torch.device:
    """Return the device `name` (`auto`: a GPU if there is one); set the number of CPU threads and a GPU's precision.

    With several GPUs each of torchrun's processes gets a GPU of its own.
    """
    if matmul not in ("highest", "high"):
        raise ValueError(f"float32_matmul_precision: expected highest or high, got '{matmul}'")
    if threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: '{name}' can't be used here: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":  # some CPUs would round otherwise too
        torch.set_float32_matmul_precision(matmul)
        if device.index is not None:  # our own kernels and recordings use the current device
            torch.cuda.set_device(device)
    return device


def to_dict(cfg: DictConfig, *, resolve: bool) -> dict:
    """Return a configuration as plain dictionaries and lists."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    return plain


def flatten_keys(config: dict, prefix: str = "") -> dict:
    """Name every leaf of a nested configuration by its path."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
