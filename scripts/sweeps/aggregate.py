"""Means over seeds with Student's interval, interquartile means, differences to the best setting, and their table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.stats import trim_mean
from torch import Tensor

from rlcore.ope.intervals import central, student_half_width
from rlcore.runs.plots import markdown
from scripts.sweeps.jobs import Job, Setting

#: cut from each end of the sorted values, rounded down to whole values (Agarwal et al. 2021)
TRIMMED = 0.25


class Summary(NamedTuple):
    """What the seeds of a setting have found. Intervals of one seed, and all of none, are NaN."""

    choices: dict[str, str]
    metric: str
    seeds: int  #: training seeds (where none are given, jobs) with a finite value
    mean: float
    half_width: float  #: of Student's interval of the mean
    iqm: float  #: interquartile mean
    iqm_low: float
    iqm_high: float
    best: float
    best_seed: str
    folder: str  #: of the best seed
    difference: float  #: mean difference to the setting of the best mean, over the seeds of both; its own is NaN
    difference_half_width: float  #: of Student's interval of this difference, paired by seed
    beside: dict[str, float]  #: means of other policies over the jobs that have them, {name: mean}


def summarize(settings: list[Setting], *, level: float, resamples: int, seed: int) -> list[Summary]:
    """Summarise each setting over its seeds, with intervals of `level`, by `resamples` bootstrap samples."""
    summaries = [summarize_setting(setting, level, resamples, seed) for setting in settings]
    best_by_metric = {metric: best_of(settings, metric) for metric in {setting.metric for setting in settings}}
    found = []
    for summary, setting in zip(summaries, settings):
        best = best_by_metric[setting.metric]
        found.append(summary if best is None or best is setting else less(summary, setting, best, level))
    return found


def best_of(settings: list[Setting], metric: str) -> Setting | None:
    """Return the setting of the best mean of a metric, among those with the most seeds; None without a value.

    A setting whose other seeds diverged is thus not what all others are compared with.
    """
    values = [(values_by_seed(setting), setting) for setting in settings if setting.metric == metric]
    seeds = max((len(found) for found, _ in values), default=0)
    if not seeds:
        return None
    means = [(sum(found.values()) / seeds, setting) for found, setting in values if len(found) == seeds]
    sign = 1 if means[0][1].jobs[0].higher_is_better else -1
    return max(means, key=lambda pair: sign * pair[0])[1]


def less(summary: Summary, setting: Setting, best: Setting, level: float) -> Summary:
    """Add the difference of a setting to the best one, over the seeds that both have."""
    ours, theirs = values_by_seed(setting), values_by_seed(best)
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not both:
        return summary
    differences = torch.tensor(both, dtype=torch.float64)
    half_width = student_half_width(differences, level).item() if len(both) > 1 else math.nan
    return summary._replace(difference=differences.mean().item(), difference_half_width=half_width)


def values_by_seed(setting: Setting, value_of: Callable[[Job], float] = lambda job: job.value) -> dict[str, float]:
    """Return the values of the jobs with a finite headline value, {seed: value}.

    Jobs of one training seed, such as a policy that several evaluation seeds judge, are no independent replications:
    their mean counts once.
    """
    found: dict[str, list[float]] = {}
    for job in setting.jobs:
        if math.isfinite(job.value):
            found.setdefault(job.training_seed or job.seed, []).append(value_of(job))
    return {seed: sum(values) / len(values) for seed, values in found.items()}


def summarize_setting(setting: Setting, level: float, resamples: int, seed: int) -> Summary:
    """Summarise a setting over its seeds."""
    jobs = [job for job in setting.jobs if math.isfinite(job.value)]
    if not jobs:
        return Summary(
            choices=setting.choices,
            metric=setting.metric,
            seeds=0,
            mean=math.nan,
            half_width=math.nan,
            iqm=math.nan,
            iqm_low=math.nan,
            iqm_high=math.nan,
            best=math.nan,
            best_seed="",
            folder="",
            difference=math.nan,
            difference_half_width=math.nan,
            beside=means_beside(setting),
        )
    values = torch.tensor(list(values_by_seed(setting).values()), dtype=torch.float64)
    higher = jobs[0].higher_is_better
    best = max(jobs, key=lambda job: job.value if higher else -job.value)
    several = len(values) > 1
    low, high = iqm_interval(values, level, resamples, seed).tolist() if several else (math.nan, math.nan)
    return Summary(
        choices=setting.choices,
        metric=setting.metric,
        seeds=len(values),
        mean=values.mean().item(),
        half_width=student_half_width(values, level).item() if several else math.nan,
        iqm=interquartile_mean(values).item(),
        iqm_low=low,
        iqm_high=high,
        best=best.value,
        best_seed=best.seed,
        folder=str(best.folder),
        difference=math.nan,
        difference_half_width=math.nan,
        beside=means_beside(setting),
    )


def means_beside(setting: Setting) -> dict[str, float]:
    """Return the mean of each other policy over the seeds of the setting's own mean; NaN where a seed lacks it."""
    return {name: mean_beside(setting, name) for name in setting.jobs[0].beside}


