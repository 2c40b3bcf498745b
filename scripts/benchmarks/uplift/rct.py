"""Compare uplift learners with scikit-uplift's on a randomised test, by the Qini coefficient; check its arms' values.

Usage:

    python scripts/bench.py uplift/rct benchmark.table.path=test.csv benchmark.table.treatment=COLUMN \\
        benchmark.table.control=ARM benchmark.table.outcomes=[COLUMN,…]
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from envs.ab_test import values
from envs.ab_test.analysis import Analyst
from envs.ab_test.trial_table import Trial, TrialTable
from rlcore.ope.cross_fitting import folds
from rlcore.ope.intervals import normal_half_width
from rlcore.runs.plots import text_table
from rlcore.uplift import comparison
from rlcore.uplift.selection import Experiment
from scripts.benchmarks.common.display import show
from scripts.benchmarks.uplift.peers import logistic_peers
from scripts.benchmarks.uplift.qini_splits import OURS, split, summarise_splits


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    table: TrialTable,
    analyst: Analyst,
    arms: list[str],
    splits: int,
    inverse_penalties: list[float],
    replications: int,
) -> dict:
    """Fit every learner on halves of the customers and compare on the other halves; print and return.

    `analyst` has the learners of scripts/uplift.py, one of which cross-validation chooses in each learning half. The
    peers are scikit-uplift's two-model and interaction models on logistic regression. Every arm is valued by IPS, SNIPS
    and DR as a policy for everybody, beside its own mean.
    """
    warnings.filterwarnings("ignore", module="sklift|sklearn")  # deprecation warnings
    trial = table.read()
    name = analyst.outcome or next(iter(trial.outcomes))
    outcome = trial.outcomes[name]
    means = arm_values(trial, outcome, analyst, seed)
    show_arms(means, name)
    kept, treated = treated_and_control(trial, arms)
    share = trial.arm.bincount().double() / len(trial.arm)
    everyone = Experiment(kept, trial.features[kept], treated, outcome[kept].float(), share[trial.arm[kept]])
    rivals = logistic_peers(inverse_penalties)
    learners = analyst.usable(outcome)
    made = [
        split(everyone, learners, rivals, k, analyst.folds, analyst.standard_errors) for k in range(seed, seed + splits)
    ]
    drawn = comparison.bootstrap_metrics(
        [one.tested() for one in made], len(trial.arm), replications, torch.Generator().manual_seed(seed)
    ).mean(0)
    rows = summarise_splits(made, drawn, list(rivals), analyst.level)
    show_learners(rows, name, everyone)
    return {"outcome": name, "arms": means, "rows": rows, "chosen": [one.chosen for one in made]}


def treated_and_control(trial: Trial, arms: list[str]) -> tuple[Tensor, Tensor]:
    """Return the customers of the control and of the named arms [M], and who was treated, int64 [M]."""
    for name in arms:
        if name not in trial.arms[1:]:
            raise ValueError(f"benchmark.arms: expected some of {', '.join(trial.arms[1:])}, got '{name}'")
    numbers = [trial.arms.index(name) for name in arms] or list(range(1, len(trial.arms)))
    kept = torch.isin(trial.arm, torch.tensor([0, *numbers])).nonzero()[:, 0]
    return kept, (trial.arm[kept] > 0).long()


def arm_values(trial: Trial, outcome: Tensor, analyst: Analyst, seed: int) -> dict[str, dict]:
    """Value each arm as a policy for everybody, by models of other customers, beside the arm's own mean."""
    count = len(trial.arms)
    fold = folds(torch.arange(len(trial.arm)), 2, torch.Generator().manual_seed(seed))
    predicted = torch.zeros(len(trial.arm), count, dtype=torch.float64)
    for k in range(2):
        learn, judge = fold != k, fold == k
        predicted[judge] = values.arm_profits(
            analyst.model,
            trial.features[learn],
            trial.arm[learn],
            outcome[learn].float(),
            count,
            trial.features[judge],
            seed,
        )
    found = {}
    for arm, name in enumerate(trial.arms):
        own = outcome[trial.arm == arm]
        target = values.everybody(arm, count, len(trial.arm))
        valued, _ = values.value(target, trial.arm, trial.propensity, outcome, predicted, trial.unit, analyst.level)
        half = normal_half_width(own, analyst.level).item()
        found[name] = {
            "customers": len(own),
            "mean": own.mean().item(),
            "half_width": half,
            **valued._asdict(),
        }
    return found


def show_arms(means: dict[str, dict], outcome: str) -> None:
    """Print every arm's mean beside its value by each estimator."""
    lines = [
        [
            name,
            f"{row['customers']:,}",
            *(f"{x:.5f}" for x in (row["mean"], row["half_width"], row["ips"][0], row["snips"][0], row["dr"][0])),
        ]
        for name, row in means.items()
    ]
    show(
        text_table(
            f"{outcome}, had everybody got the arm", ("arm", "customers", "mean", "±", "IPS", "SNIPS", "DR"), lines
        )
    )


def show_learners(rows: dict[str, dict], outcome: str, everyone: Experiment) -> None:
    """Print the learners' Qini coefficients and their paired differences to the chosen one."""
    lines = [
        [
            name,
            "peer" if row["peer"] else "ours",
            *(f"{x:.4f}" for x in row["qini"]),
            str(row["times_chosen"] or ""),
            *("" if name == OURS else f"{x:+.4f}" for x in row["ours_less"]),
        ]
        for name, row in sorted(rows.items(), key=lambda item: item[1]["qini"][0])
    ]
    treated = everyone.action > 0
    rates = [everyone.outcome[of].double().mean().item() for of in (treated, ~treated)]
    show(
        text_table(
            f"{outcome}: {len(treated):,} customers, {rates[0]:.5g} treated, {rates[1]:.5g} control; mean of splits",
            ("learner", "whose", "Qini", "from", "to", "chosen", "ours less it", "from", "to"),
            lines,
            "ours: the learner that cross-validation chose in the learning half; intervals are paired, over customers",
        )
    )
