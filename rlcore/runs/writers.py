"""Where a run's metrics, texts and figures go: TensorBoard and CSV; the contract of such a place."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rlcore.runs import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: charts of TensorBoard's page of custom scalars: {category: {chart: pattern of the tags in it}}
CHARTS = {
    "how good is it": {
        "on validation data": r"validation/(score|net|conversion|log_likelihood|log_loss|token_loss)",
        "return on validation data": r"validation/return",
        "return of an episode": r"charts/episodic_return|objective/scores",
    },
    "is the update sound": {
        "losses": r"losses/(policy_loss|value_loss|td_loss|total|spend)|ppo/loss",
        "distance from the old policy": r"losses/(approx_kl|old_approx_kl)|ppo/approxkl",
        "share of clipped ratios": r"(losses|ppo)/clipfrac",
        "entropy": r"losses/entropy|objective/entropy",
        "explained variance of returns": r"(losses|val)/explained_variance",
        "distance from the reference": r"objective/kl",
    },
    "how fast is it": {"steps a second": r"charts/SPS", "learning rate": r"charts/learning_rate"},
}


RunEnd = Literal["finished", "failed", "stopped"]  #: how a run ended: by itself, by an error, by a signal


class RunInfo(NamedTuple):
    """What distinguishes a run from others."""

    name: str  #: shown where runs are listed
    command: str  #: the command line that started the run
    config: str  #: the whole configuration, as YAML
    overrides: dict[str, Any]  #: {key: value} of what the command line chose
    resumed_at: int  #: steps of the run that this one goes on from; 0: from none


class MetricWriter(Protocol):
    """A place for a run's numbers, texts and figures. It is opened with a directory and a RunInfo."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step. A resumed run replaces what the run before wrote of later steps."""

    def text(self, step: int, name: str, markdown: str) -> None:
        """Write a text."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Write a figure."""

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Write the few numbers by which runs are compared, beside what the command line chose."""

    def close(self, end: RunEnd) -> None:
        """Write everything to disk, and how the run ended, where the place has room for that."""


class TensorBoardWriter:
    """Writes an event file, flushed every `flush_seconds`, with the configuration and the command as texts."""

    def __init__(self, directory: Path, run: RunInfo, *, flush_seconds: int):
        self.run = run
        # What an interrupted run wrote after its checkpoint is written again: TensorBoard must not show both.
        purged_from = run.resumed_at + 1 if run.resumed_at else None
        self.writer = SummaryWriter(str(directory), flush_secs=flush_seconds, purge_step=purged_from)
        self.tags: set[str] = set()
        self.has_layout = False
        self.text(run.resumed_at, "run/command", f"    {run.command}")
        self.text(run.resumed_at, "run/config", "".join(f"    {line}\n" for line in run.config.splitlines()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step."""
        with self._errors_of_the_file():
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.tags |= values.keys()
        if not self.has_layout and any(tag.startswith("validation/") for tag in self.tags):
            self.write_layout()

    def write_layout(self) -> None:
        """Write the layout of the page of custom scalars: TensorBoard reads the first of a run, so it is written once.

        It has the charts of which a tag has been seen: others would be empty.
        """
        self.writer.add_custom_scalars(layout_of(self.tags))
        self.has_layout = True

    def text(self, step: int, name: str, markdown: str) -> None:
        """Write a text."""
        with self._errors_of_the_file():
            self.writer.add_text(name, markdown, step)

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Write a figure as an image."""
        with self._errors_of_the_file():
            self.writer.add_figure(name, figure, step)

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Write results as scalars, and what the command line chose as hyper-parameters.

        SummaryWriter.add_hparams would open a second event file.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        chosen = {key: x if isinstance(x, (bool, int, float, str)) else str(x) for key, x in self.run.overrides.items()}
        for summary in hparams(chosen, finite):
            self.writer._get_file_writer().add_summary(summary)
        self.scalars(step, finite)
        if not self.has_layout:
            self.write_layout()

    def close(self, end: RunEnd) -> None:
        """Write everything to disk."""
        with self._errors_of_the_file():
            self.writer.close()

    @contextmanager
    def _errors_of_the_file(self) -> Iterator[None]:
        """Name the folder in an error of the disk, which TensorBoard's thread met earlier."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{self.writer.log_dir}: TensorBoard's events: {error.strerror or error}") from error


def layout_of(tags: Iterable[str]) -> dict[str, dict[str, list]]:
    """Return TensorBoard's layout {category: {chart: [kind, [pattern]]}} of the charts that have a tag.

    A chart has its pattern, not the tags that were found: TensorBoard joins charts of several runs only where they are
    equal, and algorithms write different tags.
    """
    written = list(tags)
    layout: dict[str, dict[str, list]] = {}
    for category, charts in CHARTS.items():
        for title, pattern in charts.items():
            if any(re.fullmatch(pattern, tag) for tag in written):
                layout.setdefault(category, {})[title] = ["Multiline", [f"^({pattern})$"]]
    return layout


class CsvWriter:
    """Writes the rows (step, metric, value) of a table in long form to scalars.csv; texts and figures go nowhere."""

    COLUMNS = ("step", "metric", "value")

    def __init__(self, directory: Path, run: RunInfo):
        path = directory / "scalars.csv"
        kept = rows_until(path, run.resumed_at) if run.resumed_at and path.exists() else []

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                csv.writer(file).writerows([self.COLUMNS, *kept])

        checkpoint.atomic(path, write)
        self.file = path.open("a", newline="")
        self.rows = csv.writer(self.file)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append numbers of a step."""
        self.rows.writerows((step, name, repr(float(value))) for name, value in values.items())
        self.file.flush()

    def text(self, step: int, name: str, markdown: str) -> None:
        """Ignore a text: train.log has it."""

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Ignore a figure: the run's folder has the final ones."""

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Append results."""
        self.scalars(step, values)

    def close(self, end: RunEnd) -> None:
        """Write everything to disk."""
        self.file.close()


def rows_until(path: Path, step: int) -> list[list[str]]:
    """Return the rows of a CsvWriter's file up to a step, without a last row that a killed run left unfinished."""
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [row for row in rows if len(row) == len(CsvWriter.COLUMNS) and row[0].isdigit() and int(row[0]) <= step]
