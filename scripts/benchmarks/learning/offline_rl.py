"""Scores of learners from a log against the size of the log.

Usage:

    python scripts/bench.py learning/offline_rl
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.offline.q_learning import DoubleDQN
from rlcore.ope.intervals import mean_and_half_width
from rlcore.runs import checkpoint
from rlcore.runs.plots import COLORS, labelled
from scripts.benchmarks.common.display import save_figure
from scripts.benchmarks.common.logs import log_seasons
from scripts.benchmarks.common.timing import timed
from scripts.benchmarks.common.training import fit_to_log

MARKERS = "oDsx"  # of the learners in the plot


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    worlds: dict,
    logging_policies: dict,
    sizes: dict,
    seeds: int,
    learners: dict,
    agents: int,
) -> dict:
    """Train every learner on logs of every logging policy, world and size, and value it in its world.

    `sizes` are by logging policy. A seed has its own log, of `agents` customers a season, and its own learners; all are
    valued on the same customers. Cells are printed and saved as they come.
    """
    cells: list[dict] = []
    print(
        f"{'world':>8}  {'log':9}  {'decisions':>10}  {'seed':>4}  {'learner':12}  "
        f"{'score':>6}  {'contacts':>8}  {'s':>6}"
    )
    for k in range(seed, seed + seeds):
        for world, make in worlds.items():
            env = make(device, k)  # learners from a log don't act here, so they can share it and its bound
            judge = env.evaluation(env)
            for name, logging_policy in logging_policies.items():
                # The log is of customers that no learner of the same seed draws.
                _, whole = log_seasons(make, logging_policy, max(sizes[name]), agents, device, 1000 + k)
                for size in sizes[name]:
                    shared: dict = {}
                    for learner, algo in learners.items():
                        fit = partial(train_on_log, env, algo, whole[slice(size)], k, shared)
                        seconds, score = timed(partial(learned_score, judge, fit))
                        cells.append(
                            {
                                "world": world,
                                "log": name,
                                "decisions": size,
                                "seed": k,
                                "learner": learner,
                                "score": score["validation/score"],
                                "contact_rate": score["validation/contact_rate"],
                                "seconds": seconds,
                            }
                        )
                        checkpoint.save_json(directory / "cells.json", cells)
                        print(
                            f"{world:>8}  {name:9}  {size:10,}  {k:4}  {learner:12}  {score['validation/score']:6.3f}  "
                            f"{score['validation/contact_rate']:8.1%}  {seconds:6.0f}",
                            flush=True,
                        )
    rows = summarise_cells(cells)
    for row in rows:
        print(
            f"{row['world']:>8}  {row['log']:9}  {row['decisions']:10,}  {row['learner']:12}  {row['score'][0]:6.3f} ± "
            f"{row['score'][1]:.3f} over {row['seeds']}"
        )
    save_figure(directory, "offline", draw_scores([row for row in rows if len(sizes[row["log"]]) > 1]))
    return {"cells": cells, "rows": rows}


def train_on_log(env, algo: Callable, log: LoggedDataset, seed: int, shared: dict):
    """Train on a log.

    Adjusted rewards are the same for all learners: the first learner that needs them leaves them in `shared`.
    """
    agent = algo(env, seed)
    if isinstance(agent, DoubleDQN) and agent.variance_reduction:
        fit = agent.variance_reduction
        agent.variance_reduction = lambda *given: shared.setdefault("rewards", shared.get("rewards") or fit(*given))
    return fit_to_log(agent, log)


def learned_score(judge, fit: Callable) -> dict[str, float]:
    """Fit a learner, and score its policy."""
    return judge.validate(fit())


def summarise_cells(cells: list[dict]) -> list[dict]:
    """Mean score over seeds and its 95 % half-width, by world, log, size and learner."""
    keys = dict.fromkeys((c["world"], c["log"], c["decisions"], c["learner"]) for c in cells)
    rows = []
    for world, log, decisions, learner in keys:
        scores = [
            c["score"]
            for c in cells
            if (c["world"], c["log"], c["decisions"], c["learner"]) == (world, log, decisions, learner)
        ]
        rows.append(
            {
                "world": world,
                "log": log,
                "decisions": decisions,
                "learner": learner,
                "seeds": len(scores),
                "score": mean_and_half_width(torch.tensor(scores, dtype=torch.float64)),
            }
        )
    return rows


def draw_scores(rows: list[dict]) -> Figure:
    """Draw scores against decisions."""
    figure, axes = labelled("decisions logged", "score")
    for k, world in enumerate(dict.fromkeys(row["world"] for row in rows)):
        for j, learner in enumerate(dict.fromkeys(row["learner"] for row in rows)):
            line = [row for row in rows if (row["world"], row["learner"]) == (world, learner)]
            mean, half = (Tensor([row["score"][i] for row in line]) for i in range(2))
            axes.errorbar(
                [row["decisions"] for row in line],
                mean,
                half,
                color=COLORS[j],
                linestyle="-" if k == 0 else ":",
                marker=MARKERS[j],
                markerfacecolor="none",  # lines of equal scores lie on each other
                markersize=9,
                label=f"{learner}, {world}",
            )
    axes.set_xscale("log")
    if rows:
        figure.legend(loc="outside lower center", ncol=4, frameon=False, fontsize=8)
    return figure
