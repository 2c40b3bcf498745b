"""How well customers are ranked by predicted effects: Qini coefficients and curves, effects by part of the ranking."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.ab_test.analysis import Analysis, Half
from rlcore.ope.intervals import central
from rlcore.runs.plots import entitle, labelled
from rlcore.runs.report import Report
from rlcore.uplift import metrics
from rlcore.uplift.comparison import UpliftTestSet, bootstrap_metrics


def tested(half: Half, analysis: Analysis, outcome: str, arm: int) -> UpliftTestSet:
    """The half's customers of an arm and of the control, with their predicted effects."""
    trial = analysis.trial
    pair = (trial.arm[half.rows] == 0) | (trial.arm[half.rows] == arm)
    rows = half.rows[pair]
    seen = analysis.ranked_by[outcome][rows]
    return UpliftTestSet(
        analysis.trial.unit[rows], seen, trial.arm[rows] == arm, half.effects[outcome][pair, arm][None]
    )


def ranking_table(analysis: Analysis, level: float, replications: int, bins: int, seed: int) -> Report:
    """Qini coefficients of the predicted effects, by arm and outcome; means over the halves."""
    trial, rows, plots = analysis.trial, {}, {}
    for outcome in analysis.halves[0].effects:
        chosen = " / ".join(half.choices[outcome].name for half in analysis.halves)
        for arm, name in list(enumerate(trial.arms))[1:]:
            tests = [tested(half, analysis, outcome, arm) for half in analysis.halves]
            coefficient = torch.stack([qini_of(t) for t in tests]).mean()
            drawn = bootstrap_metrics(
                tests, int(trial.unit.amax()) + 1, replications, torch.Generator().manual_seed(seed)
            ).mean((0, 1))
            low, high = central(drawn, level).tolist()
            parts = [metrics.by_bin(t.outcome, t.scores[0], t.treated, bins, t.unit) for t in tests]
            rows[f"{name}, {outcome}"] = {
                "qini": [coefficient.item(), low, high],
                "learner": chosen,
                "uplift_by_bin": torch.stack([part.uplift for part in parts]).mean(0).tolist(),
                "predicted_by_bin": torch.stack([part.score for part in parts]).mean(0).tolist(),
            }
            if outcome == analysis.outcome:
                plots[f"qini_{arm}"] = draw_qini(tests, name, outcome)
                plots[f"uplift_{arm}"] = draw_bins(rows[f"{name}, {outcome}"], parts, name, outcome)
    return Report(
        title="how well customers are ranked by predicted effects, each by the other half's model",
        caption="Qini coefficient: 0 for a random order, 1 for the best order in hindsight; learner: of each half",
        rows=rows,
        columns={
            "learner": lambda row: row["learner"],
            "Qini": lambda row: f"{row['qini'][0]:.4f}",
            "from": lambda row: f"{row['qini'][1]:.4f}",
            "to": lambda row: f"{row['qini'][2]:.4f}",
        },
        last=None,
        extra={},
        plots=plots,
        judged="qini",
        what="arm and outcome",
    )


def qini_of(test: UpliftTestSet) -> Tensor:
    """Return the Qini coefficient of a half, []; NaN where nobody of the arm and the control has an outcome."""
    if not metrics.tells_orders_apart(test.outcome, test.treated):
        return test.outcome.new_full((), torch.nan)
    return metrics.qini(test.outcome, test.scores[0], test.treated)


def draw_qini(tests: list[UpliftTestSet], arm: str, outcome: str) -> Figure:
    """Draw the Qini curve of each half."""
    figure, axes = labelled("customers treated, best first, %", f"{outcome} gained")
    entitle(figure, f"{arm}: {sum(len(t.unit) for t in tests):,} customers with their control")
    for k, t in enumerate(tests, 1):
        curve = metrics.qini_curve(t.outcome, t.scores[0], t.treated)
        axes.plot(100 * curve.x / curve.x[-1], curve.y, label=f"half {k}")
        axes.plot(
            [0, 100], [0, curve.y[-1].item()], color="grey", linestyle=":", label="random order" if k == 1 else None
        )
    axes.legend(frameon=False)
    return figure


def draw_bins(row: dict[str, Any], parts: list[metrics.Bins], arm: str, outcome: str) -> Figure:
    """Draw predicted and observed effects by equal parts of the customers, means over the halves."""
    figure, axes = labelled("customers by predicted effect, best first", f"effect on {outcome}")
    entitle(figure, f"{arm}: predicted and observed effects, ± one standard error")
    standard_error = torch.stack([part.std for part in parts]).square().sum(0).sqrt() / len(parts)
    places = range(1, len(row["uplift_by_bin"]) + 1)
    axes.bar(places, row["uplift_by_bin"], yerr=standard_error.tolist(), alpha=0.6, label="observed")
    axes.plot(places, row["predicted_by_bin"], marker="o", color="black", label="predicted")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.legend(frameon=False)
    return figure
