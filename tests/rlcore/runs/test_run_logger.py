"""A run's logger and its writers: what they write, what a resumed run replaces, and what a refused run leaves."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from rlcore.rollout import EpisodicReturn
from rlcore.runs.progress import tracked
from rlcore.runs.run_logger import RunLogger, loss_and_return
from rlcore.runs.writers import CsvWriter, RunInfo, TensorBoardWriter, layout_of

RUN = RunInfo(
    "a run", "python train.py seed=3", "seed: 3\nalgo:\n  lr: 0.1\n", {"seed": 3, "algo.lr": 0.1, "log": None}, 0
)
WRITERS = {"csv": CsvWriter, "tensorboard": lambda folder, run: TensorBoardWriter(folder, run, flush_seconds=1)}


def make_logger(folder: Path, writers=WRITERS, resumed_at: int = 0) -> RunLogger:
    return RunLogger(folder, writers, RUN._replace(resumed_at=resumed_at), 4, "validation/score", redraws_per_second=2)


def log_steps(logger: RunLogger, *steps: int, loss: float = 0.5) -> None:
    for step in steps:
        metrics = {"losses/value_loss": torch.tensor(loss), "charts/episodic_return": math.nan if step == 10 else 7.0}
        logger.log_iteration(step, metrics, iteration=step // 10, steps=10, started=time.perf_counter())
        logger.log_evaluation(step, {"validation/score": step / 100})


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def read_rows(folder: Path) -> list[tuple[int, str, float]]:
    with (folder / "scalars.csv").open(newline="") as file:
        return [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]


def test_several_writers_get_every_number_once_and_a_run_has_one_event_file(tmp_path):
    with make_logger(tmp_path) as logger:
        log_steps(logger, 10, 20)
        logger.log_figure("test/prices", Figure())
        logger.log_text("test/table", "| a |\n|---|\n| 1 |")
        logger.log_results({"test/score": 0.25, "test/unknown": math.nan})
    assert len(list(tmp_path.glob("events*"))) == 1
    events = read_events(tmp_path)
    rows = read_rows(tmp_path)
    for tag in events.Tags()["scalars"]:
        written = [(step, pytest.approx(value)) for step, name, value in rows if name == tag]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == written
    assert [event.step for event in events.Scalars("charts/episodic_return")] == [20]  # undefined at 10: no point
    assert [event.step for event in events.Images("test/prices")] == [20]
    text = {tag: events.Tensors(f"{tag}/text_summary")[0] for tag in ("run/command", "run/config", "test/table")}
    assert text["test/table"].step == 20
    assert b"seed=3" in text["run/command"].tensor_proto.string_val[0]
    assert b"  lr: 0.1" in text["run/config"].tensor_proto.string_val[0]


def test_hyper_parameters_are_what_was_overridden_and_metrics_are_the_runs_own(tmp_path):
    with make_logger(tmp_path) as logger:
        log_steps(logger, 10)
        logger.log_results({"test/score": 0.25, "test/unknown": math.nan})
    content = read_events(tmp_path).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {info.name for info in experiment.hparam_infos} == {"seed", "algo.lr", "log"}
    assert [info.name.tag for info in experiment.metric_infos] == ["test/score"]
    content = read_events(tmp_path).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["algo.lr"].number_value == 0.1 and start.hparams["log"].string_value == "None"


def test_custom_scalars_have_a_chart_for_each_tag_that_was_seen(tmp_path):
    with make_logger(tmp_path) as logger:
        log_steps(logger, 10, 20)
    layout = layout_pb2.Layout()
    layout.ParseFromString(read_events(tmp_path).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    for title, tag in (("on validation data", "validation/score"), ("losses", "losses/value_loss")):
        (pattern,) = charts[title]
        assert re.match(pattern, tag) and not re.match(pattern, f"{tag}_2") and not re.match(pattern, "losses/spare")
    assert "entropy" not in charts and layout_of([]) == {}


def test_runs_with_other_tags_share_a_chart():
    """TensorBoard shows two charts of one title where their tags differ."""
    one, two = (layout_of(["losses/approx_kl", *more]) for more in ([], ["losses/old_approx_kl", "losses/entropy"]))
    title = "distance from the old policy"
    assert one["is the update sound"][title] == two["is the update sound"][title]


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path, monkeypatch):
    with make_logger(tmp_path) as before:
        log_steps(before, 10, 20, 30)
    with (tmp_path / "scalars.csv").open("a") as file:
        file.write("40,losses/va")  # as a kill leaves it
    later = time.time() + 1  # TensorBoard reads event files by the second in their names
    monkeypatch.setattr(time, "time", lambda: later)
    with make_logger(tmp_path, resumed_at=10) as after:
        log_steps(after, 20, loss=0.125)
    losses = [(step, value) for step, name, value in read_rows(tmp_path) if name == "losses/value_loss"]
    assert losses == [(10, 0.5), (20, 0.125)]
    assert [(e.step, e.value) for e in read_events(tmp_path).Scalars("losses/value_loss")] == losses


def test_a_run_that_logs_nothing_leaves_no_file(tmp_path):
    with make_logger(tmp_path) as logger, logger.training():
        pass
    assert list(tmp_path.iterdir()) == []


class Ends:
    """A writer that keeps the ends that it is told, and meets an error at the end where it is given one."""

    def __init__(self, told: list[str], error: Exception | None = None):
        self.told, self.error = told, error

    def scalars(self, *_) -> None:
        pass

    def close(self, end: str) -> None:
        self.told.append(end)
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, "finished"),
        (ValueError("diverged"), "failed"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(), "stopped"),
    ],
)
def test_all_writers_are_told_how_the_run_ended_whatever_one_of_them_meets(tmp_path, error, end):
    told: list[str] = []
    full = OSError(28, "No space left on device")
    writers = {"first": lambda *_: Ends(told), "full": lambda *_: Ends(told, full), "last": lambda *_: Ends(told)}
    with pytest.raises(type(error or full)) as raised, make_logger(tmp_path, writers) as logger:
        log_steps(logger, 10)
        if error:
            raise error
    assert told == [end] * 3 and raised.value is (error or full)


def test_writers_are_closed_where_a_later_one_cannot_be_opened(tmp_path):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    told: list[str] = []
    with (
        pytest.raises(OSError, match="No space"),
        make_logger(tmp_path, {"first": lambda *_: Ends(told), "full": refuse}) as logger,
    ):
        log_steps(logger, 10)
    assert told == ["failed"]


def test_what_a_failed_run_has_logged_is_on_the_disk(tmp_path):
    unflushed = {**WRITERS, "tensorboard": lambda folder, run: TensorBoardWriter(folder, run, flush_seconds=3600)}
    with pytest.raises(ValueError, match="diverged"), make_logger(tmp_path, unflushed) as logger:
        log_steps(logger, 10, 20)
        raise ValueError("diverged")
    assert [event.step for event in read_events(tmp_path).Scalars("losses/value_loss")] == [10, 20]
    assert len([row for row in read_rows(tmp_path) if row[1] == "losses/value_loss"]) == 2


def test_the_live_line_shows_score_loss_and_return(tmp_path):
    logger = make_logger(tmp_path, {})
    logger.console = logger.progress.live.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with logger.training():
        log_steps(logger, 10, 20)
        log_steps(logger, 30)
    shown = logger.console.file.getvalue()
    assert all(part in shown for part in ("3/4", "score 0.200", "loss 0.5", "return 7", "/s"))
    assert logger.progress.live.refresh_per_second == 2
    assert loss_and_return({"objective/scores": 0.1234567, "ppo/loss": 12.0}) == "loss 12 return 0.1235"
    assert loss_and_return({"twin/fitted": 1.0}) == ""


def test_an_evaluation_shows_how_far_its_loops_are(tmp_path):
    logger = make_logger(tmp_path, {})
    logger.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with logger.evaluating("evaluating"):
        assert list(tracked(["a", "b"], "policies")) == ["a", "b"]
    assert "policies" in logger.console.file.getvalue() and "2/2" in logger.console.file.getvalue()
    assert list(tracked([], "policies")) == []  # and nobody shows it


def test_episodic_return_is_the_mean_over_episodes_that_ended(tmp_path):
    generator = torch.Generator().manual_seed(0)
    reward, done = torch.rand(60, 5, generator=generator), torch.rand(60, 5, generator=generator) < 0.2
    episodic, running = EpisodicReturn(5, torch.device("cpu")), [0.0] * 5
    for first in range(0, 60, 4):  # episodes span rollouts
        ended = []
        for t in range(first, first + 4):
            for agent in range(5):
                running[agent] += reward[t, agent].item()
                if done[t, agent]:
                    ended.append(running[agent])
                    running[agent] = 0.0
        found = episodic.update(reward[first : first + 4], done[first : first + 4]).item()
        assert found == pytest.approx(sum(ended) / len(ended), abs=1e-5) if ended else math.isnan(found)
    assert episodic.running.tolist() == pytest.approx(running, abs=1e-5)


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_mlflow_has_parameters_metrics_texts_figures_and_the_end(tmp_path, monkeypatch, error, status):
    pytest.importorskip("mlflow", reason="mlflow")
    from mlflow.tracking import MlflowClient

    from rlcore.runs.mlflow_writer import MLflowWriter

    monkeypatch.chdir(tmp_path)
    logging.disable(logging.INFO)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writers = {"mlflow": lambda folder, run: MLflowWriter(folder, run, tracking_uri=uri, experiment="x")}
    with pytest.raises(type(error)) if error else nullcontext(), make_logger(tmp_path, writers) as logger:
        log_steps(logger, 10, 20)
        logger.log_figure("test/prices", Figure())
        logger.log_text("test/table", "| a |")
        logger.log_results({"test/score, hard θ": 0.25})
        if error:
            raise error
    logging.disable(logging.NOTSET)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    assert run.data.params == {"seed": "3", "algo.lr": "0.1", "log": "None"} and run.info.status == status
    history = client.get_metric_history(run.info.run_id, "losses/value_loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.5), (20, 0.5)]
    assert run.data.metrics["test/score_ hard θ"] == 0.25 and run.data.tags["command"] == RUN.command
    assert {file.path for file in client.list_artifacts(run.info.run_id, "figures/test")} == {
        "figures/test/prices_20.png"
    }
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "figures", "texts"}


def test_a_full_disk_under_the_events_names_the_folder(tmp_path, monkeypatch):
    writer = TensorBoardWriter(tmp_path, RunInfo("name", "command", "", {}, 0), flush_seconds=120)

    def fail(*_):
        raise OSError(28, "No space left on device")

    for write, call in (
        ("add_scalar", lambda: writer.scalars(1, {"x": 1.0})),
        ("add_text", lambda: writer.text(1, "x", "y")),
        ("close", lambda: writer.close("finished")),
    ):
        monkeypatch.setattr(writer.writer, write, fail)
        with pytest.raises(OSError, match=f"^{tmp_path}: TensorBoard's events: No space left on device$"):
            call()
