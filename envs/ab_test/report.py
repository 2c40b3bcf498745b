"""The analysis of a randomised test as tables, and each customer's scores as a file."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from envs.ab_test.analysis import Analysis
from envs.ab_test.arms_report import arms_table
from envs.ab_test.differences_report import differences_table
from envs.ab_test.policies_report import policies_table
from envs.ab_test.ranking_report import ranking_table
from rlcore.runs import checkpoint
from rlcore.runs.report import Report


def tables(
    analysis: Analysis, level: float, replications: int, bins: int, shares: dict, seed: int
) -> dict[str, Report]:
    """Lay the analysis out in four tables by name: the arms, their differences, the ranking of customers, policies."""
    return {
        "arms": arms_table(analysis, level, shares),
        "differences": differences_table(analysis, level),
        "ranking": ranking_table(analysis, level, replications, bins, seed),
        "policies": policies_table(analysis),
    }


def write_scores(path: Path, analysis: Analysis) -> None:
    """Write a CSV file: a row a customer, in the table's order, with predicted effects and the arm that pays most."""
    trial = analysis.trial
    rows = torch.cat([half.rows for half in analysis.halves])
    order = rows.argsort().tolist()
    effects = torch.cat([half.effects[analysis.outcome] for half in analysis.halves])[order].tolist()
    by_outcome = torch.cat([half.targets[f"by {analysis.outcome}"].argmax(1) for half in analysis.halves])
    pays = by_outcome[order].tolist()

    def write(target: Path) -> None:
        with open(target, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["customer", "given", "pays", *(f"effect of {name}" for name in trial.arms[1:])])
            for k, customer in enumerate(trial.ids):
                shown = [f"{x:.8g}" for x in effects[k][1:]]
                writer.writerow([customer, trial.arms[trial.arm[k]], trial.arms[pays[k]], *shown])

    checkpoint.atomic(path, write)
