"""The report of an off-policy evaluation: table, numbers, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from rlcore.ope.alternatives import MODELS, Comparison, best_estimator, compare
from rlcore.ope.cross_fitting import rows_by_episode
from rlcore.ope.evaluator import LOGGED, NET, Evaluation, OffPolicyEvaluator, column_numbers, kinds_of
from rlcore.ope.tables import (
    MODEL_ONLY,
    alternatives_table,
    diagnostics_table,
    draw_alternatives,
    format_number,
    places,
    verdicts,
)
from rlcore.runs.plots import COLORS, labelled
from rlcore.runs.report import Report, RunResult, half_width


@dataclass(frozen=True, kw_only=True)
class OffPolicyReport(Report):
    """The estimators of a policy, after what the log can tell and before the policy's alternatives."""

    of: str  #: the policy
    diagnostics: Report
    comparison: Comparison
    alternatives: Report

    def parts(self) -> dict[str, Report]:
        """Name the tables that are shown and logged, in their order."""
        return {"diagnostics": self.diagnostics, "estimators": self, "alternatives": self.alternatives}

    def to_metrics(self) -> dict[str, Any]:
        """Lay everything out for metrics.json."""
        compared = self.comparison
        return {
            "estimators": self.rows,
            "alternatives": compared.rows,
            "best_constant_action": list(compared.chosen),
            "not_valued": compared.unsupported,
            "verdicts": verdicts(compared, self.of),
            **self.extra,
        }

    def result(self, name: str | None) -> RunResult:
        """Return the doubly robust estimate, or the model's where the log has no propensities."""
        return RunResult.from_rows(self.rows, best_estimator(self.rows), (self.judged,), higher_is_better=True)

    def to_figures(
        self, agent: str | None, headline: str, history: dict[str, list[tuple[int, float]]]
    ) -> dict[str, Figure]:
        """Return the plots of the estimates; the training curve is not among them."""
        return self.plots


def evaluate_dataset(
    dataset: LoggedDataset,
    path: str,
    evaluator: OffPolicyEvaluator,
    algorithm: Algorithm,
    name: str,
    warnings: Sequence[str] = (),
) -> OffPolicyReport:
    """Evaluate an algorithm's policy on the dataset of the file `path`, clipped to what the policy was trained on.

    The policy's alternatives are valued beside it. `warnings` are shown before those of the evaluation.
    """
    dataset = dataset.to(algorithm.env.device)
    limits = algorithm.env.static_limits()
    clipped = ""
    if limits is not None:
        dataset, clipped = clip_static_columns(dataset, limits, numbered("feature", len(limits[0])))
    target = evaluator.target(algorithm.policy, dataset)
    name_action, obs_names = algorithm.env.action_name, list(algorithm.env.obs_names)
    evaluation = evaluator(dataset, target, name_action=name_action, obs_names=obs_names)
    found = [sentence for sentence in (*warnings, clipped, describe_gaps(dataset)) if sentence]
    evaluation = replace(evaluation, warnings=[*found, *evaluation.warnings])
    return report(evaluation, evaluator, path, name, name_action, obs_names)


def describe_gaps(dataset: LoggedDataset) -> str:
    """Count the episodes that lack a step between two others, in a sentence; empty where none does."""
    names = dataset.names
    rows = rows_by_episode(dataset)
    step = dataset.step[rows.clamp_min(0)]
    gap = (step[:, 1:] != step[:, :-1] + 1) & (rows[:, 1:] >= 0)
    episodes = int(gap.any(1).sum())
    if not episodes:
        return ""
    return (
        f"{episodes:,} of {len(rows):,} {names.episode}s lack a {names.step} between two others: their decisions count "
        "as consecutive"
    )


def report(
    evaluation: Evaluation,
    evaluator: OffPolicyEvaluator,
    path: str,
    name: str,
    name_action: Callable[[int], str],
    obs_names: list[str],
) -> OffPolicyReport:
    """Value the alternatives of the policy `name`, which was evaluated on the file `path`, and report all of it.

    `obs_names` are those of the observed columns, empty where they have none.
    """
    layout = evaluation.layout
    dataset = layout.dataset
    names = dataset.names
    sample = layout.sample
    net = net_in_words(dataset)
    comparison = compare(evaluator, evaluation, name, name_action)
    columns: dict[str, Callable[[dict[str, Any]], str]] = {}
    for k, kind in enumerate(kinds_of(dataset)):
        digits = places(evaluation.rows[LOGGED][f"{kind}_ci"])
        padding = " " * k  # headers must differ
        columns[kind] = partial(format_estimate, kind, digits)
        columns["±" + padding] = partial(format_half_width, kind, digits)
    figures = {
        "off_policy": draw_estimates(evaluation, f"{net}, a {sample}"),
        "alternatives": draw_alternatives(comparison, name, f"{net}, a {sample}"),
    }
    if evaluation.weights is not None:
        figures["weights"] = draw_weights(evaluation.weights, sample)
    columns_of_obs = obs_names or column_numbers(dataset)
    return OffPolicyReport(
        title=f"{name} by every estimator, per {sample}",
        caption=caption(layout.units, names.unit, net, evaluator.level),
        rows=model_last(evaluation.rows),
        columns=columns,
        last=None,
        extra={"log": {"path": path, **evaluation.diagnostics}, "warnings": evaluation.warnings},
        plots=figures,
        judged=NET,
        what="estimator",
        of=name,
        diagnostics=diagnostics_table(evaluation, evaluator, Path(path).name, columns_of_obs),
        comparison=comparison,
        alternatives=alternatives_table(comparison, layout, name, evaluator.level),
    )


def net_in_words(dataset: LoggedDataset) -> str:
    """Say what is charged in the net reward: a price that all decisions have is named."""
    names, prices = dataset.names, torch.unique(dataset.price)
    if len(prices) > 1:
        return f"{names.reward} less {names.cost} at the logged prices"
    price = prices.item()
    return f"{names.reward} less {price:g} × {names.cost}" if price else names.reward


def model_last(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put the estimators by a model alone below all others, marked."""
    marked = {name: {**row, "group": MODEL_ONLY} if name in MODELS else row for name, row in rows.items()}
    return dict(sorted(marked.items(), key=lambda item: "group" in item[1]))


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
def format_estimate(kind: str, digits: int, row: dict[str, Any]) -> str:
    """Show the estimate of a kind in a row."""
    return format_number(row[kind], digits)


def format_half_width(kind: str, digits: int, row: dict[str, Any]) -> str:
    """Show half the width of the bootstrap interval of a kind in a row."""
    return format_number(half_width(row[f"{kind}_ci"]), digits)


def caption(units: int, unit: str, net: str, level: float) -> str:
    """Describe the intervals."""
    return f"±: half the {level:.0%} interval by bootstrap over {units:,} {unit}s; {NET}: {net}"


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
