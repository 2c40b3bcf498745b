"""The report of an off-policy evaluation: table, numbers, figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlcore.algorithm import Algorithm
from rlcore.offline.column_range import clip_static_columns
from rlcore.offline.file_columns import numbered
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.cross_fitting import rows_by_episode
from rlcore.ope.evaluator import LOGGED, NET, Evaluation, OffPolicyEvaluator, kinds_of
from rlcore.runs.plots import COLORS, labelled
from rlcore.runs.report import Report, RunResult

LONG = 1e12  # numbers from here on are shown by their power of ten


@dataclass(frozen=True)
class OffPolicyReport(Report):
    """A comparison of estimators."""

    def to_metrics(self) -> dict[str, Any]:
        """Lay everything out for metrics.json."""
        return {"estimators": self.rows, **self.extra}

    def result(self, name: str | None) -> RunResult:
        """Return the doubly robust estimate, or the model's where the log has no propensities."""
        weighted = next((row for row in ("sequential DR", "DR") if row in self.rows), None)
        return RunResult.from_rows(self.rows, weighted, (self.judged,), higher_is_better=True)

    def to_figures(
        self, agent: str | None, headline: str, history: dict[str, list[tuple[int, float]]]
    ) -> dict[str, Figure]:
        """Return the plots of the estimates; the training curve is not among them."""
        return self.plots


def evaluate_dataset(
    dataset: LoggedDataset, path: str, evaluator: OffPolicyEvaluator, algorithm: Algorithm, name: str
) -> OffPolicyReport:
    """Evaluate an algorithm's policy on the dataset of the file `path`, clipped to what the policy was trained on."""
    dataset = dataset.to(algorithm.env.device)
    limits = algorithm.env.static_limits()
    clipped = ""
    if limits is not None:
        dataset, clipped = clip_static_columns(dataset, limits, numbered("feature", len(limits[0])))
    target = evaluator.target(algorithm.policy, dataset)
    evaluation = evaluator(dataset, target)
    found = [sentence for sentence in (clipped, describe_gaps(dataset)) if sentence]
    evaluation = replace(evaluation, warnings=[*found, *evaluation.warnings])
    return report(evaluation, dataset, path, name, evaluator.level)


def describe_gaps(dataset: LoggedDataset) -> str:
    """Count the episodes that lack a step between two others, in a sentence; empty where none does."""
    names = dataset.names
    rows = rows_by_episode(dataset.unit, dataset.episode, dataset.step, (names.unit, names.episode, names.step))
    step = dataset.step[rows.clamp_min(0)]
    gap = (step[:, 1:] != step[:, :-1] + 1) & (rows[:, 1:] >= 0)
    episodes = int(gap.any(1).sum())
    if not episodes:
        return ""
    return (
        f"{episodes:,} of {len(rows):,} {names.episode}s lack a {names.step} between two others: their decisions count "
        "as consecutive"
    )


def report(evaluation: Evaluation, dataset: LoggedDataset, path: str, name: str, level: float) -> OffPolicyReport:
    """Make the report of an evaluation of the policy `name`, with intervals of `level`, on the dataset of `path`."""
    diagnostics = evaluation.diagnostics
    names = dataset.names
    sequential = diagnostics["steps"] > 1
    sample = names.episode if sequential else "decision"
    net = f"{names.reward} less {names.cost} at the logged prices"
    file_name = Path(path).name
    policies = ", ".join(dataset.policies)
    decisions = diagnostics["decisions"]

    columns: dict[str, Callable[[dict[str, Any]], str]] = {}
    for k, kind in enumerate(kinds_of(dataset)):
        digits = places(evaluation.rows[LOGGED][f"{kind}_ci"])
        padding = " " * k  # headers must differ
        columns[kind] = partial(format_estimate, kind, digits)
        columns["±" + padding] = partial(format_half_width, kind, digits)
    figures = {"off_policy": draw_estimates(evaluation, f"{net}, a {sample}")}
    if evaluation.weights is not None:
        figures["weights"] = draw_weights(evaluation.weights, sample)
    return OffPolicyReport(
        title=f"{name}, valued on {file_name}: {decisions:,} decisions of {policies}, per {sample}",
        caption=caption(evaluation, names.unit, sample, net, level),
        rows=evaluation.rows,
        columns=columns,
        last=None,
        extra={"log": {"path": path, **diagnostics}, "warnings": evaluation.warnings},
        plots=figures,
        judged=NET,
        what="estimator",
    )


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
def format_estimate(kind: str, digits: int, row: dict[str, Any]) -> str:
    """Show the estimate of a kind in a row."""
    return format_number(row[kind], digits)


def format_half_width(kind: str, digits: int, row: dict[str, Any]) -> str:
    """Show half the width of the bootstrap interval of a kind in a row."""
    low, high = row[f"{kind}_ci"]
    half_width = (high - low) / 2
    return format_number(half_width, digits)


def format_number(x: float, digits: int) -> str:
    """Show a number with so many digits after the point, by its power of ten where that is long."""
    if math.isnan(x):
        return "undefined"
    return f"{x:,.{digits}f}" if abs(x) < LONG else f"{x:.2e}"


def caption(evaluation: Evaluation, unit: str, sample: str, net: str, level: float) -> str:
    """Describe the intervals, the effective sample size of the weights, and the warnings."""
    diagnostics = evaluation.diagnostics
    units = diagnostics["units"]
    model = "FQE" if diagnostics["steps"] > 1 else "DM"
    lines = [
        f"±: half the {level:.0%} interval by bootstrap over {units:,} {unit}s, that of {model} without the "
        f"error of its model; {NET}: {net}"
    ]
    if evaluation.weights is not None:
        text = (
            "effective sample size {effective:,.0f} of {episodes:,} {sample}s ({effective_share:.1%}); "
            "weights: mean {mean_weight:.3f}, greatest {max_weight:,.1f}; "
            "{unsupported:.2%} of target actions without support"
        )
        lines.append(text.format(sample=sample, **diagnostics))
    for warning in evaluation.warnings:
        lines.append(f"warning: {warning}")
    return "\n".join(lines)


def places(interval: list[float]) -> int:
    """Digits after the point for an interval: three significant digits of its width, 2 digits for width 0."""
    low, high = interval
    width = high - low
    if not 0 < width < math.inf:  # a width that is not a number too
        return 2
    magnitude = math.floor(math.log10(width))
    return max(0, 2 - magnitude)


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def draw_estimates(evaluation: Evaluation, label: str) -> Figure:
    """Draw net estimates with their intervals."""
    figure, axes = labelled(label, "")
    estimators = list(evaluation.rows)
    for at, name in enumerate(estimators):
        row = evaluation.rows[name]
        low, high = row[f"{NET}_ci"]
        color = "grey" if name == LOGGED else COLORS[0]
        axes.plot([low, high], [at, at], color=color, linewidth=2)
        axes.plot(row[NET], at, "o", color=color)
    axes.set_yticks(range(len(estimators)), estimators)
    axes.invert_yaxis()
    return figure


def draw_weights(weights: Tensor, sample: str) -> Figure:
    """Draw the share of all weight that the heaviest episodes hold."""
    figure, axes = labelled(f"share of {sample}s, the heaviest first", "share of the weight")
    heaviest_first = weights.sort(descending=True).values
    share_of_weight = (heaviest_first.cumsum(0) / weights.sum()).cpu()
    share_of_episodes = torch.linspace(0, 1, len(weights))
    axes.plot(share_of_episodes, share_of_weight)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=0.8)
    return figure
