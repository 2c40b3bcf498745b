"""MLflow as the place where a run's metrics, texts and figures go (extra `mlflow`)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient
except ImportError as error:
    raise ValueError("logger=mlflow: MLflow is not installed: pip install 'crm-rl[mlflow]'") from error

from rlcore.runs.writers import RunEnd, RunInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}  # MLflow's words for a run's end
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in names of metrics and files


class MLflowWriter:
    """Writes into the MLflow server or folder of `tracking_uri`, as a run of the experiment `experiment`.

    A relative folder lies in the working directory. Texts and figures are artifacts of the run, under their step.
    """

    def __init__(self, directory: Path, run: RunInfo, *, tracking_uri: str, experiment: str):
        self.client = MlflowClient(tracking_uri)
        found = self.client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self.client.create_experiment(experiment)
        tags = {"command": run.command, "directory": str(directory)}
        self.run_id = self.client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
        params = [Param(name_for_mlflow(key), str(value)) for key, value in run.overrides.items()]
        self.client.log_batch(self.run_id, params=params)
        self.client.log_text(self.run_id, run.config, "config.yaml")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step; MLflow's files hold no undefined ones."""
        now = int(1000 * time.time())
        metrics = [
            Metric(name_for_mlflow(name), value, now, step) for name, value in values.items() if math.isfinite(value)
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Write a text as a file."""
        self.client.log_text(self.run_id, markdown, f"texts/{name_for_mlflow(name)}_{step}.md")

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Write a figure as a file."""
        self.client.log_figure(self.run_id, figure, f"figures/{name_for_mlflow(name)}_{step}.png")

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Write results beside the run's parameters."""
        self.scalars(step, values)

    def close(self, end: RunEnd) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.run_id, STATUS[end])


def name_for_mlflow(name: str) -> str:
    """Replace what MLflow refuses in a name."""
    return NOT_IN_NAMES.sub("_", name)
