"""Train an algorithm in an environment or from a log, and evaluate it.

Usage:

    python scripts/train.py algo=ppo env=offers
    python scripts/train.py algo=reward_model env=email
    python scripts/train.py algo=bandit log=PATH
    python scripts/train.py -m algo=ppo,bandit seed=0,1,2          # a sweep ends with a table over its jobs
    torchrun --nproc_per_node=2 scripts/train.py algo=ppo env=offers  # two processes share the agents
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.offers.logs.send_log import is_send_log
from rlcore.algorithm import Algorithm, Evaluator, OfflineAlgorithm
from rlcore.backends import distributed
from rlcore.backends.accelerate import accelerate
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from rlcore.runs.logger import NullLogger
from rlcore.runs.report import Report, RunResult
from rlcore.runs.run_logger import RunLogger
from rlcore.training_loop import TrainingLoop
from scripts.shared.cli import INTERRUPTED, choose_device, flatten_keys, guarded, launch, to_dict
from scripts.shared.continued import Continuation
from scripts.shared.overrides import key_of
from scripts.shared.results import make_logger, publish
from scripts.shared.seen_data import Origin, all_stages, earlier_stages, find_origin, with_old
from scripts.shared.stored_runs import algorithm_class, check_fit, fitting
from scripts.shared.warm_start import check_inputs, check_start, load_start

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1, signal.SIGHUP] if os.name == "posix" else []))
# for all processes but the first
SILENT = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled")


@hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> float | None:
    finished = train(cfg, Path(HydraConfig.get().runtime.output_dir))
    return finished and finished.tuning_value


class FinishedRun(NamedTuple):
    """What a training has come to."""

    directory: Path  #: has metrics.json, checkpoint.pt, plots
    algorithm: Algorithm  #: trained; its `policy` acts
    report: Any  #: the comparison with the baselines: `to_table()`, `to_markdown()`, `to_metrics()`
    result: RunResult  #: the headline figure and a few numbers beside it
    history: dict[str, list[tuple[int, float]]]  #: (step, value) of the validations, by metric
    headline: str  #: name of the metric of validations by which runs are tuned

    @property
    def tuning_value(self) -> float:
        """The last validation, for a sweeper to optimise; the test's figure where nothing was validated.

        Settings that were chosen on test data would make the test's figure too good.
        """
        validations = self.history.get(self.headline)
        return validations[-1][1] if validations else self.result.value


def train(cfg: DictConfig, directory: Path) -> FinishedRun | None:
    """Train, evaluate and write everything into a directory; torchrun's processes but the first return None."""
    name = HydraConfig.get().runtime.choices["algo"]
    cfg = judged_by_its_log(cfg)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    with distributed.process_group(device), interrupts() as interrupted:
        is_first = distributed.rank() == 0
        if is_first:
            checkpoint.lock_folder(directory)
            checkpoint.sweep(directory)
        state = load_resumed(cfg)
        origin = find_origin(cfg, name, state)
        algorithm = build(cfg, name, device, state, origin)
        going_on = origin and Continuation.of(origin, algorithm, cfg)
        evaluator = algorithm.make_evaluator()
        beside = {"seen": all_stages(cfg, state, origin), "before": origin and origin._asdict()}
        with open_logger(cfg, directory, algorithm, evaluator, None if origin and origin.begins else state) as logger:
            loop = TrainingLoop(
                algorithm,
                logger,
                save=lambda: save_checkpoint(cfg, name, algorithm, logger, directory, beside),
                save_seconds=60.0 * cfg.checkpoint_minutes,
                validate=(lambda: evaluator.validate(algorithm)) if is_first else None,
                should_stop=lambda: bool(interrupted),
            )
            loop.run()
        stopped = distributed.all_reduce_any(bool(interrupted), device)
    if stopped:
        end_interrupted(algorithm, logger, directory, interrupted)
    if isinstance(logger, NullLogger):
        return None
    # one process alone, because an evaluation can train models of its own
    further: dict[str, Report] = {}
    if going_on:
        with logger.evaluating("judging before and after, on old and on new data"):
            further["before_and_after"] = going_on.finish()
        save_checkpoint(cfg, name, algorithm, logger, directory, {**beside, "before": None})
    algorithm.export(directory)
    with logger.evaluating("evaluating on data that nothing was trained on"):
        report = evaluator.evaluate(algorithm, name)
    result = publish(report, name, logger, directory, further)
    return FinishedRun(directory, algorithm, report, result, logger.history, evaluator.headline)


def judged_by_its_log(cfg: DictConfig) -> DictConfig:
    """Let a shop's log of sends judge what is learned from it, unless the command line asks for a simulated season.

    A season with the parameters of priors says nothing about the shop.
    """
    hydra_config = HydraConfig.get()
    task = list(hydra_config.overrides.task)
    asked = any(key_of(override).replace(".", "/").startswith("env/evaluation") for override in task)
    if asked or not cfg.log or not is_send_log(cfg.log):
        return cfg
    print(f"{cfg.log}: a shop's log, so the customers that nothing is learned from judge (env/evaluation=log)")
    chosen = [*hydra_config.overrides.hydra, *task, "env/evaluation=log"]
    return compose(hydra_config.job.config_name, overrides=chosen)


