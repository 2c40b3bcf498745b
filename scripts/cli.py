"""Shared parts of all scripts: the device, one line for bad input, and the exit code."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs.base import VectorEnv
from envs.configuration import CONF, instantiate_stored
from envs.range_checks import check_stored_ranges
from rlcore.action_values import GreedyPolicy
from rlcore.algorithm import Algorithm
from rlcore.runs import checkpoint as checkpoints
from rlcore.runs.plots import entitle
from rlcore.runs.report import RunResult
from rlcore.runs.run_logger import RunLogger
from rlcore.runs.writers import RunInfo
from scripts.overrides import check_config, explained, key_of, overrides_first

# variables in the environment of all processes that a launcher starts
FAILED = "CRM_RL_FAILED"  # the folder in which a failed job leaves a file
TRACEBACKS = "CRM_RL_TRACEBACKS"  # 1: the user asks for them by HYDRA_FULL_ERROR=1

MAX_NAME = 150  # characters of the name of a job's folder: file systems take 255 bytes


def folder_name(number: int, overrides: str) -> str:
    """Name the folder of a sweep's job by its number and overrides, without what no folder's name may have."""
    name = "".join("." if letter in "/\\" else letter for letter in f"{number}_{overrides}")
    return name[:MAX_NAME].rstrip("_. ")


OmegaConf.register_new_resolver("job_folder", folder_name, replace=True)  # conf/train.yaml


def guarded(main: Callable) -> Callable:
    """Turn bad input (ValueError, OSError) at any depth into one line and exit code 2.

    In a multirun the job fails alone; `launch` gives the exit code after the last one.
    """

    @functools.wraps(main)
    def run(cfg):
        try:
            check_config(cfg)
            return main(cfg)
        except KeyboardInterrupt:
            print("interrupted; what had been saved is kept", file=sys.stderr)
            sys.exit(130)
        except (ValueError, OSError, InstantiationException) as error:
            if os.environ.get(TRACEBACKS) == "1":
                raise
            # Hydra wraps a constructor's error once, and an import's error twice.
            while isinstance(error, (InstantiationException, ImportError)) and error.__cause__ is not None:
                error = error.__cause__
            if not isinstance(error, (ValueError, OSError)):
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
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
    A SIGTERM, such as a container gets before it is killed, ends the script like an exit: temporary files are removed.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage(sys.modules["__main__"].__doc__ or "", groups))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault(TRACEBACKS, os.environ.get("HYDRA_FULL_ERROR", "0"))
    try:
        sys.argv[1:] = overrides_first(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    threading.excepthook = report_thread
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors in its own way, and exits
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FAILED] = folder
        try:
            main()
        except HydraException as error:
            if os.environ[TRACEBACKS] == "1" or isinstance(error, InstantiationException):
                raise
            print(f"error: {explained(error, Path(sys.argv[0]).stem)}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:  # outside of `guarded`: Hydra could not make the run's folder
            if os.environ[TRACEBACKS] == "1":
                raise
            print(f"error: hydra.run.dir: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if os.listdir(folder):
            sys.exit(2)


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


def algorithm_class(make_algorithm: partial[Algorithm]) -> type[Algorithm]:
    """Return the class that a file of conf/algo names as its `_target_`."""
    kind = make_algorithm.func
    if not isinstance(kind, type) or not issubclass(kind, Algorithm):
        raise ValueError(f"algo._target_: expected a class of Algorithm, got {kind}")
    return kind


def check_fit(make_algorithm: partial[Algorithm], env: Any) -> None:
    """Refuse an environment that an algorithm can't learn from."""
    needed = algorithm_class(make_algorithm).env_type or VectorEnv
    if not isinstance(env, needed):
        chosen = HydraConfig.get().runtime.choices
        raise ValueError(
            f"algo={chosen['algo']} env={chosen['env']}: do not fit: expected an environment of the kind "
            f"{needed.__name__}, got {type(env).__name__}"
        )


@contextmanager
def fitting(path: str) -> Iterator[None]:
    """Restore from a checkpoint in this context; raise ValueError where its configuration or kind of device differs."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError, AttributeError, InstantiationException) as error:
        if isinstance(error, InstantiationException) and not isinstance(error.__cause__, TypeError):
            raise
        raise ValueError(f"{path}: does not fit this configuration or device: {str(error).splitlines()[0]}") from error


class Trained(NamedTuple):
    """A checkpoint's environment and agent, its algorithm's name, the configuration of both, and its logger's state."""

    env: Any  # a VectorEnv, or e-mails
    agent: Algorithm
    name: str
    config: DictConfig
    logger: dict


