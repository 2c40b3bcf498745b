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
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.offers.logs.send_log import is_send_log
from rlcore.algorithm import Algorithm, Evaluator
from rlcore.backends import distributed
from rlcore.runs import checkpoint
from rlcore.runs.logger import NullLogger
from rlcore.runs.report import Report, RunResult
from rlcore.runs.run_logger import RunLogger
from rlcore.training_loop import TrainingLoop
from scripts.shared.building import build, changes, load_resumed
from scripts.shared.cli import choose_device, guarded, launch, to_dict
from scripts.shared.continued import Continuation
from scripts.shared.overrides import key_of
from scripts.shared.results import make_logger, publish
from scripts.shared.seen_data import earlier_stages, find_origin, logs_behind, own_stage
from scripts.shared.stopping import exit_stopped, interrupts
from scripts.shared.stored_runs import fitting
from scripts.shared.warm_start import load_start

# for all processes but the first
SILENT = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled")
TAKEN = "another run is writing into this folder; expected a hydra.run.dir of its own"


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


class Run(NamedTuple):
    """A training that is ready to begin or to go on."""

    cfg: DictConfig
    name: str  #: of the algorithm
    directory: Path
    algorithm: Algorithm
    evaluator: Evaluator
    continuation: Continuation | None  #: judges before and after, where a finished training goes on with new data
    beside: dict[str, Any]  #: what a checkpoint holds beside algorithm and logger
    logger: RunLogger | NullLogger

    def save(self, **changed: Any) -> None:
        """Write the checkpoint: the first process's state, the own parts of all processes, and what else is known."""
        algorithm = self.algorithm
        state = algorithm.state_dict()
        shards = distributed.gather_objects({key: state[key] for key in algorithm.sharded})
        if isinstance(self.logger, NullLogger):
            return
        checkpoint.save(
            self.directory / "checkpoint.pt",
            {
                "agent": state,
                "shards": shards,
                "logger": self.logger.state_dict(),
                "name": self.name,
                "inputs": algorithm.input_names,
                "config": to_dict(self.cfg, resolve=True),
                "finished": algorithm.iteration >= algorithm.iterations or algorithm.has_converged,
                **self.beside,
                **changed,
            },
        )


def train(cfg: DictConfig, directory: Path) -> FinishedRun | None:
    """Train, evaluate and write everything into a directory; torchrun's processes but the first return None."""
    name = HydraConfig.get().runtime.choices["algo"]
    cfg = judged_by_its_log(cfg)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    with ExitStack() as whole_run:
        with distributed.process_group(device), interrupts() as interrupted:
            is_first = distributed.rank() == 0
            if is_first:
                whole_run.enter_context(checkpoint.locked_folder(directory, TAKEN))
                checkpoint.sweep(directory)
            run = prepare(cfg, name, directory, device)
            whole_run.enter_context(run.logger)
            loop = TrainingLoop(
                run.algorithm,
                run.logger,
                save=run.save,
                save_seconds=60.0 * cfg.checkpoint_minutes,
                validate=(lambda: run.evaluator.validate(run.algorithm)) if is_first else None,
                should_stop=lambda: bool(interrupted),
            )
            with run.logger.training():
                loop.run()
            stopped = distributed.all_reduce_any(bool(interrupted), device)
        if stopped:
            exit_stopped(run.algorithm, directory if is_first else None, interrupted)
        return None if isinstance(run.logger, NullLogger) else finish(run, run.logger)


def prepare(cfg: DictConfig, name: str, directory: Path, device: torch.device) -> Run:
    """Build the algorithm of a run, what judges it, and its logger."""
    state = load_resumed(cfg)
    start = load_start(cfg.init, name, to_dict(cfg, resolve=True)) if cfg.init and not state else None
    own = own_stage(cfg)
    origin = find_origin(cfg, name, state, own["data"])
    earlier = earlier_stages(cfg, state, origin)
    algorithm = build(cfg, name, device, state, start, origin, earlier)
    continuation = Continuation.of(origin, algorithm, cfg) if origin else None
    evaluator = algorithm.make_evaluator()
    return Run(
        cfg=cfg,
        name=name,
        directory=directory,
        algorithm=algorithm,
        evaluator=evaluator,
        continuation=continuation,
        beside={
            "seen": [*earlier, own],
            "logs": logs_behind(cfg, [*earlier, own], state or start),
            "before": origin and origin._asdict(),
        },
        logger=open_logger(cfg, directory, algorithm, evaluator, None if origin and origin.begins else state),
    )


def finish(run: Run, logger: RunLogger) -> FinishedRun:
    """Judge what was learned, and write the results; in one process, for an evaluation can train models of its own."""
    further: dict[str, Report] = {}
    if run.continuation:
        with logger.evaluating("judging before and after, on old and on new data"):
            further["before_and_after"] = run.continuation.finish()
        run.save(before=None)
    run.algorithm.export(run.directory)
    with logger.evaluating("evaluating on data that nothing was trained on"):
        report = run.evaluator.evaluate(run.algorithm, run.name)
    result = publish(report, run.name, logger, run.directory, further)
    return FinishedRun(run.directory, run.algorithm, report, result, logger.history, run.evaluator.headline)


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


def open_logger(
    cfg: DictConfig, directory: Path, algorithm: Algorithm, evaluator: Evaluator, state: dict | None
) -> RunLogger | NullLogger:
    """Open the first process's logger, and print what a resumed run changes; the other processes log nothing."""
    if distributed.rank() > 0:
        return NullLogger()
    resumed_at = algorithm.steps_done if state else 0
    logger = make_logger(cfg, directory, algorithm.iterations, evaluator.headline, resumed_at)
    if state:
        with fitting(cfg.resume):
            logger.load_state_dict(state["logger"])
        for line in changes(state["config"], cfg):
            logger.console.print(f"resume: {line}", highlight=False, soft_wrap=True)
        if algorithm.iteration >= algorithm.iterations or algorithm.has_converged:
            logger.console.print(
                f"resume: {cfg.resume} had ended its training ({algorithm.iteration} of {algorithm.iterations} "
                "iterations): nothing more is learned, the policy is only evaluated",
                highlight=False,
                soft_wrap=True,
            )
    return logger


if __name__ == "__main__":
    if int(os.environ.get("RANK", 0)):
        sys.argv += SILENT
    launch(main, groups=("algo", "env", "experiment", "logger"))
