"""What training writes to: the contract of a logger, and the loggers that keep metrics in memory or nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


class NullLogger:
    """Logs nothing: for training within training, and for all of torchrun's processes but the first."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *error) -> None:
        """Do nothing."""

    def training(self) -> AbstractContextManager[None]:
        """Show nothing in this context."""
        return nullcontext()

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