def build(
    cfg: DictConfig, name: str, device: torch.device, state: dict | None, origin: Origin | None = None
) -> Algorithm:
    """Build environment and algorithm.

    The algorithm gets the log to learn from, and the state to resume from, where there is one. With an `origin` it goes
    on with new data.
    """
    make_env, make_algorithm = (instantiate(cfg[key], _convert_="all") for key in ("env", "algo"))
    if distributed.num_processes() > 1 and not algorithm_class(make_algorithm).sharded:
        raise ValueError(f"algo={name}: can't be trained by several processes, expected algo=ppo or ppo_kl")
    env = build_part(make_env, device, cfg.seed)
    check_fit(make_algorithm, env)
    start = load_start(cfg.init, name, to_dict(cfg, resolve=True)) if cfg.init and not state else None
    if restored := state or start:
        with fitting(cfg.resume or cfg.init):
            env.load_fitted(restored["agent"].get("env"))
    algorithm = make_algorithm(env, cfg.seed)
    if start:
        check_inputs(f"init={cfg.init}", start, algorithm)
        with fitting(cfg.init):
            algorithm.start_from(start["agent"])
    begins = origin is not None and origin.begins
    if state and begins:
        where = f"resume={cfg.resume}"
        check_start(where, state, name, to_dict(cfg, resolve=True))
        check_inputs(where, state, algorithm)
        # what a log has, the memory of its readers would count twice
        begin = algorithm.start_from if cfg.log else algorithm.continue_from
        with fitting(cfg.resume):
            begin(state["agent"])
    if cfg.log:
        if not isinstance(algorithm, OfflineAlgorithm):
            raise ValueError(
                f"algo={name} log={cfg.log}: {name} can't learn from a log, expected algo=bandit, bcq, cql or twin"
            )

        def read(path: str) -> LoggedDataset:
            return env.read_log(path, "train", partial(fitted_to, env))

        stages = earlier_stages(cfg, state, origin)
        algorithm.set_dataset(with_old(stages, cfg.resume, read(cfg.log), cfg.log, read))
    if state and not begins:
        with fitting(cfg.resume):
            algorithm.load_state_dict(state["agent"])
    if cfg.execution == "cudagraph" and device.type != "cuda":
        print("execution=cudagraph: no GPU here, so all runs eagerly")
    return accelerate(algorithm, cfg.execution)


def fitted_to(env: Any, chunk: LoggedDataset) -> LoggedDataset:
    """Move a chunk of a log to the environment's device, deduplicated, and let the environment see its features."""
    chunk = chunk.to(env.device)
    env.see_static_columns(chunk.obs)
    return chunk.deduplicate(env.context_dim)


def build_part(make_env: partial, device: torch.device, seed: int) -> Any:
    """Build this process's part of an environment: an equal share of its agents, if any, with a seed of its own."""
    if "num_agents" not in make_env.keywords:
        return make_env(device, seed)
    num_agents = distributed.per_process(make_env.keywords["num_agents"], "env.num_agents")
    return make_env(device, distributed.rank_seed(seed), num_agents=num_agents)


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


def open_logger(
    cfg: DictConfig, directory: Path, algorithm: Algorithm, evaluator: Evaluator, state: dict | None
) -> AbstractContextManager[RunLogger | NullLogger]:
    """Open the first process's logger, and print what a resumed run changes; the other processes log nothing."""
    if distributed.rank() > 0:
        return NullLogger()
    resumed_at = algorithm.steps_done if state else 0
    logger = make_logger(cfg, directory, algorithm.iterations, evaluator.headline, resumed_at)
    if state:
        with fitting(cfg.resume):
            logger.load_state_dict(state["logger"])
        before, now = flatten_keys(state["config"]), flatten_keys(to_dict(cfg, resolve=True))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and key != "resume":
                line = f"resume: {key} was {before.get(key)}, is {now.get(key)}"
                logger.console.print(line, highlight=False, soft_wrap=True)
        if algorithm.iteration >= algorithm.iterations or algorithm.has_converged:
            logger.console.print(
                f"resume: {cfg.resume} had ended its training ({algorithm.iteration} of {algorithm.iterations} "
                "iterations): nothing more is learned, the policy is only evaluated",
                highlight=False,
                soft_wrap=True,
            )
    return logger


def save_checkpoint(
    cfg: DictConfig, name: str, algorithm: Algorithm, logger: Any, directory: Path, beside: dict
) -> None:
    """Write the checkpoint: the first process's state, the own parts of all processes, and what else is known."""
    state = algorithm.state_dict()
    shards = distributed.gather_objects({key: state[key] for key in algorithm.sharded})
    if distributed.rank() == 0:
        checkpoint.save(
            directory / "checkpoint.pt",
            {
                "agent": state,
                "shards": shards,
                "logger": logger.state_dict(),
                "name": name,
                "inputs": algorithm.input_names,
                "config": to_dict(cfg, resolve=True),
                "finished": algorithm.iteration >= algorithm.iterations or algorithm.has_converged,
                **beside,
            },
        )


def load_resumed(cfg: DictConfig) -> dict | None:
    """Load the checkpoint to resume from, with this process's own part.

    Raises ValueError where another number of processes made it.
    """
    if not cfg.resume:
        return None
    state = checkpoint.load(cfg.resume)
    shards = state.get("shards", [{}])
    if len(shards) != distributed.num_processes():
        raise ValueError(
            f"{cfg.resume}: {len(shards)} processes made it, {distributed.num_processes()} can't go on from it: "
            f"expected torchrun --nproc_per_node={len(shards)}"
        )
    state["agent"] |= shards[distributed.rank()]
    return state


def end_interrupted(algorithm: Algorithm, logger: Any, directory: Path, interrupted: list[int]) -> None:
    """Print how to resume, and exit with the code that shells give for the signal."""
    if not isinstance(logger, NullLogger):
        logger.close()
        print(
            f"stopped after iteration {algorithm.iteration} of {algorithm.iterations}; go on with "
            f"resume={directory / 'checkpoint.pt'}"
        )
    sys.exit(128 + (interrupted or [signal.SIGINT])[0])


if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)):
        sys.argv += SILENT
    launch(main, groups=("algo", "env", "experiment", "logger"))
