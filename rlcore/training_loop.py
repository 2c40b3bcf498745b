"""The training loop: it runs any algorithm, logs, validates and saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rlcore.algorithm import Algorithm
from rlcore.backends import distributed

if TYPE_CHECKING:
    from rlcore.logger import Logger


class TrainingLoop:
    """Runs an algorithm to its last iteration, or to the end of the iteration in which `should_stop` turns true."""

    def __init__(
        self,
        algorithm: Algorithm,
        logger: Logger,
        *,
        save: Callable[[], None] = lambda: None,
        validate: Callable[[], dict[str, float]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ):
        self.algorithm = algorithm
        self.logger = logger
        self.save = save
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
            # 2. Its metrics.
            step = algorithm.steps_done
            logger.log_iteration(
                step, metrics, iteration=algorithm.iteration, steps=step - steps_before, started=started
            )
            # 3. Validation.
            if self.validate and algorithm.is_validation_due():
                validation = self.validate()
                logger.log_evaluation(step, validation)
                algorithm.observe_validation(validation)
            # 4. A checkpoint.
            stopped = self.should_stop()
            if algorithm.sharded:
                stopped = distributed.all_reduce_any(stopped, algorithm.env.device)
            is_last = algorithm.iteration == algorithm.iterations or algorithm.has_converged
            if stopped or (not is_last and algorithm.iteration % algorithm.checkpoint_every == 0):
                self.save()
            if stopped:
                return
        algorithm.finish()
        self.save()
