"""Which of two rules that decided in one log earned more: the means of their own decisions, without any model.

The rules must have been given their units at random in each step, as the arms of a test are. A rule's share may change
from step to step, so rules are compared within steps (post-stratification: Miratrix, Sekhon & Yu 2013). Units are drawn
independently; where a unit's decisions are by both rules, they count as paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

Row = dict[str, Any]


def less(rules: list[str]) -> str:
    """Name the row of the difference."""
    return f"{rules[0]} less {rules[1]}"


class ComparedRules(NamedTuple):
    """The N decisions of two rules, and the S steps in which the rules are compared."""

    rules: list[str]  #: names; the first is judged
    decided: list[Tensor]  #: which decisions are each rule's, in the steps that count, bool [N]
    unit: Tensor  #: of each decision, int64 [N], numbered from 0
    step: Tensor  #: of each decision, int64 [N], numbered from 0
    weight: Tensor  #: of each step, float64 [S]; 0: not compared
    names: ColumnNames

    @classmethod
    def of(cls, dataset: LoggedDataset, rules: list[str]) -> ComparedRules:
        """Find the steps in which each rule decided for two units or more. Raises ValueError where there is none."""
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
        return cls(rules, decided, unit, step, weight, dataset.names)

    @property
    def steps_compared(self) -> int:
        """Number of steps that are compared."""
        return int((self.weight > 0).sum())

    def mean(self, x: Tensor, of: Tensor) -> GroupMean:
        """Return the mean of x [N] over some decisions, bool [N], standardised to the weights of steps."""
        return standardized_mean(x, of, self.unit, self.step, self.weight)

    def within(self, x: Tensor) -> list[Tensor]:
        """Return each rule's x, of its own decisions alone, each less the rule's mean in the same step."""
        return [less_cell_means(x[by_rule], self.step[by_rule]) for by_rule in self.decided]


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
    compared = ComparedRules.of(dataset, rules)
    names = dataset.names
    kinds = {names.reward: dataset.gross_reward, names.cost: dataset.cost, NET: dataset.net_reward}
    past = None if before is None else past_of(before, compared)
    rows = rows_of(compared, kinds, past, level)
    judged_row = list(rows.values())[-1]  # the adjusted difference, where there is one
    is_charged = not torch.equal(kinds[NET], kinds[names.reward])
    judged = [names.reward, NET] if is_charged else [names.reward]
    said = [verdict(rules, kind, judged_row) for kind in judged]
    alike = [] if before is None or past is None else balance(before, compared, level)
    below = [*too_few(compared, rows), *notes, *alike, *steps_that_count(compared)]
    return Report(
        title=f"what each rule's decisions brought, a decision; {level:.0%} intervals over {names.unit}s",
        caption="\n".join([*said, power(judged_row, NET, names.unit, level), *below]),
        rows=rows,
        columns=columns_of(names, kinds),
        last=None,
        extra={
            "verdicts": said,
            "notes": list(notes),
            "steps_compared": [compared.steps_compared, len(compared.weight)],
        },
        plots={},
        judged=NET,
        what="rule",
    )


def rows_of(compared: ComparedRules, kinds: dict[str, Tensor], past: Past | None, level: float) -> dict[str, Row]:
    """Return a row of estimates for each rule, for their difference, and for the difference adjusted for the past."""
    rows: dict[str, Row] = {
        rule: {"decisions": int(by_rule.sum()), "units": len(torch.unique(compared.unit[by_rule]))}
        for rule, by_rule in zip(compared.rules, compared.decided)
    }
    for kind, x in kinds.items():
        one, other = (compared.mean(x, by_rule) for by_rule in compared.decided)
        differences = {less(compared.rules): difference(one, other, level)}
        if past is not None:
            parts = adjusted_parts(x.double(), past, compared)
            differences[f"{less(compared.rules)}, adjusted"] = total(parts, level)
        for rule, mean in zip(compared.rules, (one, other)):
            put(rows[rule], kind, mean_estimate(mean, level))
        for name, found in differences.items():
            put(rows.setdefault(name, {"decisions": None, "units": None}), kind, found)
    return rows


def columns_of(names: ColumnNames, kinds: Iterable[str]) -> dict[str, Callable[[Row], str]]:
    """Return the columns of the table, each with what it shows of a row."""
    columns: dict[str, Callable[[Row], str]] = {
        "decisions": lambda row: "" if row["decisions"] is None else f"{row['decisions']:,}",
        f"{names.unit}s": lambda row: "" if row["units"] is None else f"{row['units']:,}",
    }
    for kind in kinds:
        columns[kind] = partial(format_number, kind)
        columns[f"{kind}: from, to"] = partial(format_interval, kind)
    return columns


def too_few(compared: ComparedRules, rows: dict[str, Row]) -> list[str]:
    """Warn of rules that decided for few units."""
    units = f"{compared.names.unit}s"
    return [
        f"{rule} has {rows[rule]['units']} {units}, fewer than {FEW}: its intervals are not to be trusted"
        for rule in compared.rules
        if rows[rule]["units"] < FEW
    ]


def steps_that_count(compared: ComparedRules) -> list[str]:
    """Say how many steps are compared, where there are several."""
    steps, name = len(compared.weight), f"{compared.names.step}s"
    said = f"{compared.steps_compared} of {steps} {name}: those with both rules, each by its number of decisions"
    return [said] if steps > 1 else []


class Past(NamedTuple):
    """What units had brought before the rules decided for them."""

    spread: Tensor  #: of each decision's unit, less the mean over the decisions of both rules; 0 where unknown, [N]
    varies: list[bool]  #: whether a rule's units differ in it, within steps and by more than rounding


def past_of(before: Tensor, compared: ComparedRules) -> Past | None:
    """Return what units had brought, `before` [N], NaN where unknown; None where each rule's were alike.

    No slope can be told from units that were alike in each step, but for rounding.
    """
    known = torch.stack(compared.decided).any(0) & ~before.isnan()
    if not known.any():
        return None
    brought = before[known].double()
    spread = torch.where(before.isnan(), 0.0, before.double() - brought.mean())
    rounding = ROUNDING * brought.square().mean().sqrt()
    varies = [bool(within.square().mean().sqrt() > rounding) for within in compared.within(spread)]
    return Past(spread, varies) if any(varies) else None


def adjusted_parts(x: Tensor, past: Past, compared: ComparedRules) -> list[GroupMean]:
    """Return the means whose sum is the difference of x [N] adjusted for the past (CUPED with Lin 2013's slopes).

    What units brought before is alike in both rules but by chance, so the difference keeps its mean and loses the part
    of its variance that lasting differences between units make (Deng, Xu, Kohavi & Walker 2013). The two rules' means
    are of x − β·(past − mean of the past), each with the β of its own regression within steps, so that rules of unequal
    size lose it too. The mean of the past is that of these units, and with other units it would be another: it moves
    the difference by β₁ − β₂ times as much (Negi & Wooldridge 2021), which is the third part, of value 0. That slopes
    are estimated costs little with many units.
    """
    means, slopes = [], []
    for by_rule, varies, within in zip(compared.decided, past.varies, compared.within(past.spread)):
        slope = (within * x[by_rule]).sum() / within.square().sum() if varies else x.new_zeros(())
        means.append(compared.mean(x - slope * past.spread, by_rule))
        slopes.append(slope.item())
    of_both = compared.mean(past.spread, torch.stack(compared.decided).any(0))
    return [means[0], means[1].times(-1), of_both.times(slopes[0] - slopes[1])]


def less_cell_means(x: Tensor, step: Tensor) -> Tensor:
    """Return x [n], each less the mean of those in the same step [n]."""
    total = x.new_zeros(int(step.amax()) + 1).index_add_(0, step, x)
    return x - (total / step.bincount().clamp_min(1))[step]


def format_number(kind: str, row: Row) -> str:
    """Show the mean of a kind."""
    return f"{row[kind]:.4g}"


def format_interval(kind: str, row: Row) -> str:
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


def power(row: Row, kind: str, unit: str, level: float) -> str:
    """Say how large a true difference must be for 80 of 100 such tests to tell it from 0."""
    low, high = row[f"{kind}_ci"]
    found = found_with((high - low) / 2 / normal_quantile(level), level, power=0.8)
    return f"80 of 100 such tests would find a difference of {found:.3g}, and half of it with four times the {unit}s"


def balance(before: Tensor, compared: ComparedRules, level: float) -> list[str]:
    """Say whether the rules' units were alike before: a small p tells that the rules were not given them at random.

    Nothing is said where a rule has fewer than two units of which something is known.
    """
    known = [by_rule & ~before.isnan() for by_rule in compared.decided]
    if any(len(torch.unique(compared.unit[of_rule])) < 2 for of_rule in known):
        return []
    means = [group_mean(before, of_rule, compared.unit) for of_rule in known]
    p = difference(means[0], means[1], level).p
    brought = " and ".join(f"{rule} {mean.value:.4g}" for rule, mean in zip(compared.rules, means))
    unit, step = compared.names.unit, compared.names.step
    return [f"before any of these decisions a {unit} brought a {step}: {brought} (p = {p:.2g})"]


def put(row: Row, kind: str, found: Estimate) -> None:
    """Put an estimate into a row."""
    row[kind] = found.value
    row[f"{kind}_ci"] = [found.low, found.high]
    row[f"{kind}_p"] = found.p


def verdict(rules: list[str], kind: str, row: Row) -> str:
    """Say whether the first rule was better."""
    low, high = row[f"{kind}_ci"]
    said = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
    unsure = "" if low > 0 or high < 0 else ", as far as this log can tell"
    return f"{rules[0]} was {said} {rules[1]} by {kind}{unsure} ({row[kind]:+.4g}, {low:+.4g} to {high:+.4g})"
