"""The report of an off-policy evaluation: table, numbers, figures."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlcore.algorithm import Algorithm
from rlcore.offline.log_files import read
from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset, check_compatible
from rlcore.ope.evaluator import LOGGED, NET, Evaluation, OffPolicyEvaluator, kinds_of
from rlcore.plots import labelled
from rlcore.report import Report


@dataclass(frozen=True)
class OffPolicyReport(Report):
    """A comparison of estimators."""

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {"estimators": self.rows, **self.extra}

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Return the plots; how the agent was trained is another matter."""
        return self.plots


def evaluate_file(path: str, columns: ColumnNames, evaluator: OffPolicyEvaluator, algorithm: Algorithm,
                  name: str) -> OffPolicyReport:
    """Evaluate an algorithm's policy on the dataset of a file; raise ValueError where the file is of another environment."""
    dataset = read(path, columns)
    check_compatible(dataset, algorithm.env, path)
    dataset = dataset.to(algorithm.env.device)
    return report(evaluator(dataset, evaluator.target(algorithm.policy, dataset)), dataset, path, name, evaluator.level)


def report(found: Evaluation, dataset: LoggedDataset, path: str, name: str, level: float) -> OffPolicyReport:
    """Lay an evaluation out; `level` is of its intervals."""
    d, names, kinds = found.diagnostics, dataset.names, kinds_of(dataset)
    sequential = d["steps"] > 1
    sample = names.episode if sequential else "decision"
    model = "FQE" if sequential else "DM"
    digits = {kind: places(found.rows[LOGGED][f"{kind}_ci"]) for kind in kinds}

    def number(kind):
        return lambda row: f"{row[kind]:,.{digits[kind]}f}"

    def half(kind):
        return lambda row: f"{(row[f'{kind}_ci'][1] - row[f'{kind}_ci'][0]) / 2:,.{digits[kind]}f}"

    columns = {}
    for k, kind in enumerate(kinds):
        columns[kind] = number(kind)
        columns["±" + " " * k] = half(kind)  # headers must differ
    lines = [f"±: half the {level:.0%} interval by bootstrap over {d['units']:,} {names.unit}s, that of {model} without the "
             f"error of its model; {NET}: {names.reward} less {names.cost} at the logged prices"]
    if found.weights is not None:
        lines.append(f"weights worth {d['effective']:,.0f} of {d['episodes']:,} {sample}s ({d['effective_share']:.1%}), mean "
                     f"{d['mean_weight']:.3f}, greatest {d['max_weight']:,.1f}; {d['unsupported']:.2%} of target actions without "
                     "support")
    lines += [f"warning: {text}" for text in found.warnings]
    figures = {"off_policy": draw_estimates(found, f"{names.reward} less {names.cost} at the logged prices, a {sample}")}
    if found.weights is not None:
        figures["weights"] = draw_weights(found.weights, sample)
    title = f"{name}, valued on {Path(path).name}: {d['decisions']:,} decisions of {', '.join(dataset.policies)}, per {sample}"
    extra = {"log": {"path": path, **d}, "warnings": found.warnings}
    return OffPolicyReport(title, "\n".join(lines), found.rows, columns, None, extra, figures, NET, "estimator")


def places(interval: list[float]) -> int:
    """Digits after the point that an interval's width deserves."""
    width = interval[1] - interval[0]
    return max(0, 2 - math.floor(math.log10(width))) if width > 0 else 2


def draw_estimates(found: Evaluation, label: str) -> Figure:
    """Draw net estimates with their intervals."""
    figure, axes = labelled(label, "")
    for at, (name, row) in enumerate(found.rows.items()):
        low, high = row[f"{NET}_ci"]
        color = "grey" if name == LOGGED else "C0"
        axes.plot([low, high], [at, at], color=color, linewidth=2)
        axes.plot(row[NET], at, "o", color=color)
    axes.set_yticks(range(len(found.rows)), list(found.rows))
    axes.invert_yaxis()
    return figure


def draw_weights(weights: Tensor, sample: str) -> Figure:
    """Draw the share of all weight that the heaviest episodes hold."""
    figure, axes = labelled(f"share of {sample}s, the heaviest first", "share of the weight")
    held = (weights.sort(descending=True).values.cumsum(0) / weights.sum()).cpu()
    axes.plot(torch.linspace(0, 1, len(held)), held)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=0.8)
    return figure
