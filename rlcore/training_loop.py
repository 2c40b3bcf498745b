"""The training loop: it runs any algorithm, logs, validates and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rlcore.algorithm import Algorithm
from rlcore.backends import distributed
from rlcore.runs import divergence
from rlcore.runs.logger import to_floats

if TYPE_CHECKING:
    from rlcore.runs.logger import Logger


class TrainingLoop:
    """Runs an algorithm to its last iteration, or to the end of the iteration in which `should_stop` turns true.

    `save` is called every `checkpoint_every` iterations, when `save_seconds` have passed since the last time, and at
    the end.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        logger: Logger,
        *,
        save: Callable[[], None] = lambda: None,
        save_seconds: float = math.inf,
        validate: Callable[[], dict[str, float]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.algorithm = algorithm
        self.logger = logger
        self.save = save
        self.save_seconds = save_seconds
        self.saved_at = time.monotonic()
        self.validate = validate
        self.should_stop = should_stop

    def run(self) -> None:
        """Train to the end: iterate and log each iteration, validate and save every so many iterations."""
        algorithm, logger = self.algorithm, self.logger
        algorithm.setup(logger, self.should_stop)
        if self.validate and algorithm.validates_at_start and algorithm.iteration == 0:
            logger.log_evaluation(0, self.validate())
        while algorithm.iteration < algorithm.iterations and not algorithm.has_converged:
            # 1. One iteration.
            started = time.perf_counter()
            steps_before = algorithm.steps_done
            metrics = algorithm.iterate(progress=algorithm.iteration / algorithm.iterations)
            algorithm.iteration += 1
            # 2. Its metrics, which must be finite.
            step = algorithm.steps_done
            values = to_floats(metrics)
            logger.log_iteration(
                step, values, iteration=algorithm.iteration, steps=step - steps_before, started=started
            )
            divergence.check_metrics(values, algorithm.iteration, algorithm.explain_divergence)
            # 3. Validation.
            if self.validate and algorithm.is_validation_due():
                validation = self.validate()
                logger.log_evaluation(step, validation)
                algorithm.observe_validation(validation)
            # 4. A checkpoint, by the number of iterations or by the clock. Several processes first agree on whether to
            #    stop, and on whether a checkpoint is due by the clock.
            stopped = self.should_stop()
            is_due = time.monotonic() - self.saved_at >= self.save_seconds
            if algorithm.sharded:
                stopped = distributed.all_reduce_any(stopped, algorithm.env.device)
                is_due = distributed.all_reduce_any(is_due, algorithm.env.device)
            is_due |= algorithm.iteration % algorithm.checkpoint_every == 0
            is_last = algorithm.iteration == algorithm.iterations or algorithm.has_converged
            if stopped or (is_due and not is_last):
                self.save()
                self.saved_at = time.monotonic()
            if stopped:
                return
        algorithm.finish()
        self.save()
