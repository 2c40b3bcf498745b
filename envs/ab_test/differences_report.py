"""Every arm less the control, for every outcome, with intervals and p-values for all of them together."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure

from envs.ab_test.analysis import PROFIT, Analysis, is_binary
from rlcore.runs.plots import COLORS, entitle, labelled
from rlcore.runs.report import Report
from rlcore.uplift.mean_differences import difference, difference_of_shares, group_mean, holm


def differences(analysis: Analysis, level: float) -> dict[str, dict[str, Any]]:
    """Every arm's mean of every outcome less the control's, by "arm, outcome"; profit too, where it is no outcome."""
    trial = analysis.trial
    outcomes = {**trial.outcomes, PROFIT: analysis.profit}
    if any(torch.equal(analysis.profit, x) for x in trial.outcomes.values()):
        del outcomes[PROFIT]
    drawn_alone = len(trial.unit.unique()) == len(trial.unit)
    control = trial.arm == 0
    rows: dict[str, dict[str, Any]] = {}
    for outcome, x in outcomes.items():
        control_mean = x[control].mean().item()
        for k, name in list(enumerate(trial.arms))[1:]:
            given = trial.arm == k
            if drawn_alone and is_binary(x):
                found = difference_of_shares(x[given], x[control], level)
            else:
                found = difference(group_mean(x, given, trial.unit), group_mean(x, control, trial.unit), level)
            rows[f"{name}, {outcome}"] = {
                "control": control_mean,
                "difference": [found.value, found.low, found.high],
                "relative": found.value / control_mean if control_mean > 0 else math.nan,
                "p": found.p,
            }
    for row, adjusted in zip(rows.values(), holm([row["p"] for row in rows.values()])):
        row["p_holm"] = adjusted
    return rows


def differences_table(analysis: Analysis, level: float) -> Report:
    """Lay the differences out."""
    rows = differences(analysis, level)
    control = analysis.trial.arms[0]
    return Report(
        title=f"every arm less '{control}'",
        caption=caption(len(rows), level),
        rows=rows,
        columns={
            f"'{control}'": lambda row: f"{row['control']:.5g}",
            "difference": lambda row: f"{row['difference'][0]:+.4g}",
            "from": lambda row: f"{row['difference'][1]:+.4g}",
            "to": lambda row: f"{row['difference'][2]:+.4g}",
            "relative": lambda row: "" if math.isnan(row["relative"]) else f"{row['relative']:+.1%}",
            "p": lambda row: f"{row['p']:.2g}",
            "p, Holm": lambda row: f"{row['p_holm']:.2g}",
        },
        last=None,
        extra={},
        plots={"differences": draw_differences(rows, control)},
        judged="difference",
        what="arm and outcome",
    )


def caption(tests: int, level: float) -> str:
    """Describe the intervals and p-values."""
    each = f"from, to: each difference's own {level:.0%} interval (Welch; of single customers' 0 and 1, Agresti-Caffo)"
    if tests == 1:
        return each
    return (
        f"{each}\np, Holm: adjusted for all {tests} differences; .05 or less: an effect, wrongly in 5 % of such tables"
    )


def draw_differences(rows: dict[str, dict[str, Any]], control: str) -> Figure:
    """Draw the differences in units of half their interval, so that outcomes of any size stand side by side."""
    figure, axes = labelled("difference, in halves of its interval", "")
    names = list(rows)[::-1]
    for place, name in enumerate(names):
        value, low, high = rows[name]["difference"]
        half = (high - low) / 2 or 1.0
        axes.plot([low / half, high / half], [place, place], color=COLORS[0])
        axes.plot(value / half, place, "o", color=COLORS[0])
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    entitle(figure, f"every arm less '{control}'; an interval that leaves out 0 is an effect, taken by itself")
    return figure
