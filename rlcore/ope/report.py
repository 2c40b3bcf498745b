"""The report of a policy valued on a log: table, numbers, plot."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlcore.report import Report
from rlcore.offline.log_files import read
from rlcore.offline.logged_dataset import Logged, fitting
from rlcore.plots import labelled
from rlcore.ope.evaluator import KINDS, LOGGED, Valuation, Value


@dataclass(frozen=True)
class LogReport(Report):
    """A comparison of estimators."""

    def to_metrics(self) -> dict:
        """Lay everything out for metrics.json."""
        return {"estimators": self.rows, **self.extra}

    def to_figures(self, agent: str | None, headline: str, history: dict[str, list]) -> dict[str, Figure]:
        """Return the plots; how the agent was trained is another matter."""
        return self.plots


def value_on(path: str, valuation: Valuation, agent, name: str) -> LogReport:
    """Value an agent on the log of a file; raise ValueError where log and agent don't fit."""
    log = fitting(read(path), agent.env, path)
    return report(valuation(log, valuation.target(agent.probs, log)), log, path, name, valuation)


def report(value: Value, log: Logged, path: str, name: str, valuation: Valuation) -> LogReport:
    """Lay out what was found."""
    d, unit = value.diagnostics, "decision" if value.diagnostics["weeks"] == 1 else "season"

    def number(kind):
        return lambda row: f"{row[kind]:,.{digits[kind]}f}"

    def half(kind):
        return lambda row: f"{(row[f'{kind}_ci'][1] - row[f'{kind}_ci'][0]) / 2:,.{digits[kind]}f}"
    digits = {kind: places(value.rows[LOGGED][f"{kind}_ci"]) for kind in KINDS}
    columns = {header: show for kind in KINDS for header, show in ((kind, number(kind)), ("±" + " " * KINDS.index(kind), half(kind)))}
    lines = [f"±: half the {valuation.level:.0%} interval by bootstrap over {d['customers']:,} customers, that of "
             f"{'DM' if unit == 'decision' else 'FQE'} without the error of its model; net: profit less spend at the logged "
             "prices"]
    if value.weights is not None:
        lines.append(f"weights worth {d['effective']:,.0f} of {d['seasons']:,} {unit}s ({d['effective_share']:.1%}), mean "
                     f"{d['mean_weight']:.3f}, greatest {d['max_weight']:,.1f}; {d['unsupported']:.2%} of target actions without "
                     "support")
    lines += [f"warning: {text}" for text in value.warnings]
    return LogReport(
        f"{name}, valued on {Path(path).name}: {d['decisions']:,} decisions of {', '.join(log.policies)}, per {unit}",
        "\n".join(lines), value.rows, columns, None, {"log": {"path": path, **d}, "warnings": value.warnings},
        {"off_policy": draw(value, unit),
         **({} if value.weights is None else {"weights": spread(value.weights, unit)})}, "net", "estimator")


def places(interval: list[float]) -> int:
    """Digits after the point that an interval's width deserves."""
    width = interval[1] - interval[0]
    return max(0, 2 - math.floor(math.log10(width))) if width > 0 else 2


def draw(value: Value, unit: str) -> Figure:
    """Draw estimates with their intervals."""
    figure, axes = labelled(f"profit less spend at the logged prices, a {unit}", "")
    for at, (name, row) in enumerate(value.rows.items()):
        low, high = row["net_ci"]
        axes.plot([low, high], [at, at], color="grey" if name == LOGGED else "C0", linewidth=2)
        axes.plot(row["net"], at, "o", color="grey" if name == LOGGED else "C0")
    axes.set_yticks(range(len(value.rows)), list(value.rows))
    axes.invert_yaxis()
    return figure


def spread(weights: Tensor, unit: str) -> Figure:
    """Draw how much of all weight the heaviest units hold."""
    figure, axes = labelled(f"share of {unit}s, the heaviest first", "share of the weight")
    held = (weights.sort(descending=True).values.cumsum(0) / weights.sum()).cpu()
    axes.plot(torch.linspace(0, 1, len(held)), held)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=0.8)
    return figure