def mean_beside(setting: Setting, name: str) -> float:
    """Return another policy's mean over the seeds of the setting's own mean."""
    values = values_by_seed(setting, lambda job: job.beside[name])
    return sum(values.values()) / len(values) if values else math.nan


def interquartile_mean(values: Tensor) -> Tensor:
    """Mean of the middle half of values [..., N] over the last dimension; of three values and fewer, of all."""
    return torch.as_tensor(trim_mean(values.numpy(), TRIMMED, axis=-1))


def iqm_interval(values: Tensor, level: float, resamples: int, seed: int) -> Tensor:
    """Ends [2] of the percentile bootstrap interval of the interquartile mean of values [N].

    With few seeds it is too narrow, as every bootstrap is: Student's interval of the mean is the one to trust then.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (resamples, len(values)), generator=generator)
    return central(interquartile_mean(values[rows]), level)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
def header(summaries: list[Summary]) -> list[str]:
    """Return the names of the table's columns."""
    metrics = {summary.metric for summary in summaries}
    name = metrics.pop() if len(metrics) == 1 else "metric"
    keys = list(summaries[0].choices)
    return [
        *keys,
        *(["metric"] if name == "metric" else []),
        "seeds",
        f"mean {name}" if name != "metric" else "mean",
        "±",
        "IQM",
        "IQM interval",
        "best",
        "its seed",
        "less the best row",
        "±",
        *summaries[0].beside,
    ]


def rows(summaries: list[Summary]) -> list[list[str]]:
    """Return the cells of the table, a row a setting; what is undefined is empty."""
    several = len({summary.metric for summary in summaries}) > 1
    found = []
    for summary in summaries:
        interval = "" if math.isnan(summary.iqm_low) else f"{number(summary.iqm_low)} to {number(summary.iqm_high)}"
        found.append(
            [
                *summary.choices.values(),
                *([summary.metric] if several else []),
                str(summary.seeds),
                number(summary.mean),
                number(summary.half_width),
                number(summary.iqm),
                interval,
                number(summary.best),
                summary.best_seed,
                number(summary.difference),
                number(summary.difference_half_width),
                *(number(mean) for mean in summary.beside.values()),
            ]
        )
    return found


def number(x: float) -> str:
    """Show a number with four significant digits, at least three places below 1; undefined: nothing."""
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}" if abs(x) >= 1 else f"{x:.4f}"


def to_markdown(summaries: list[Summary]) -> str:
    """Lay the table out as Markdown."""
    return markdown(header(summaries), rows(summaries), len(summaries[0].choices))


def to_csv(summaries: list[Summary]) -> str:
    """Lay the table out as CSV, with numbers as they are."""
    file = io.StringIO()
    keys = list(summaries[0].choices)
    writer = csv.writer(file)
    writer.writerow([*keys, *Summary._fields[1:-1], *summaries[0].beside])
    for summary in summaries:
        values = [*summary[1:-1], *summary.beside.values()]
        writer.writerow([*summary.choices.values(), *("" if x != x else x for x in values)])
    return file.getvalue()
