"""The generator loop that PPO-KL still runs in, until it is an rlcore.algorithm.Algorithm."""
from __future__ import annotations

import time
from typing import Callable, Iterator

from torch import Tensor

from rlcore.backends import distributed


class Loop:
    """The loop of everything that learns by iterations of `batch` steps each; `kl` [] is the last iteration's, or nan.

    Under torchrun a batch is shared by all processes where some of the state is `sharded`, a process's own. The first
    process logs and evaluates, all come by `save`, and all stop where one is told to.
    """

    sharded: tuple[str, ...] = ()
    iterations: int
    iteration: int
    batch: int
    eval_every: int
    checkpoint_every: int
    lr: Tensor  # the optimiser's, which `schedule` writes into
    first_lr: float
    schedule: Callable | None
    kl: Tensor

    def loop(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
             stop: Callable[[], bool]) -> Iterator[tuple[float, dict[str, Tensor | float]]]:
        """Yield the share of the run that is done, and a dict for the metrics of the iteration that the body runs.

        Logs each iteration, calls `evaluate` and `save` every so many and at the end. Ends after the last iteration, or
        after the one in which `stop` turns true.
        """
        while self.iteration < self.iterations:
            started, progress = time.perf_counter(), self.iteration / self.iterations
            if self.schedule:
                self.schedule(self.lr, self.first_lr, progress, self.kl)
            metrics: dict[str, Tensor | float] = {}
            yield progress, metrics
            self.iteration += 1
            steps, last = self.iteration * self.batch, self.iteration == self.iterations
            logger.log_iteration(steps, {**metrics, "charts/learning_rate": self.lr}, iteration=self.iteration, steps=self.batch,
                       started=started)
            if evaluate and (self.iteration % self.eval_every == 0 or last):
                logger.log_evaluation(steps, evaluate())
            stopped = distributed.all_reduce_any(stop(), self.lr.device) if self.sharded else stop()
            if self.iteration % self.checkpoint_every == 0 or last or stopped:
                save()
            if stopped:
                break




def fast(function: Callable, mode: str, **options) -> Callable:
    """Return the function, compiled in the mode `compile`."""
    from rlcore.backends.compilation import compile_function
    return compile_function(function, **options) if mode == "compile" else function


def capture(function: Callable, mode: str, device) -> Callable:
    """Return the function, recorded in the mode `cudagraph`."""
    from rlcore.backends.cuda_graphs import record
    return record(function, device) if mode == "cudagraph" else function
