"""Which of two rules that decided in one log earned more: the means of their own decisions, without any model.

The rules must have been given their units at random in each step, as the arms of a test are. A rule's share may change
from step to step, so rules are compared within steps (post-stratification: Miratrix, Sekhon & Yu 2013). Units are drawn
independently; where a unit's decisions are by both rules, they count as paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.offline.logged_dataset import ColumnNames, LoggedDataset
from rlcore.ope.detectable import found_with
from rlcore.ope.evaluator import NET
from rlcore.ope.intervals import normal_quantile
from rlcore.runs.report import Report
from rlcore.uplift.mean_differences import (
    Estimate,
    GroupMean,
    difference,
    group_mean,
    mean_estimate,
    standardized_mean,
    total,
)

FEW = 30  # units of a rule below which its interval is not to be trusted
ROUNDING = 1e-6  # of what units brought before: units that differ by less are alike


def less(rules: list[str]) -> str:
    """Name the row of the difference."""
    return f"{rules[0]} less {rules[1]}"


def compare_rules(
    dataset: LoggedDataset, rules: list[str], level: float, before: Tensor | None = None, notes: Sequence[str] = ()
) -> Report:
    """Compare the first of two rules, named as in `dataset.policies`, with the second, by decision.

    Both means are over the steps in which each rule decided for two units or more, weighted by the two rules' decisions
    in the step. `before` [N] is what each decision's unit had brought before any rule decided for it, NaN where nothing
    is known; a second difference is adjusted for it, and the verdict is this one's. `notes` are lines below the table.
    A unit that a rule made stop deciding must be in the dataset all the same, with decisions that bring 0, or those who
    stay are compared. Raises ValueError where there is no such step.
    """
    if len(rules) != 2:
        raise ValueError(f"rules: expected two rules, as in rules=[a,b], got {len(rules)}")
    dataset = dataset.to("cpu")
    kinds = {dataset.names.reward: dataset.gross_reward, dataset.names.cost: dataset.cost, NET: dataset.net_reward}
    unit = torch.unique(dataset.unit, return_inverse=True)[1]
    step = torch.unique(torch.stack((dataset.episode, dataset.step)), dim=1, return_inverse=True)[1]
    decided = [decided_by(dataset, rule) for rule in rules]
    weight = weights_of_steps(step, decided, unit)
    if not weight.any():
        raise ValueError(
            f"rules: expected a {dataset.names.step} in which {' and '.join(rules)} each decided for two "
            f"{dataset.names.unit}s or more, got none"
        )
    decided = [by_rule & (weight[step] > 0) for by_rule in decided]
    past = None if before is None else past_of(before, decided, step)
    rows = rows_of(rules, kinds, decided, unit, step, weight, level, past)
    judged_row = list(rows.values())[-1]  # the adjusted difference, where there is one
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "decisions": lambda row: "" if row["decisions"] is None else f"{row['decisions']:,}",
        f"{dataset.names.unit}s": lambda row: "" if row["units"] is None else f"{row['units']:,}",
    }
    for kind in kinds:
        columns[kind] = partial(format_number, kind)
        columns[f"{kind}: from, to"] = partial(format_interval, kind)
    compared = int((weight > 0).sum())
    few = [
        f"{rule} has {rows[rule]['units']} {dataset.names.unit}s, fewer than {FEW}: its intervals are not to be trusted"
        for rule in rules
        if rows[rule]["units"] < FEW
    ]
    alike = [] if before is None or past is None else balance(before, decided, unit, rules, dataset.names, level)
    steps = f"{compared} of {len(weight)} {dataset.names.step}s: those with both rules, each by its number of decisions"
    below = [*few, *notes, *alike, *([steps] if len(weight) > 1 else [])]
    is_charged = not torch.equal(kinds[NET], kinds[dataset.names.reward])
    judged = [dataset.names.reward, NET] if is_charged else [dataset.names.reward]
    said = [verdict(rules, kind, judged_row) for kind in judged]
    return Report(
        title=f"what each rule's decisions brought, a decision; {level:.0%} intervals over {dataset.names.unit}s",
        caption="\n".join([*said, power(judged_row, NET, dataset.names.unit, level), *below]),
        rows=rows,
        columns=columns,
        last=None,
        extra={"verdicts": said, "notes": list(notes), "steps_compared": [compared, len(weight)]},
        plots={},
        judged=NET,
        what="rule",
    )


def rows_of(
    rules: list[str],
    kinds: dict[str, Tensor],
    decided: list[Tensor],
    unit: Tensor,
    step: Tensor,
    weight: Tensor,
    level: float,
    past: Past | None,
) -> dict[str, dict[str, Any]]:
    """Return a row of estimates for each rule, for their difference, and for the difference adjusted for the past."""
    rows: dict[str, dict[str, Any]] = {
        rule: {"decisions": int(by_rule.sum()), "units": len(torch.unique(unit[by_rule]))}
        for rule, by_rule in zip(rules, decided)
    }
    for kind, x in kinds.items():
        one, other = (standardized_mean(x, by_rule, unit, step, weight) for by_rule in decided)
        differences = {less(rules): difference(one, other, level)}
        if past is not None:
            parts = adjusted_parts(x.double(), past, decided, unit, step, weight)
            differences[f"{less(rules)}, adjusted"] = total(parts, level)
        for rule, mean in zip(rules, (one, other)):
            put(rows[rule], kind, mean_estimate(mean, level))
        for name, found in differences.items():
            put(rows.setdefault(name, {"decisions": None, "units": None}), kind, found)
    return rows


class Past(NamedTuple):
    """What units had brought before the rules decided for them."""

    spread: Tensor  #: of each decision's unit, less the mean over the decisions of both rules; 0 where unknown, [N]
    varies: list[bool]  #: whether a rule's units differ in it, within steps and by more than rounding


def past_of(before: Tensor, decided: list[Tensor], step: Tensor) -> Past | None:
    """Return what units had brought, `before` [N], NaN where unknown; None where each rule's were alike.

    No slope can be told from units that were alike in each step, but for rounding.
    """
    known = torch.stack(decided).any(0) & ~before.isnan()
    if not known.any():
        return None
    brought = before[known].double()
    spread = torch.where(before.isnan(), 0.0, before.double() - brought.mean())
    rounding = ROUNDING * brought.square().mean().sqrt()
    within = [less_cell_means(spread, by_rule, step).square().mean().sqrt() for by_rule in decided]
    varies = [bool(deviation > rounding) for deviation in within]
    return Past(spread, varies) if any(varies) else None


def adjusted_parts(
    x: Tensor, past: Past, decided: list[Tensor], unit: Tensor, step: Tensor, weight: Tensor
) -> list[GroupMean]:
    """Return the means whose sum is the difference of x [N] adjusted for the past (CUPED with Lin 2013's slopes).

    What units brought before is alike in both rules but by chance, so the difference keeps its mean and loses the part
    of its variance that lasting differences between units make (Deng, Xu, Kohavi & Walker 2013). The two rules' means
    are of x − β·(past − mean of the past), each with the β of its own regression within steps, so that rules of unequal
    size lose it too. The mean of the past is that of these units, and with other units it would be another: it moves
    the difference by β₁ − β₂ times as much (Negi & Wooldridge 2021), which is the third part, of value 0. That slopes
    are estimated costs little with many units.
    """
    means, slopes = [], []
    for by_rule, varies in zip(decided, past.varies):
        within = less_cell_means(past.spread, by_rule, step)
        slope = (within * x[by_rule]).sum() / within.square().sum() if varies else x.new_zeros(())
        means.append(standardized_mean(x - slope * past.spread, by_rule, unit, step, weight))
        slopes.append(slope.item())
    of_both = standardized_mean(past.spread, torch.stack(decided).any(0), unit, step, weight)
    return [means[0], means[1].times(-1), of_both.times(slopes[0] - slopes[1])]


def less_cell_means(x: Tensor, by_rule: Tensor, step: Tensor) -> Tensor:
    """Return a rule's x [n], each less the mean of the rule's decisions in the same step."""
    x, step = x[by_rule], step[by_rule]
    total = x.new_zeros(int(step.amax()) + 1).index_add_(0, step, x)
    return x - (total / step.bincount().clamp_min(1))[step]


def format_number(kind: str, row: dict[str, Any]) -> str:
    """Show the mean of a kind."""
    return f"{row[kind]:.4g}"


def format_interval(kind: str, row: dict[str, Any]) -> str:
    """Show the interval of a kind."""
    low, high = row[f"{kind}_ci"]
    return f"{low:.4g}, {high:.4g}"


def decided_by(dataset: LoggedDataset, rule: str) -> Tensor:
    """Tell which decisions are a rule's, bool [N]; raise ValueError where there are too few to compare."""
    if rule not in dataset.policies:
        raise ValueError(f"rules: expected two of {', '.join(dataset.policies)}, got '{rule}'")
    by_rule = dataset.policy == dataset.policies.index(rule)
    count = len(torch.unique(dataset.unit[by_rule]))
    if count < 2:
        raise ValueError(f"rules: expected '{rule}' to have decided for two {dataset.names.unit}s or more, got {count}")
    return by_rule


def weights_of_steps(step: Tensor, decided: list[Tensor], unit: Tensor) -> Tensor:
    """Return each step's share of the decisions of several rules, [S]; 0 where a rule decided for fewer than two units.

    step and unit are int64 [N], numbered from 0; `decided` has a bool [N] for each rule.
    """
    steps = int(step.amax()) + 1
    weight = torch.zeros(steps, dtype=torch.float64)
    has_all = torch.ones(steps, dtype=torch.bool)
    for by_rule in decided:
        step_and_unit = torch.unique(torch.stack((step[by_rule], unit[by_rule])), dim=1)
        has_all &= step_and_unit[0].bincount(minlength=steps) >= 2
        weight += step[by_rule].bincount(minlength=steps)
    weight = weight * has_all
    return weight / weight.sum().clamp_min(1)


def power(row: dict[str, Any], kind: str, unit: str, level: float) -> str:
    """Say how large a true difference must be for 80 of 100 such tests to tell it from 0."""
    low, high = row[f"{kind}_ci"]
    found = found_with((high - low) / 2 / normal_quantile(level), level, power=0.8)
    return f"80 of 100 such tests would find a difference of {found:.3g}, and half of it with four times the {unit}s"


def balance(
    before: Tensor, decided: list[Tensor], unit: Tensor, rules: list[str], names: ColumnNames, level: float
) -> list[str]:
    """Say whether the rules' units were alike before: a small p tells that the rules were not given them at random.

    Nothing is said where a rule has fewer than two units of which something is known.
    """
    known = [by_rule & ~before.isnan() for by_rule in decided]
    if any(len(torch.unique(unit[of_rule])) < 2 for of_rule in known):
        return []
    means = [group_mean(before, of_rule, unit) for of_rule in known]
    p = difference(means[0], means[1], level).p
    brought = " and ".join(f"{rule} {mean.value:.4g}" for rule, mean in zip(rules, means))
    return [f"before any of these decisions a {names.unit} brought a {names.step}: {brought} (p = {p:.2g})"]


def put(row: dict[str, Any], kind: str, found: Estimate) -> None:
    """Put an estimate into a row."""
    row[kind] = found.value
    row[f"{kind}_ci"] = [found.low, found.high]
    row[f"{kind}_p"] = found.p


def verdict(rules: list[str], kind: str, row: dict[str, Any]) -> str:
    """Say whether the first rule was better."""
    low, high = row[f"{kind}_ci"]
    said = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    unsure = "" if low > 0 or high < 0 else ", as far as this log can tell"
    return f"{rules[0]} was {said} {rules[1]} by {kind}{unsure} ({row[kind]:+.4g}, {low:+.4g} to {high:+.4g})"
