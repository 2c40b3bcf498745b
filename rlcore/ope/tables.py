"""The tables beside the estimators of a policy: what the log can tell, and the policy beside its alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from rlcore.offline.deduplicated import dense
from rlcore.ope.alternatives import BEST, FEWEST, LIKELIEST, MODELS, Comparison
from rlcore.ope.cross_fitting import Layout
from rlcore.ope.evaluator import LOGGED, NET, Evaluation, OffPolicyEvaluator
from rlcore.ope.propensity_checks import imbalance, least_significant
from rlcore.runs.plots import COLORS, labelled
from rlcore.runs.report import Report, half_width

LONG = 1e12  # numbers from here on are shown by their power of ten
BALANCE_LEVEL = 0.001  # probability that a log with right propensities looks unbalanced
MODEL_ONLY = "model only: ± lacks the model's error"


# ── what the log can tell ───────────────────────────────────────────────────────────────────────────────────────────
def diagnostics_table(
    evaluation: Evaluation, evaluator: OffPolicyEvaluator, file_name: str, names: list[str]
) -> Report:
    """Support, weights and balance of a log, beside what they should be; `names` are those of the observed columns."""
    found = evaluation.diagnostics
    layout = evaluation.layout
    dataset = layout.dataset
    rows: dict[str, dict[str, Any]] = {}

    def add(check: str, value: str, expected: str) -> None:
        rows[check] = {"found": value, "expected": expected}

    if evaluation.weights is None:
        add("propensities", "none", "of every decision")
    else:
        samples = f"{found['effective']:,.0f} of {found['episodes']:,} ({found['effective_share']:.1%})"
        add("target actions without support", f"{found['unsupported']:.2%}", "0%")
        add(f"effective sample size, {layout.sample}s", samples, f"at least {evaluator.min_ess_share:.0%}")
        add("mean weight", format_number(found["mean_weight"], 3), "about 1")
        add("greatest weight", format_number(found["max_weight"], 1), "")
        balance = propensity_balance(layout, names)
        if balance:
            z, limit, column = balance
            add("propensity balance, greatest z", f"{z:.1f} ({column})", f"below {limit:.1f}")
    warnings = [f"warning: {warning}" for warning in evaluation.warnings]
    if evaluation.weights is not None and balance and balance[0] > balance[1]:
        warnings.append(
            "warning: weighted by their propensities, decisions differ by what was known before: the propensities are "
            "not those that drew the decisions, or some possible actions were never taken"
        )
    policies = ", ".join(dataset.policies[k] for k in torch.unique(dataset.policy).tolist())
    return Report(
        title=f"{file_name}: {found['decisions']:,} decisions of {policies}, {layout.units:,} {dataset.names.unit}s",
        caption="\n".join(warnings),
        rows=rows,
        columns={"found": lambda row: row["found"], "expected": lambda row: row["expected"]},
        last=None,
        extra={},
        plots={},
        judged="found",
        what="can this log tell?",
    )


def propensity_balance(layout: Layout, names: list[str]) -> tuple[float, float, str] | None:
    """Return the greatest |z| of `imbalance`, its limit by chance, and its column; None where nothing can be tested.

    The first action stands against all others that the log has. Decisions where it was not possible are left out.
    """
    dataset = layout.dataset
    mask = dense(dataset.action_mask)
    if dataset.probs is None:
        logged = torch.zeros(mask.shape[1], dtype=torch.bool, device=mask.device)
        logged[torch.unique(dataset.action)] = True
        possible = mask & logged
    else:
        possible = mask & (dataset.probs > 0)
    first = int(dataset.action.amin())
    rows = possible[:, first] & (possible.sum(1) > 1)
    known = layout.obs[rows]
    if len(known) < 2:
        return None
    varies = known.std(0) > 0
    z = imbalance(
        known[:, varies], dataset.action[rows] == first, dataset.propensity[rows], possible[rows].sum(1)
    ).abs()
    columns = [name for name, keep in zip(names, varies.tolist()) if keep] + ["their share"]
    return z.amax().item(), least_significant(z, BALANCE_LEVEL), columns[int(z.amax(0).argmax())]


# ── the policy beside its alternatives ──────────────────────────────────────────────────────────────────────────────
def alternatives_table(comparison: Comparison, layout: Layout, name: str, level: float) -> Report:
    """The policy, the log, the best constant action and all others, with paired differences to the policy."""
    rows = {}
    for key, row in comparison.rows.items():
        is_model = row["estimator"] in MODELS
        rows[key] = {**row, **({"group": MODEL_ONLY} if is_model else {})}
    rows = dict(sorted(rows.items(), key=lambda item: "group" in item[1]))  # the model's last
    digits = places(comparison.rows[name][f"{NET}_ci"])
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "by": lambda row: row["estimator"],
        NET: lambda row: format_number(row[NET], digits),
        "±": lambda row: format_number(half_width(row[f"{NET}_ci"]), digits),
        f"{name} less it": partial(format_difference, 0, digits),
        "from": partial(format_difference, 1, digits),
        "to": partial(format_difference, 2, digits),
        "effective": lambda row: f"{row['effective']:,.0f}" if "effective" in row else "",
    }
    return Report(
        title=f"{name} beside what could be done instead, per {layout.sample}",
        caption="\n".join([*verdicts(comparison, name), *notes(comparison, layout, level)]),
        rows=rows,
        columns=columns,
        last=None,
        extra={},
        plots={},
        judged=NET,
    )


def format_difference(place: int, digits: int, row: dict[str, Any]) -> str:
    """Show the difference, the lower or the upper end, of a row's paired difference in the net reward."""
    if NET not in row["policy_less"]:
        return ""
    value = row["policy_less"][NET][place]
    return f"{'+' if value > 0 else ''}{format_number(value, digits)}"


