"""TensorBoard under the field's names, and a live line on the console."""
from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Write scalars, images, text and hyper-parameters into `directory`; show progress up to `iterations`.

    `headline` names the scalar that the live line shows. Metrics may be device tensors: they cross to the host
    together, once a call.
    """

    def __init__(self, directory: Path | str, iterations: int, *, headline: str, flush_seconds: int):
        self.directory = Path(directory)  # where a run's files go
        self.writer = SummaryWriter(str(directory), flush_secs=flush_seconds)
        self.console = Console()
        self.headline, self.shown = headline, "–"
        self.history: dict[str, list[tuple[int, float]]] = {}  # what was evaluated, by name
        self.steps, self.seconds = 0, 0.0
        self.progress = Progress(TextColumn("{task.description} {task.completed}/{task.total}"), BarColumn(),
                                 TextColumn("{task.fields[sps]} steps/s"), TextColumn("{task.fields[score]}"),
                                 TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console)
        self.task = self.progress.add_task("iteration", total=iterations, sps="–", score=f"{headline} –")

    def __enter__(self) -> TensorBoard:
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()
        self.writer.flush()

    def log(self, step: int, metrics: dict[str, Tensor | float], *, iteration: int, steps: int, started: float) -> None:
        """Log one iteration's metrics; it took `steps` environment steps since perf_counter said `started`."""
        self.scalars(step, metrics)  # waits for the device, so that the clock counts its work
        seconds = time.perf_counter() - started
        self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self.writer.add_scalar("charts/SPS", steps / seconds, step)
        self.progress.update(self.task, completed=iteration, sps=f"{steps / seconds:,.0f}",
                             score=f"{self.headline} {self.shown}")

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Log an evaluation in the course of training, and remember it for the final plots."""
        values = self.scalars(step, metrics)
        for name, value in values.items():
            self.history.setdefault(name, []).append((step, value))
        if self.headline in values:
            self.shown = f"{values[self.headline]:.3f}"
            if not self.console.is_terminal:  # a log file has no live line
                self.console.print(f"step {step:,}: {self.headline} {self.shown}", highlight=False)

    @contextmanager
    def stage(self, name: str, iterations: int) -> Iterator[Stage]:
        """Show and log training within training: a line of its own, and its scalars below `name`."""
        task = self.progress.add_task(name, total=iterations, sps="–", score="")
        try:
            yield Stage(self, name, task)
        finally:
            self.progress.update(task, visible=False)
            self.progress.reset(self.task, completed=0)  # its clock starts now

    def scalars(self, step: int, metrics: dict[str, Tensor | float]) -> dict[str, float]:
        tensors = {name: x.detach().float() for name, x in metrics.items() if isinstance(x, Tensor)}
        numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
        values = {**metrics, **dict(zip(tensors, numbers))}
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        return values

    def hparams(self, parameters: dict, results: dict[str, float]) -> None:
        """Log the run's configuration beside its results, for TensorBoard's comparison of runs."""
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in parameters.items()}
        self.writer.add_hparams(plain, results, run_name=".")

    def text(self, name: str, markdown: str) -> None:
        """Log a text."""
        self.writer.add_text(name, markdown)

    def figure(self, name: str, figure) -> None:
        """Log a matplotlib figure as an image."""
        self.writer.add_figure(name, figure)

    def close(self) -> None:
        """Flush everything to disk."""
        self.writer.close()

    def state_dict(self) -> dict:
        """What a resumed run must know: the evaluations so far, the steps and seconds spent."""
        return {"history": self.history, "steps": self.steps, "seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        self.history = {name: [tuple(pair) for pair in pairs] for name, pairs in state["history"].items()}
        self.steps, self.seconds = state["steps"], state["seconds"]


class Stage:
    """A logger of training within training: the same files, under its own name."""

    directory = None

    def __init__(self, logger: TensorBoard, name: str, task):
        self.logger, self.name, self.task = logger, name, task

    def _named(self, metrics: dict) -> dict:
        return {f"{self.name}/{key.replace('/', '_')}": x for key, x in metrics.items()}

    def log(self, step: int, metrics: dict[str, Tensor | float], *, iteration: int, steps: int, started: float) -> None:
        """Log one iteration's metrics."""
        self.logger.scalars(step, self._named(metrics))
        self.logger.progress.update(self.task, completed=iteration, sps=f"{steps / (time.perf_counter() - started):,.0f}")

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Log an evaluation and show it."""
        self.logger.scalars(step, self._named(metrics))
        shown = ", ".join(f"{key.split('/')[-1]} {value:.3f}" for key, value in metrics.items())
        self.logger.progress.update(self.task, score=shown)
        if not self.logger.console.is_terminal:
            self.logger.console.print(f"{self.name}: step {step:,}: {shown}", highlight=False)


class Quiet:
    """A logger that keeps nothing, for training within training and for processes beside the first."""

    directory = None

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *error) -> None:
        """Have nothing to end."""

    def log(self, step: int, metrics: dict[str, Tensor | float], *, iteration: int, steps: int, started: float) -> None:
        """Leave an iteration unlogged."""

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Leave an evaluation unlogged."""

    def text(self, name: str, markdown: str) -> None:
        """Leave a text unlogged."""

    @contextmanager
    def stage(self, name: str, iterations: int) -> Iterator[Quiet]:
        """Leave training within training unlogged, too."""
        yield self
