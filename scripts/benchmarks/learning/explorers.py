"""Compare explorers by cumulative regret on the wheel bandit, over seeds.

Usage:

    python scripts/bench.py learning/explorers
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from rlcore.ope.intervals import LEVEL, mean_and_half_width, student_half_width
from rlcore.runs.logger import MemoryLogger
from rlcore.runs.plots import labelled, text_table
from rlcore.training_loop import TrainingLoop
from scripts.benchmarks.common.display import progress, save_figure, show


def run(
    directory: Path, device: torch.device, seed: int, *, env: Callable, learner: Callable, explorers: dict, seeds: int
) -> dict:
    """Run every explorer on the same worlds; return final regret, growth, and differences to the best ε-greedy."""
    curves = {}
    for name, explore in progress(explorers.items(), "explorers"):
        rows = []
        for k in range(seed, seed + seeds):
            log = MemoryLogger()
            agent = learner(env(device, k), k, exploration=explore)
            TrainingLoop(agent, log).run()
            rows.append(torch.tensor(log["rollout/cumulative_regret"]))
        curves[name] = torch.stack(rows).cpu().double()  # [seeds, iterations]
    final = {name: curve[:, -1] for name, curve in curves.items()}
    yardstick = min((name for name in final if name.startswith("ε")), key=lambda name: final[name].mean())
    results = {
        name: {
            "regret": mean_and_half_width(final[name]),
            # regret grows as decisions to this power, over the second half: 1 is linear
            "growth": mean_and_half_width((curve[:, -1] / curve[:, len(curve[0]) // 2 - 1]).log2()),
            "ahead": mean_and_half_width(final[yardstick] - final[name]),
            "curve": curve.mean(0)[:: max(1, len(curve[0]) // 100)].tolist(),
        }
        for name, curve in curves.items()
    }
    save_figure(directory, "regret", draw_regret(curves, agent.env.num_agents))
    show(regret_table(results, yardstick, seeds))
    return {"results": results, "yardstick": yardstick}


def regret_table(results: dict, yardstick: str, seeds: int) -> Table:
    """Lay the comparison out for the console."""
    rows = [
        [name, *(f"{x:.{digits}f}" for key, digits in (("regret", 1), ("growth", 2), ("ahead", 1)) for x in row[key])]
        for name, row in sorted(results.items(), key=lambda item: item[1]["regret"][0])
    ]
    return text_table(
        f"cumulative regret of an agent on the wheel bandit, {seeds} seeds",
        ["explorer", "regret", "±", "growth", "±", "ahead", "±"],
        rows,
        f"growth: regret rises as decisions to this power over the second half; ahead: less regret than {yardstick}, "
        "the best ε-greedy in hindsight, seed by seed",
    )


def draw_regret(curves: dict[str, Tensor], agents: int) -> Figure:
    """Draw mean cumulative regret with 95 % bands."""
    figure, axes = labelled("decisions", "cumulative regret of an agent")
    for name, curve in curves.items():
        decisions = agents * torch.arange(1, curve.shape[1] + 1)
        mean, half = curve.mean(0), student_half_width(curve, LEVEL)
        (line,) = axes.plot(decisions, mean, label=name)
        axes.fill_between(decisions, mean - half, mean + half, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