def trained(cfg: DictConfig, device: torch.device, own: tuple[str, ...]) -> Trained:
    """Restore the policy of `cfg.checkpoint` in the environment that it was trained on.

    Keys of env on the command line change that environment. `own` are the parts of the configuration that the
    checkpoint brings.
    """
    state = checkpoints.load(cfg.checkpoint)
    config = as_trained(cfg, state["config"], HydraConfig.get().overrides.task, own)
    check_stored_ranges(config, CONF, cfg.checkpoint)
    with fitting(cfg.checkpoint):  # a checkpoint of another version has other parameters
        make_env, make_agent = (
            instantiate_stored(part, cfg.checkpoint, trusted=cfg.trusted_packages) for part in (config.env, config.algo)
        )
        env = make_env(device, config.seed)
        env.load_fitted(state["agent"].get("env"))
    agent = make_agent(env, config.seed)
    with fitting(cfg.checkpoint):
        agent.load_policy(state["agent"])
    return Trained(env, agent, state["name"], config, state["logger"])


def load_teacher(env: VectorEnv, *, checkpoint: str) -> GreedyPolicy:
    """Restore the greedy policy of a checkpoint for an environment.

    Raises ValueError where the checkpoint is of another kind.
    """
    state = checkpoints.load(checkpoint)
    check_stored_ranges(state["config"], CONF, f"algo.teacher.checkpoint={checkpoint}")
    make_algorithm = instantiate_stored(state["config"]["algo"], f"algo.teacher.checkpoint={checkpoint}")
    algorithm = make_algorithm(env, 0)
    if not isinstance(algorithm.policy, GreedyPolicy):
        raise ValueError(
            f"algo.teacher.checkpoint={checkpoint}: expected a checkpoint of bcq or cql, got {state['name']}"
        )
    with fitting(checkpoint):
        algorithm.load_policy(state["agent"])
    return algorithm.policy


def as_trained(cfg: DictConfig, trained: dict, overrides: list[str], own: tuple[str, ...]) -> DictConfig:
    """Take the parts `own` from a checkpoint's configuration, except keys of env that the command line names."""
    said = []
    for override in overrides:
        key = key_of(override)
        if key.startswith("env."):
            said.append(override.lstrip("+"))
        elif key.split("/")[0].split(".")[0] in (*own, "experiment"):
            raise ValueError(
                f"{override}: the checkpoint brings its own; only keys below env can be changed, as in "
                "env.evaluation.customers=4000"
            )
    whole = OmegaConf.create({**to_dict(cfg, resolve=False), **{key: trained[key] for key in own}})
    OmegaConf.set_struct(whole, True)
    try:
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(said))
    except OmegaConfBaseException as error:
        raise ValueError(f"{', '.join(said)}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)  # as `whole` is
    return merged


def to_dict(cfg: DictConfig, *, resolve: bool) -> dict:
    """Return a configuration as plain dictionaries and lists."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    return plain


def make_logger(cfg: DictConfig, directory: Path, iterations: int, headline: str, resumed_at: int = 0) -> RunLogger:
    """Make the logger of a run of `iterations` in `directory`, which goes on from `resumed_at` steps."""
    chosen = HydraConfig.get().runtime.choices
    overrides: dict[str, Any] = {key: chosen[key] for key in ("algo", "env")}
    overrides["seed"] = cfg.seed
    for override in HydraConfig.get().overrides.task:
        key = key_of(override)
        overrides[key] = chosen[key] if key in chosen else OmegaConf.select(cfg, key)
    run = RunInfo(
        name=directory.name,
        command=f"python {' '.join(map(shlex.quote, [os.path.relpath(sys.argv[0]), *sys.argv[1:]]))}",
        config=OmegaConf.to_yaml(cfg, resolve=True),
        overrides=overrides,
        resumed_at=resumed_at,
    )
    writers = {name: instantiate(writer) for name, writer in cfg.logger.items()}
    return RunLogger(directory, writers, run, iterations, headline, redraws_per_second=cfg.progress.redraws_per_second)


def publish(report: Any, name: str | None, logger: RunLogger, directory: Path) -> RunResult:
    """Write a report to the console, by the logger, to metrics.json and to PNG files; return the headline figure."""
    result: RunResult = report.result(name)
    figures = report.to_figures(name, logger.headline, logger.history)
    for title, figure in figures.items():
        entitle(
            figure,
            f"{title.replace('_', ' ')}: {name or 'baselines'}, seed {logger.run.overrides['seed']}; {report.sample}",
        )
        checkpoints.atomic(directory / f"{title}.png", partial(figure.savefig, format="png"))
        logger.log_figure(f"test/{title}", figure)
    for title, part in report.parts().items():
        logger.log_text(f"test/{title}", part.to_markdown())
    logger.log_results({f"test/{metric}": value for metric, value in result.metrics.items()})
    seconds = max(logger.seconds, 1e-9)
    checkpoints.save_json(
        directory / "metrics.json",
        {
            **report.to_metrics(),
            "headline": result._asdict(),
            "curve": {"metric": logger.headline, "points": logger.history.get(logger.headline, [])},
            "steps": logger.steps,
            "steps_per_second": logger.steps / seconds,
            "seconds": logger.seconds,
        },
    )
    logger.close()
    logger.console.print(*(part.to_table() for part in report.parts().values()), sep="\n")
    logger.console.print(
        f"{directory}/: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}"
    )
    return result


def flatten_keys(config: dict, prefix: str = "") -> dict:
    """Name every leaf of a nested configuration by its path."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
