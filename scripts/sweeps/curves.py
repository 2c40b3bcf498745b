"""Learning curves of a sweep: the mean over seeds of each setting, with the band of Student's interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from rlcore.ope.intervals import student_half_width
from rlcore.runs.plots import labelled
from scripts.sweeps.jobs import Setting


class Curve(NamedTuple):
    """The mean of several curves, and half the width of its interval: NaN of one curve."""

    steps: list[int]
    mean: list[float]
    half_width: list[float]
    seeds: int


def mean_curve(setting: Setting, level: float) -> Curve:
    """Average the curves of a setting's jobs, at the steps that all of them have."""
    curves = [dict(job.curve) for job in setting.jobs if job.curve]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = torch.tensor([[curve[step] for step in steps] for curve in curves], dtype=torch.float64)
    if len(curves) > 1 and steps:
        half_width = student_half_width(values, level).tolist()
    else:
        half_width = [math.nan] * len(steps)
    return Curve(steps, values.mean(0).tolist() if steps else [], half_width, len(curves))


def curves_figure(settings: list[Setting], level: float) -> Figure | None:
    """Draw the mean learning curve of each setting with its band; None where no job was validated in training."""
    drawn = [(setting, mean_curve(setting, level)) for setting in settings]
    drawn = [(setting, curve) for setting, curve in drawn if curve.steps]
    if not drawn:
        return None
    metrics = dict.fromkeys(job.curve_metric for setting, _ in drawn for job in setting.jobs)
    figure, axes = labelled("steps, thousands", ", ".join(metrics))
    for setting, curve in drawn:
        thousands = [step / 1e3 for step in curve.steps]
        (line,) = axes.plot(thousands, curve.mean, label=f"{setting.label} ({curve.seeds} seeds)")
        if curve.seeds > 1:
            low = [mean - half for mean, half in zip(curve.mean, curve.half_width)]
            high = [mean + half for mean, half in zip(curve.mean, curve.half_width)]
            axes.fill_between(thousands, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_title(f"mean over seeds, with its {level:.0%} interval (Student)", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return figure
