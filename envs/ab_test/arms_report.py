"""Means of the outcomes by arm, and whether the test looks randomised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from envs.ab_test.analysis import PROFIT, Analysis, is_binary
from envs.ab_test.trial_table import Trial
from rlcore.runs.report import Report
from rlcore.uplift.balance import hotelling, sample_ratio, standardized_differences
from rlcore.uplift.mean_differences import group_mean, mean_estimate

FAR_DIFFERENCE = 0.1  # standardised difference above which columns are named (Austin 2009)
SUSPICIOUS = 0.001  # p-value below which a test was hardly randomised as said
SHOWN_COLUMNS = 5
FEW = 30  # units with an outcome below which the intervals of its mean are unsure


def arms_table(analysis: Analysis, level: float, shares: dict) -> Report:
    """Means of the outcomes by arm, and whether the test looks randomised."""
    trial = analysis.trial
    outcomes = {**trial.outcomes, PROFIT: analysis.profit}
    by_unit, unit_arm = features_by_unit(trial)
    rows: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(trial.arms):
        given = trial.arm == k
        rows[name] = {
            "customers": int(given.sum()),
            "units": int((unit_arm == k).sum()),
            "share": given.double().mean().item(),
        }
        for outcome, x in outcomes.items():
            found = mean_estimate(group_mean(x, given, trial.unit), level)
            rows[name][outcome] = [found.value, (found.high - found.low) / 2]
        if k:
            pair = (unit_arm == k) | (unit_arm == 0)
            treated = unit_arm[pair] == k
            differences = standardized_differences(by_unit[pair], treated)
            rows[name]["p_of_balance"] = hotelling(by_unit[pair], treated)
            rows[name]["largest_difference"] = differences.abs().amax().item()
            rows[name]["largest_differences"] = largest(differences, trial.feature_names)
    ratio = ratio_of_sizes(trial.arms, unit_arm, shares) if shares else None
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "customers": lambda row: f"{row['customers']:,}",
        **({"units": lambda row: f"{row['units']:,}"} if len(unit_arm) < len(trial.arm) else {}),
        "share": lambda row: f"{row['share']:.4f}",
    }
    for outcome in outcomes:
        columns[outcome] = partial(format_mean, outcome)
        columns[f"± {outcome}"] = partial(format_half_width, outcome)
    columns["balance p"] = lambda row: f"{row['p_of_balance']:.3f}" if "p_of_balance" in row else ""
    return Report(
        title=f"{len(trial.arm):,} customers by arm",
        caption="\n".join([*balance_lines(rows, ratio), *few_lines(trial)]),
        rows=rows,
        columns=columns,
        last=None,
        extra={"p_of_sample_ratio": ratio},
        plots={},
        judged="share",
        what="arm",
    )


def features_by_unit(trial: Trial) -> tuple[Tensor, Tensor]:
    """Return the mean features of every unit's customers of an arm, [M, D], and that arm, int64 [M].

    Units were drawn independently, customers of one unit were not, so only units can tell whether arms look alike.
    """
    arms = len(trial.arms)
    cell, number = (arms * trial.unit + trial.arm).unique(return_inverse=True)
    if len(cell) == len(trial.arm):
        return trial.features, trial.arm
    sums = torch.zeros(len(cell), trial.features.shape[1], dtype=torch.float64)
    sums.index_add_(0, number, trial.features.double())
    return sums / number.bincount()[:, None], cell % arms


def ratio_of_sizes(arms: list[str], arm: Tensor, shares: dict) -> float:
    """P-value of the arms' numbers of units [M]; raise ValueError where `shares` does not have just the arms."""
    if set(shares) != set(arms):
        raise ValueError(f"shares: expected a share of each arm, {', '.join(arms)}; got {', '.join(shares)}")
    expected = torch.tensor([float(shares[name]) for name in arms])
    return sample_ratio(arm.bincount(minlength=len(arms)), expected)


def few_lines(trial: Trial) -> list[str]:
    """Name the arms and outcomes in which few units differ from 0, or, of outcomes of 0 and 1, few from 1."""
    lines = []
    who = "customers" if len(trial.unit.unique()) == len(trial.unit) else "units"
    for k, name in enumerate(trial.arms):
        given = trial.arm == k
        for outcome, x in trial.outcomes.items():
            kinds = {"other than 0": x != 0, **({"other than 1": x != 1} if is_binary(x) else {})}
            counts = {kind: len(trial.unit[given & differs].unique()) for kind, differs in kinds.items()}
            kind = min(counts, key=lambda kind: counts[kind])
            if counts[kind] < FEW:
                lines.append(
                    f"warning: '{name}' has {counts[kind]} {who} with '{outcome}' {kind}, fewer than {FEW}: "
                    "intervals that rest on so few are unsure"
                )
    return lines


def format_mean(outcome: str, row: dict[str, Any]) -> str:
    """Format the mean of an outcome in an arm."""
    return f"{row[outcome][0]:.5g}"


def format_half_width(outcome: str, row: dict[str, Any]) -> str:
    """Format half the width of the mean's interval."""
    return f"{row[outcome][1]:.2g}"


def largest(differences: Tensor, names: list[str]) -> dict[str, float]:
    """Name the columns that differ most before the mailing, beyond FAR_DIFFERENCE."""
    order = differences.abs().argsort(descending=True)[:SHOWN_COLUMNS].tolist()
    return {names[k]: differences[k].item() for k in order if differences[k].abs() > FAR_DIFFERENCE}


def balance_lines(rows: dict[str, dict[str, Any]], ratio: float | None) -> list[str]:
    """Say whether the arms look alike before the mailing."""
    lines = ["balance p: probability of differences as large before the mailing, if arms were drawn at random"]
    for name, row in rows.items():
        if row.get("p_of_balance", 1.0) < SUSPICIOUS:
            far = ", ".join(f"{column} {x:+.2f} sd" for column, x in row["largest_differences"].items())
            lines.append(f"warning: '{name}' differs from the control before the mailing: not randomised? {far}")
    if ratio is not None and ratio < SUSPICIOUS:
        lines.append(f"warning: the arms' sizes don't fit the shares that were asked for (p = {ratio:.1g})")
    return lines
