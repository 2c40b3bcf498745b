"""The logger of a script's run: writers for the metrics, a log file, and a live line on the console."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlcore.runs.logger import Metrics, NullLogger, describe_metrics, to_floats
from rlcore.runs.progress import shown_by
from rlcore.runs.writers import MetricWriter, RunEnd, RunInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)  # a script's configuration says where it goes: Hydra's to a file in the run's folder
MakeWriter = Callable[[Path, RunInfo], MetricWriter]
#: what the live line shows: the first of these that an algorithm logs, the most telling first
LOSSES = ("losses/value_loss", "losses/td_loss", "losses/total", "ppo/loss", "losses/policy_loss")
RETURNS = ("charts/episodic_return", "objective/scores")
FILE_WIDTH = 130  # characters of a line where the output is no terminal: a row of a wide table is one line


class RunLogger:
    """Writes metrics, texts and figures by several writers, and shows progress up to `iterations`.

    The logger is the context of a run: at its end the writers are closed, and are told whether the run finished, failed
    or was stopped. `writers` are opened in `directory` when there is something to write, so that a run that fails its
    checks leaves no file. `headline` is the metric of evaluations that the live line shows; the line is drawn
    `redraws_per_second`.
    """

    def __init__(
        self,
        directory: Path | str,
        writers: Mapping[str, MakeWriter],
        run: RunInfo,
        iterations: int,
        headline: str,
        *,
        redraws_per_second: float,
    ):
        self.directory = Path(directory)
        self.make_writers = list(writers.values())
        self.writers: list[MetricWriter] | None = None
        self.run = run
        self.console = make_console()
        self.headline = headline
        self.headline_value = "–"
        self.history: dict[str, list[tuple[int, float]]] = {}  # (step, value) of every evaluation, by metric
        self.step = run.resumed_at  # of the last iteration
        self.steps = 0
        self.seconds = 0.0
        self.redraws_per_second = redraws_per_second
        self.progress = Progress(
            TextColumn("{task.description}{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[score]}"),
            TextColumn("{task.fields[metrics]}"),
            TextColumn("{task.fields[sps]}/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=redraws_per_second,
            expand=True,
        )
        score = f"{short_name(headline)} –"
        self.task = self.progress.add_task("", total=iterations, sps="–", metrics="", score=score)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close("finished")
        else:
            with suppress(Exception):  # the error that ended the run is to be seen, not one that its end met
                self.close("failed" if issubclass(kind, Exception) else "stopped")

    def training(self) -> AbstractContextManager[Any]:
        """Show the live line in this context."""
        return self.progress

    def open_writers(self) -> list[MetricWriter]:
        """Return the writers, opened once."""
        if self.writers is None:
            self.writers = []
            for make in self.make_writers:  # one by one: where one can't be opened, those before it are closed
                self.writers.append(make(self.directory, self.run))
        return self.writers

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Log an iteration, its speed and the progress."""
        values = to_floats(metrics)  # on the host by now: the clock includes the device's work
        seconds = time.perf_counter() - started
        self.step = step
        self.steps += steps
        self.seconds += seconds
        values["charts/SPS"] = steps / seconds
        self.write_scalars(step, values)
        LOG.info("iteration %d, step %d: %s", iteration, step, describe_metrics(values))
        score = f"{short_name(self.headline)} {self.headline_value}"
        self.progress.update(
            self.task,
            completed=iteration,
            sps=f"{values['charts/SPS']:,.0f}",
            metrics=loss_and_return(values),
            score=score,
        )

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation, and keep it for the final plots."""
        values = self.write_scalars(step, to_floats(metrics))
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
        task = self.progress.add_task(f"{name} ", total=iterations, sps="–", metrics="", score="")
        try:
            yield ChildLogger(self, name, task)
        finally:
            self.progress.update(task, visible=False)
            self.progress.reset(self.task, completed=0)  # the clock of the outer training starts here

    @contextmanager
    def evaluating(self, what: str) -> Iterator[None]:
        """Say that an evaluation begins, and show the progress of its tracked loops."""
        self.console.print(f"{what} …", highlight=False)
        bar = Progress(
            TextColumn("{task.description} {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            console=self.console,
            refresh_per_second=self.redraws_per_second,
            transient=True,
            disable=not self.console.is_terminal,
        )
        task = bar.add_task("", total=None, visible=False)

        def show(loop: str, done: int, total: int) -> None:
            bar.update(task, description=loop, completed=done, total=total, visible=True)

        with bar, shown_by(show):
            yield

    def write_scalars(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Write numbers, and return them. A chart has no point where its value is undefined, as where nothing ended."""
        defined = {name: x for name, x in values.items() if not (name.startswith("charts/") and math.isnan(x))}
        for writer in self.open_writers():
            writer.scalars(step, defined)
        return defined

    def log_results(self, results: Mapping[str, float]) -> None:
        """Log the few numbers by which runs are compared."""
        for writer in self.open_writers():
            writer.results(self.step, results)

    def log_text(self, name: str, markdown: str) -> None:
        """Log a text."""
        for writer in self.open_writers():
            writer.text(self.step, name, markdown)
        LOG.info("%s\n%s", name, markdown)

    def log_figure(self, name: str, figure: Figure) -> None:
        """Log a matplotlib figure as an image."""
        for writer in self.open_writers():
            writer.figure(self.step, name, figure)

    def log_warning(self, text: str) -> None:
        """Log and show a warning."""
        LOG.warning("warning: %s", text)
        self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False)

    def close(self, end: RunEnd) -> None:
        """Write everything to disk, by all writers, whatever one of them meets."""
        with ExitStack() as writers:
            for writer in self.writers or []:
                writers.callback(writer.close, end)

    def state_dict(self) -> dict:
        """Return what a resumed run needs: the evaluations so far, the steps and the seconds."""
        return {"history": self.history, "step": self.step, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`."""
        self.history = {}
        for name, evaluations in state["history"].items():
            self.history[name] = [(step, value) for step, value in evaluations]
        self.step = state["step"]
        self.steps = state["steps"]
        self.seconds = state["seconds"]


class ChildLogger(NullLogger):
    """Logs a training within a training by the writers of the outer logger, under a prefix of its own."""

    def __init__(self, parent: RunLogger, name: str, task: TaskID):
        self.parent = parent
        self.name = name
        self.task = task

    def _named(self, metrics: Metrics) -> dict[str, float]:
        """Put this logger's prefix before the names of metrics."""
        named = {}
        for key, x in to_floats(metrics).items():
            flat = key.replace("/", "_")
            named[f"{self.name}/{flat}"] = x
        return named

    def log_iteration(self, step: int, metrics: Metrics, *, iteration: int, steps: int, started: float) -> None:
        """Log an iteration and its speed."""
        values = to_floats(metrics)
        self.parent.write_scalars(step, self._named(values))
        seconds = time.perf_counter() - started
        speed = steps / seconds
        self.parent.progress.update(
            self.task, completed=iteration, sps=f"{speed:,.0f}", metrics=loss_and_return(values)
        )

    def log_evaluation(self, step: int, metrics: Metrics) -> None:
        """Log an evaluation and show it."""
        self.parent.write_scalars(step, self._named(metrics))
        values = []
        for key, value in to_floats(metrics).items():
            values.append(f"{short_name(key)} {value:.3f}")
        shown = ", ".join(values)
        LOG.info("%s, step %d: %s", self.name, step, shown)
        self.parent.progress.update(self.task, score=shown)
        if not self.parent.console.is_terminal:
            self.parent.console.print(f"{self.name}: step {step:,}: {shown}", highlight=False)


def make_console() -> Console:
    """Return the console of tables: as wide as the terminal; wide enough for long names where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def short_name(metric: str) -> str:
    """Return a metric's name without what it is grouped by."""
    return metric.rpartition("/")[2]


def loss_and_return(values: Mapping[str, float]) -> str:
    """Write the loss and the return of an iteration, of those that the algorithm logs, for the live line."""
    loss = next((f"loss {values[name]:.3g}" for name in LOSSES if name in values), "")
    episodic = next((f"return {values[name]:.4g}" for name in RETURNS if name in values), "")
    return " ".join(part for part in (loss, episodic) if part)