def verdicts(comparison: Comparison, name: str) -> list[str]:
    """Say of the policy whether it is better than the best constant action, the log, and what else is compared."""
    effective = comparison.effective
    if effective is not None and effective < FEWEST:
        return [
            f"the log says too little of {name} to compare it: {effective:,.1f} effective, {FEWEST:g} are the least"
        ]
    lines = []
    if BEST not in comparison.rows:
        lines.append(f"{name} can't be compared with the {BEST}: the log hardly has one, or has no propensities")
    for key in (BEST, LOGGED, *comparison.given, LIKELIEST):
        if key not in comparison.rows:
            continue
        value, low, high = comparison.rows[key]["policy_less"][NET]
        if not math.isfinite(low + high):
            continue
        unsure = low <= 0 <= high
        said = "no better than" if unsure else "better than" if value > 0 else "worse than"
        what = {LOGGED: "what was logged", LIKELIEST: "the likeliest action of the log"}.get(key, f"the {key}")
        tail = ", as far as this log can tell" if unsure else ""
        by = ", by a model alone" if comparison.rows[name]["estimator"] in MODELS else ""
        lines.append(f"{name} is {said} {what}{tail}{by} ({value:+.4g}, {low:+.4g} to {high:+.4g})")
    return lines


def notes(comparison: Comparison, layout: Layout, level: float) -> list[str]:
    """Say how the alternatives were made."""
    lines = [
        f"±: half the {level:.0%} interval of the value; from, to: that of the paired difference; both over "
        f"{layout.dataset.names.unit}s, by the central limit; {NET} only"
    ]
    if comparison.chosen:
        chosen = " / ".join(dict.fromkeys(comparison.chosen))
        lines.append(f"{BEST}: {chosen}, which earned most in the other folds (by SNIPS), valued on its own fold")
    elsewhere = [
        f"{key} {row['elsewhere']:.1%}" for key, row in comparison.rows.items() if row.get("elsewhere", 0.0) > 0
    ]
    if elsewhere:
        lines.append(f"where an action is not possible, the first possible one is taken: {', '.join(elsewhere)}")
    if comparison.unsupported:
        few = ", ".join(f"{key} ({x:,.1f})" for key, x in comparison.unsupported.items())
        lines.append(f"not valued, for the log has fewer than {FEWEST:g} effective {layout.sample}s of them: {few}")
    if comparison.left_out:
        lines.append(f"{comparison.left_out:,} more actions are logged less often (ope.constant_actions)")
    return lines


def draw_alternatives(comparison: Comparison, name: str, label: str) -> Figure:
    """Draw the net value of every policy with its interval."""
    figure, axes = labelled(label, "")
    for at, (key, row) in enumerate(comparison.rows.items()):
        color = COLORS[1] if key == name else "grey" if key == LOGGED else COLORS[0]
        axes.plot(row[f"{NET}_ci"], [at, at], color=color, linewidth=2)
        axes.plot(row[NET], at, "o", color=color)
    axes.set_yticks(range(len(comparison.rows)), list(comparison.rows))
    axes.invert_yaxis()
    return figure


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def format_number(x: float, digits: int) -> str:
    """Show a number with so many digits after the point, by its power of ten where that is long."""
    if math.isnan(x):
        return "undefined"
    return f"{x:,.{digits}f}" if abs(x) < LONG else f"{x:.2e}"


def places(interval: list[float]) -> int:
    """Digits after the point for an interval: three significant digits of its width, 2 digits for width 0."""
    low, high = interval
    width = high - low
    if not 0 < width < math.inf:  # a width that is not a number too
        return 2
    magnitude = math.floor(math.log10(width))
    return max(0, 2 - magnitude)
