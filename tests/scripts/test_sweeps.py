"""What a sweep ends with: settings, means and intervals over seeds, files, curves; the names of its folders."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from scipy import stats

from configs import CONF
from scripts import summary
from scripts.shared.cli import MAX_NAME, folder_name
from scripts.sweeps.aggregate import header, interquartile_mean, rows, summarize, to_csv, to_markdown
from scripts.sweeps.callback import SweepSummary
from scripts.sweeps.curves import curves_figure, mean_curve
from scripts.sweeps.jobs import group, read_jobs
from scripts.sweeps.report import fitting_table, summarize_sweep

OPTIONS = {"level": 0.95, "resamples": 2000, "seed": 0}


def write_job(folder: Path, overrides: list[str], value, metric="score", higher=True, curve=()) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(overrides))
    headline = {"of": "ppo", "metric": metric, "value": value, "higher_is_better": higher, "metrics": {metric: value}}
    found = {"headline": headline, "curve": {"metric": f"validation/{metric}", "points": list(curve)}}
    (folder / "metrics.json").write_text(json.dumps(found))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two learning rates by five seeds; one job has no value."""
    values = {"0.1": [0.5, 0.6, 0.9, 0.4, 0.7], "0.2": [0.3, None, 0.2, 0.25, 0.35]}
    number = 0
    for lr, found in values.items():
        for seed, value in enumerate(found):
            curve = [] if value is None else [(100, value / 2), (200, value), *([(300, 1.0)] if seed == 0 else [])]
            overrides = ["algo=ppo", f"algo.optimizer.lr={lr}", f"seed={seed}"]
            write_job(tmp_path / f"{number}_algo.optimizer.lr={lr},seed={seed}", overrides, value, curve=curve)
            number += 1
    return tmp_path


def test_a_setting_is_named_by_what_its_jobs_do_not_share_and_not_by_the_seed(sweep):
    settings = group(read_jobs([sweep]))
    assert [setting.choices for setting in settings] == [{"algo.optimizer.lr": "0.1"}, {"algo.optimizer.lr": "0.2"}]
    assert [[job.seed for job in setting.jobs] for setting in settings] == [list("01234")] * 2


def test_the_seed_of_a_part_is_a_seed_too(tmp_path):
    for seed in "12":
        write_job(tmp_path / seed, ["env/world=full", f"env.evaluation.seed={seed}", f"seed=1{seed}"], 0.5)
    (setting,) = group(read_jobs([tmp_path]))
    assert setting.choices == {} and setting.label == "all" and [job.seed for job in setting.jobs] == ["1, 11", "2, 12"]
    assert to_markdown(summarize([setting], **OPTIONS)).startswith("| seeds | mean score |")


