"""Do the intervals of an A/B test hold? Made-up tests with known values, analysed again and again.

Usage:

    python scripts/bench.py uplift/coverage
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from envs.ab_test.analysis import Analysis, Analyst
from envs.ab_test.differences_report import differences
from envs.ab_test.trial_table import Trial
from rlcore.runs.plots import text_table
from rlcore.uplift.mean_differences import group_mean, mean_estimate
from scripts.benchmarks.common.display import show
from scripts.benchmarks.uplift.made_up_test import SPEND, MadeUpTest


class Found(NamedTuple):
    """What one test's analysis said, beside the truth."""

    means: list[bool]  #: whether the interval of every arm's mean has the true mean
    differences: list[bool]  #: of every arm's difference to the control
    any_difference: bool  #: some difference has p ≤ 1 − level by Holm, where all true ones are 0
    value: bool  #: of the learned policy's profit over the best single arm
    better: bool  #: the learned policy is said to be better than the best single arm
    truly: float  #: what it is truly worth over the best single arm


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    cases: dict[str, MadeUpTest],
    analyst: Analyst,
    by_customer: list[str],
    tests: int,
) -> dict:
    """Analyse `tests` made-up tests of each case; print and return how often intervals hold.

    `cases` are the populations; in those that `by_customer` names, each customer is taken to have been drawn alone.
    """
    found = {}
    for name, population in cases.items():
        made = [judge(population, analyst, name in by_customer, k) for k in range(seed, seed + tests)]
        found[name] = summarise(made, population)
        print(f"{name}: {tests} tests", flush=True)
    show_cases(found, tests, analyst.level)
    return {"tests": tests, "cases": found}


def judge(population: MadeUpTest, analyst: Analyst, is_by_customer: bool, seed: int) -> Found:
    """Draw a test, analyse it, and compare what is said with the truth."""
    drawn = population.draw(analyst.cost, torch.Generator().manual_seed(seed))
    trial = drawn.trial
    if is_by_customer:
        trial = trial._replace(unit=torch.arange(len(trial.arm)))
    analysis = analyst(trial, seed)
    true = population.mean_spend(analyst.cost)
    rows = list(differences(analysis, analyst.level).values())
    of_spend = rows[: len(true) - 1]
    said = analysis.over_best[f"by {SPEND}"]
    worth = true_gain(population, analysis, drawn.others)
    return Found(
        means=[holds(interval, mean) for interval, mean in zip(mean_intervals(trial, analyst.level), true)],
        differences=[holds(row["difference"], mean - true[0]) for row, mean in zip(of_spend, true[1:])],
        any_difference=any(row["p_holm"] <= 1 - analyst.level for row in rows[len(true) - 1 :]),
        value=holds(said, worth),
        better=said[1] > 0,
        truly=worth,
    )


def mean_intervals(trial: Trial, level: float) -> list[list[float]]:
    """Value and interval of every arm's mean spend."""
    arms = range(len(trial.arms))
    return [list(mean_estimate(group_mean(trial.outcomes[SPEND], trial.arm == k, trial.unit), level)) for k in arms]


def holds(interval: list[float], true: float) -> bool:
    """Tell whether [value, low, high] has the true value."""
    return interval[1] <= true <= interval[2]


def true_gain(population: MadeUpTest, analysis: Analysis, others: torch.Tensor) -> float:
    """What the learned policies of both halves truly earn over the halves' best single arms, on other customers."""
    effects = population.net_effects(others)
    gains = []
    for half in analysis.halves:
        policy = half.pays(SPEND, others, analysis.cost)
        gains.append(((policy * effects).sum(1) - effects[:, half.best_arm]).mean().item())
    return fmean(gains)


def summarise(made: list[Found], population: MadeUpTest) -> dict[str, float | None]:
    """Shares of tests."""
    no_better = [one for one in made if one.truly <= 0]
    return {
        "means": fmean(x for one in made for x in one.means),
        "differences": fmean(x for one in made for x in one.differences),
        "any_difference": None if population.uneven else fmean(one.any_difference for one in made),
        "value": fmean(one.value for one in made),
        "better": fmean(one.better for one in made),
        "falsely_better": fmean(one.better for one in no_better) if no_better else None,
        "truly": fmean(one.truly for one in made),
    }


def show_cases(found: dict[str, dict], tests: int, level: float) -> None:
    """Print the shares."""
    keys = ("means", "differences", "value", "any_difference", "better", "falsely_better")
    lines = [
        [name, *("" if row[key] is None else f"{row[key]:.1%}" for key in keys), f"{row['truly']:+.3f}"]
        for name, row in found.items()
    ]
    show(
        text_table(
            f"how often {level:.0%} intervals have the true value, in {tests} made-up tests of each case",
            ("case", "arms' means", "differences", "policy's gain", "an effect", "better", "falsely", "true gain"),
            lines,
            "policy's gain: over the best single arm; an effect: some difference of profit has p ≤ .05 by Holm, where "
            "none is;\nbetter: share of tests that say it of the learned policy; falsely: of tests where it is not",
        )
    )
