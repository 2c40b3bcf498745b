"""Where training writes its metrics: TensorBoard with a live line on the console, memory, or nowhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)  # a script's configuration says where it goes: Hydra's to a file in the run's folder
Metrics = Mapping[str, Tensor | float]


class Logger(Protocol):
    """The place that training writes to. Metrics may be tensors on the device: a call moves all to the host at once."""

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Log an iteration of `steps` steps, begun at time.perf_counter() = `started`; `step` counts all so far."""

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation during training."""

    def log_text(self, name: str, markdown: str) -> None:
        """Log a text."""

    def log_figure(self, name: str, figure: Figure) -> None:
        """Log a matplotlib figure as an image."""

    def log_warning(self, text: str) -> None:
        """Log and show a warning."""

    def child(self, name: str, iterations: int) -> AbstractContextManager[Logger]:
        """Return a logger for a training within the training; its metrics have the prefix `name`."""


def to_floats(metrics: Metrics) -> dict[str, float]:
    """Bring all tensors among the metrics to the host in one transfer."""
    tensors = {name: x.detach().float() for name, x in metrics.items() if isinstance(x, Tensor)}
    floats = {name: x for name, x in metrics.items() if not isinstance(x, Tensor)}
    if not tensors:
        return floats
    stacked = torch.stack(list(tensors.values()))
    floats |= zip(tensors, stacked.tolist())
    return {name: floats[name] for name in metrics}  # in their order


def describe_metrics(values: Mapping[str, float]) -> str:
    """Write metrics on one line."""
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())


class TensorBoardLogger:
    """Writes scalars, images, text and hyper-parameters into `directory`, and shows progress up to `iterations`.

    `headline` is the metric of evaluations that the live line shows.
    """

    def __init__(self, directory: Path | str, iterations: int, headline: str, *, flush_seconds: int):
        self.writer = SummaryWriter(str(directory), flush_secs=flush_seconds)
        self.console = Console()
        self.headline = headline
        self.headline_value = "–"
        self.history: dict[str, list[tuple[int, float]]] = {}  # (step, value) of every evaluation, by metric
        self.steps = 0
        self.seconds = 0.0
        self.progress = Progress(
            TextColumn("{task.description} {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.fields[sps]} steps/s"),
            TextColumn("{task.fields[score]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.progress.add_task("iteration", total=iterations, sps="–", score=f"{headline} –")

    def __enter__(self) -> TensorBoardLogger:
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()
        self.writer.flush()

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Log an iteration, its speed and the progress."""
        values = self.log_scalars(step, metrics)  # on the host by now: the clock includes the device's work
        seconds = time.perf_counter() - started
        self.steps += steps
        self.seconds += seconds
        speed = steps / seconds
        self.writer.add_scalar("charts/SPS", speed, step)
        LOG.info("iteration %d, step %d: %s", iteration, step, describe_metrics({**values, "charts/SPS": speed}))
        score = f"{self.headline} {self.headline_value}"
        self.progress.update(self.task, completed=iteration, sps=f"{speed:,.0f}", score=score)

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation, and keep it for the final plots."""
        values = self.log_scalars(step, metrics)
        LOG.info("evaluation, step %d: %s", step, describe_metrics(values))
        for name, value in values.items():
            evaluations = self.history.setdefault(name, [])
            evaluations.append((step, value))
        if self.headline in values:
            self.headline_value = f"{values[self.headline]:.3f}"
            if not self.console.is_terminal:  # a log file has no live line
                self.console.print(f"step {step:,}: {self.headline} {self.headline_value}", highlight=False)

    @contextmanager
    def child(self, name: str, iterations: int) -> Iterator[ChildLogger]:
        """Return a logger with a progress line of its own; its scalars have the prefix `name`."""
        task = self.progress.add_task(name, total=iterations, sps="–", score="")
        try:
            yield ChildLogger(self, name, task)
        finally:
            self.progress.update(task, visible=False)
            self.progress.reset(self.task, completed=0)  # the clock of the outer training starts here

    def log_scalars(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Write metrics, and return them as floats."""
        values = to_floats(metrics)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        return values

    def log_hparams(self, parameters: dict, results: dict[str, float]) -> None:
        """Log the run's configuration and results for TensorBoard's comparison of runs."""
        plain = {}
        for name, x in parameters.items():
            plain[name] = x if isinstance(x, (bool, int, float, str)) else str(x)
        self.writer.add_hparams(plain, results, run_name=".")

    def log_text(self, name: str, markdown: str) -> None:
        """Log a text."""
        self.writer.add_text(name, markdown)
        LOG.info("%s\n%s", name, markdown)

    def log_figure(self, name: str, figure: Figure) -> None:
        """Log a matplotlib figure as an image."""
        self.writer.add_figure(name, figure)

    def log_warning(self, text: str) -> None:
        """Log and show a warning."""
        LOG.warning("warning: %s", text)
        self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    def close(self) -> None:
        """Write everything to disk."""
        self.writer.close()

    def state_dict(self) -> dict:
        """Return what a resumed run needs: the evaluations so far, the steps and the seconds."""
        return {"history": self.history, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""
        self.history = {}
        for name, evaluations in state["history"].items():
            self.history[name] = [(step, value) for step, value in evaluations]
        self.steps = state["steps"]
        self.seconds = state["seconds"]


class NullLogger:
    """Logs nothing: for training within training, and for all of torchrun's processes but the first."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *error) -> None:
        """Do nothing."""

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Ignore an iteration."""

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Ignore an evaluation."""

    def log_text(self, name: str, markdown: str) -> None:
        """Ignore a text."""

    def log_figure(self, name: str, figure: Figure) -> None:
        """Ignore a figure."""

    def log_warning(self, text: str) -> None:
        """Ignore a warning."""

    @contextmanager
    def child(self, name: str, iterations: int) -> Iterator[NullLogger]:
        """Return a logger that logs nothing either."""
        yield self


class ChildLogger(NullLogger):
    """Logs a training within a training into the files of the outer logger, under a prefix of its own."""

    def __init__(self, parent: TensorBoardLogger, name: str, task: TaskID):
        self.parent = parent
        self.name = name
        self.task = task

    def _named(self, metrics: Metrics) -> Metrics:
        """Put this logger's prefix before the names of metrics."""
        named = {}
        for key, x in metrics.items():
            flat = key.replace("/", "_")
            named[f"{self.name}/{flat}"] = x
        return named

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Log an iteration and its speed."""
        self.parent.log_scalars(step, self._named(metrics))
        seconds = time.perf_counter() - started
        speed = steps / seconds
        self.parent.progress.update(self.task, completed=iteration, sps=f"{speed:,.0f}")

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation and show it."""
        self.parent.log_scalars(step, self._named(metrics))
        values = []
        for key, value in to_floats(metrics).items():
            short = key.split("/")[-1]
            values.append(f"{short} {value:.3f}")
        shown = ", ".join(values)
        LOG.info("%s, step %d: %s", self.name, step, shown)
        self.parent.progress.update(self.task, score=shown)
        if not self.parent.console.is_terminal:
            self.parent.console.print(f"{self.name}: step {step:,}: {shown}", highlight=False)


class MemoryLogger(NullLogger):
    """Keeps every iteration and every evaluation as a row of floats, for benchmarks and tests."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Keep an iteration."""
        self.rows.append({"step": step, **to_floats(metrics)})

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Keep an evaluation."""
        self.rows.append({"step": step, **to_floats(metrics)})

    def __getitem__(self, name: str) -> list[float]:
        """Return a metric's values in the order of logging."""
        return [row[name] for row in self.rows if name in row]
