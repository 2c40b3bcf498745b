"""Which explorer pays: cumulative regret on the wheel bandit, over seeds."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Callable

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import t
from torch import Tensor

from rlcore import checkpoint
from rlcore.plots import labelled


class Curve:
    """A logger that keeps the cumulative regret of an agent by iteration."""

    def __init__(self):
        self.regret: list[Tensor] = []

    def log(self, step: int, metrics: dict, **_) -> None:
        """Keep a point."""
        self.regret.append(metrics["rollout/cumulative_regret"])


def run(directory: Path, device: torch.device, seed: int, *, env: Callable, learner: Callable, explorers: dict,
        seeds: int) -> dict:
    """Run every explorer on the same worlds; return final regret, growth, and differences to the best ε-greedy."""
    curves = {}
    for name, explore in track(explorers.items(), "explorers", console=Console(stderr=True)):
        rows = []
        for k in range(seed, seed + seeds):
            log = Curve()
            agent = learner(env(device, k), k, "eager", explore=explore)
            agent.train(log, lambda: None, None, lambda: False)
            rows.append(torch.stack(log.regret))
        curves[name] = torch.stack(rows).cpu().double()  # [seeds, iterations]
    final = {name: curve[:, -1] for name, curve in curves.items()}
    yardstick = min((name for name in final if name.startswith("ε")), key=lambda name: final[name].mean())
    results = {name: {
        "regret": interval(final[name]),
        # regret grows as decisions to this power, over the second half: 1 is linear
        "growth": interval((curve[:, -1] / curve[:, len(curve[0]) // 2 - 1]).log2()),
        "ahead": interval(final[yardstick] - final[name]),
        "curve": curve.mean(0)[:: max(1, len(curve[0]) // 100)].tolist()} for name, curve in curves.items()}
    figure = draw(curves, agent.env.num_agents)
    checkpoint.atomic(directory / "regret.png", lambda path: figure.savefig(path, dpi=120, format="png"))
    Console().print(table(results, yardstick, seeds))
    return {"results": results, "yardstick": yardstick}


def interval(x: Tensor) -> list[float]:
    """Mean over seeds [S] and its 95 % half-width."""
    return [x.mean().item(), half_width(x).item()]


def half_width(x: Tensor) -> Tensor:
    """Student's 95 % half-width of the mean over the first dimension."""
    return t.ppf(0.975, len(x) - 1) * x.std(0) / math.sqrt(len(x))


def table(results: dict, yardstick: str, seeds: int) -> Table:
    """Lay the comparison out for the console."""
    shown = Table(title=f"cumulative regret of an agent on the wheel bandit, {seeds} seeds", box=box.SIMPLE_HEAD,
                  caption=f"growth: regret rises as decisions to this power over the second half; ahead: less regret than "
                          f"{yardstick}, the best ε-greedy in hindsight, seed by seed", caption_justify="left")
    shown.add_column("explorer")
    for column in ("regret", "±", "growth", "±", "ahead", "±"):
        shown.add_column(column, justify="right")
    for name, row in sorted(results.items(), key=lambda item: item[1]["regret"][0]):
        shown.add_row(name, *(f"{x:.{digits}f}" for key, digits in (("regret", 1), ("growth", 2), ("ahead", 1))
                              for x in row[key]))
    return shown


def draw(curves: dict[str, Tensor], agents: int) -> Figure:
    """Draw mean cumulative regret with 95 % bands."""
    figure, axes = labelled("decisions", "cumulative regret of an agent")
    for name, curve in curves.items():
        decisions = agents * torch.arange(1, curve.shape[1] + 1)
        mean, half = curve.mean(0), half_width(curve)
        line, = axes.plot(decisions, mean, label=name)
        axes.fill_between(decisions, mean - half, mean + half, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
