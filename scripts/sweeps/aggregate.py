"""Means over seeds with Student's interval, interquartile means with a bootstrap interval, and the table of both."""

from __future__ import annotations

import csv
import io
import math
from typing import NamedTuple

import torch
from scipy.stats import trim_mean
from torch import Tensor

from rlcore.ope.intervals import central, student_half_width
from rlcore.runs.plots import markdown
from scripts.sweeps.jobs import Setting

#: cut from each end of the sorted values, rounded down to whole values (Agarwal et al. 2021)
TRIMMED = 0.25


class Summary(NamedTuple):
    """What the seeds of a setting have found. Intervals of one seed, and all of none, are NaN."""

    choices: dict[str, str]
    metric: str
    seeds: int  #: values that are numbers
    mean: float
    half_width: float  #: of Student's interval of the mean
    iqm: float  #: interquartile mean
    iqm_low: float
    iqm_high: float
    best: float
    best_seed: str
    folder: str  #: of the best seed


def summarize(settings: list[Setting], *, level: float, resamples: int, seed: int) -> list[Summary]:
    """Summarise each setting over its seeds, with intervals of `level`, by `resamples` bootstrap samples."""
    return [summarize_setting(setting, level, resamples, seed) for setting in settings]


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
        )
    values = torch.tensor([job.value for job in jobs], dtype=torch.float64)
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
    )


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
    writer.writerow([*keys, *Summary._fields[1:]])
    for summary in summaries:
        writer.writerow([*summary.choices.values(), *("" if x != x else x for x in summary[1:])])
    return file.getvalue()