def test_means_and_intervals_are_scipys(sweep):
    first, second = summarize(group(read_jobs([sweep])), **OPTIONS)
    for found, values in ((first, [0.5, 0.6, 0.9, 0.4, 0.7]), (second, [0.3, 0.2, 0.25, 0.35])):
        mean, low, high = np.mean(values), *stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert found.seeds == len(values) and found.mean == pytest.approx(mean)
        assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
        middle = sorted(values)[1:-1]
        assert found.iqm == pytest.approx(np.mean(middle))
        reference = stats.bootstrap(
            (values,),
            lambda x, axis: stats.trim_mean(x, 0.25, axis),
            confidence_level=0.95,
            n_resamples=20000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert (found.iqm_low, found.iqm_high) == pytest.approx((reference.low, reference.high), abs=0.04)
    assert (first.best, first.best_seed) == (0.9, "2") and "lr=0.1,seed=2" in first.folder


def test_the_difference_to_the_best_row_is_paired_by_seed(sweep):
    first, second = summarize(group(read_jobs([sweep])), **OPTIONS)
    paired = np.array([0.3 - 0.5, 0.2 - 0.9, 0.25 - 0.4, 0.35 - 0.7])  # of the four seeds that both have
    low, high = stats.t.interval(0.95, 3, paired.mean(), stats.sem(paired))
    assert math.isnan(first.difference)
    assert second.difference == pytest.approx(paired.mean())
    assert second.difference_half_width == pytest.approx((high - low) / 2)
    assert rows([first, second])[0][-2:] == ["", ""] and rows([first, second])[1][-2] == "-0.3500"


def test_what_diverged_but_for_one_seed_is_not_what_others_are_compared_with(tmp_path):
    for lr, found in {"0.1": [0.5, 0.6, 0.7], "9": [0.9, None, None]}.items():
        for seed, value in enumerate(found):
            write_job(tmp_path / f"{lr}_{seed}", [f"algo.optimizer.lr={lr}", f"seed={seed}"], value)
    steady, lucky = summarize(group(read_jobs([tmp_path])), **OPTIONS)
    assert math.isnan(steady.difference) and lucky.difference == pytest.approx(0.4)


def test_evaluation_seeds_of_one_training_are_no_replications(tmp_path):
    for training, found in {"0": [0.1, 0.3], "1": [0.5, 0.7], "2": [0.6, 0.6]}.items():
        for evaluation, value in enumerate(found):
            overrides = [f"seed={training}", f"env.evaluation.seed={evaluation}"]
            write_job(tmp_path / f"{training}{evaluation}", overrides, value)
    (found,) = summarize(group(read_jobs([tmp_path])), **OPTIONS)
    low, high = stats.t.interval(0.95, 2, 1.4 / 3, stats.sem([0.2, 0.6, 0.6]))
    assert found.seeds == 3 and found.half_width == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval_and_lower_can_be_better(tmp_path):
    write_job(tmp_path / "a", ["algo=reward_model", "seed=0"], 0.5, "log_loss", higher=False)
    write_job(tmp_path / "b", ["algo=reward_model", "seed=1"], 0.4, "log_loss", higher=False)
    write_job(tmp_path / "c", ["algo=ppo", "seed=1"], 0.8)
    losses, scores = summarize(group(read_jobs([tmp_path])), **OPTIONS)
    assert losses.best == 0.4 and losses.best_seed == "1" and losses.metric == "log_loss"
    assert scores.seeds == 1 and math.isnan(scores.half_width) and math.isnan(scores.iqm_low)
    assert "metric" in header([losses, scores]) and rows([losses, scores])[1][4] == ""  # ±: nothing, and not 0


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    assert interquartile_mean(torch.tensor([100.0, 1.0, 2.0, -50.0])).item() == 1.5
    assert interquartile_mean(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0


def test_other_policies_stand_beside_by_their_mean_over_the_jobs_that_have_them(tmp_path):
    for number, (view, other) in enumerate([("state", 0.5), ("state", 0.7), ("belief", None)]):
        folder = tmp_path / str(number)
        write_job(folder, [f"env/observation={view}", f"seed={number}"], 0.6)
        if other is not None:
            file = folder / "metrics.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "policies": {"planning": {"score": other}}}))
    summaries = summarize(group(read_jobs([tmp_path], ["planning"])), **OPTIONS)
    assert header(summaries)[-1] == "planning"
    assert [row[-1] for row in rows(summaries)] == ["0.6000", ""]
    by_view = {row["env/observation"]: row for row in csv.DictReader(to_csv(summaries).splitlines())}
    assert float(by_view["state"]["planning"]) == pytest.approx(0.6) and by_view["belief"]["planning"] == ""


@pytest.mark.slow
def test_files_hold_the_table(sweep, capsys):
    summarize_sweep([sweep], sweep, **OPTIONS, beside=[])
    shown = capsys.readouterr().out
    assert "10 jobs, 2 settings" in shown and "0.6200" in shown
    with (sweep / "summary.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["algo.optimizer.lr"] == "0.1" and float(first["mean"]) == pytest.approx(0.62)
    assert second["seeds"] == "4"
    lines = (sweep / "summary.md").read_text().splitlines()
    assert lines[0].startswith("| algo.optimizer.lr | seeds | mean score | ± |") and lines[2].startswith("| 0.1 | 5 |")
    assert (sweep / "learning_curves.png").stat().st_size > 10_000


def test_curves_are_averaged_where_all_seeds_have_a_point(sweep):
    settings = group(read_jobs([sweep]))
    curve = mean_curve(settings[0], 0.95)
    assert curve.steps == [100, 200] and curve.seeds == 5  # one seed alone went on to 300
    assert curve.mean == pytest.approx([0.31, 0.62])
    half = stats.t.ppf(0.975, 4) * stats.sem([0.5, 0.6, 0.9, 0.4, 0.7])
    assert curve.half_width == pytest.approx([half / 2, half])
    figure = curves_figure(settings, 0.95)
    assert len(figure.axes[0].lines) == len(figure.axes[0].collections) == 2
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == [
        "algo.optimizer.lr=0.1 (5 seeds)",
        "algo.optimizer.lr=0.2 (4 seeds)",
    ]


@pytest.mark.parametrize(
    "prepare, says",
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: folder, "no metrics.json in it or below"),
        (lambda folder: (folder / "metrics.json").write_text("{}") and folder, "no headline figure"),
        (lambda folder: (folder / "metrics.json").write_text("[1") and folder, "no headline figure"),
    ],
)
def test_a_folder_without_runs_is_one_line(tmp_path, prepare, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["summary.py", str(prepare(tmp_path))])
    with pytest.raises(SystemExit) as ended:
        summary.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and said.startswith("error: ") and says in said


@pytest.mark.slow
def test_the_summary_of_an_earlier_sweep_is_written_where_it_is_asked_for(sweep, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("out") / "of" / "the sweep"
    monkeypatch.setattr(sys, "argv", ["summary.py", str(sweep), "--out", str(out)])
    summary.main()
    assert {path.name for path in out.iterdir()} == {"summary.csv", "summary.md", "learning_curves.png"}
    assert not (sweep / "summary.csv").exists() and "learning_curves.png" in capsys.readouterr().out


@pytest.mark.slow
def test_folders_are_named_by_what_is_swept_over():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["env.num_agents=48"], return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.overrides.task = ["algo=ppo,bandit", "env.num_agents=48", "algo.gamma=interval(0,1)", "seed=0,1"]
    SweepSummary(**OPTIONS, beside=[]).on_multirun_start(config)
    assert config.hydra.overrides.hydra[-1].endswith("exclude_keys=['env.num_agents']")
    assert folder_name(3, "algo=ppo,log=logs/a.parquet") == "3_algo=ppo,log=logs.a.parquet"
    assert folder_name(0, "") == "0" and len(folder_name(0, "x" * 1000)) == MAX_NAME


@pytest.mark.parametrize("width", [200, 110, 80, 20])
def test_a_narrow_console_has_the_settings_and_their_means(width):
    """As many columns as there is room for; settings, seeds, the mean and other policies always."""
    columns = ["env.population.r2", "env/observation", "seeds", "mean score", "±", "IQM", "IQM interval", "best"]
    columns += ["its seed", "less the best row", "±", "planning"]
    line = [
        "0.6",
        "state_counts",
        "3",
        "0.7403",
        "0.01",
        "0.7",
        "0.7360 to 0.7464",
        "0.74",
        "2",
        "-0.2330",
        "0.01",
        "0.99",
    ]
    printed = io.StringIO()
    console = Console(width=width, file=printed)
    table = fitting_table(console, "36 jobs", columns, [line], 2, "caption")
    shown = [column.header for column in table.columns]
    assert {"env.population.r2", "env/observation", "seeds", "mean score", "±", "planning"} <= set(shown)
    assert (shown == columns) == (width == 200) and (width == 200 or "IQM interval" not in shown)
    if width >= 80:
        console.print(table)
        said = printed.getvalue()
        assert "state_counts" in said and "0.7403" in said and ("more columns" in said) == (width < 200)


def test_tables_have_a_cell_for_every_column(sweep):
    summaries = summarize(group(read_jobs([sweep])), **OPTIONS)
    assert {len(row) for row in rows(summaries)} == {len(header(summaries))}
    assert len({line.count("|") for line in to_markdown(summaries).splitlines()}) == 1
    assert {len(line) for line in csv.reader(to_csv(summaries).splitlines())} == {13}


def test_a_run_that_lies_in_two_of_the_folders_counts_once(tmp_path):
    job = tmp_path / "sweep" / "0_seed=0"
    job.mkdir(parents=True)
    headline = {"metric": "score", "value": 0.5, "higher_is_better": True}
    (job / "metrics.json").write_text(json.dumps({"headline": headline, "curve": {"metric": "score", "points": []}}))
    assert len(read_jobs([tmp_path / "sweep", job])) == 1
