"""Tables, plots and files of a randomised test's analysis."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.ab_test.analysis import BEST_ARM, Analysis, Half
from envs.ab_test.trial_table import Trial
from rlcore.ope.intervals import central, normal_half_width
from rlcore.runs import checkpoint
from rlcore.runs.plots import COLORS, entitle, labelled
from rlcore.runs.report import Report
from rlcore.uplift import metrics
from rlcore.uplift.balance import hotelling, sample_ratio, standardized_differences
from rlcore.uplift.comparison import UpliftTestSet, bootstrap_metrics

FAR_DIFFERENCE = 0.1  # standardised difference above which columns are named (Austin 2009)
SUSPICIOUS = 0.001  # p-value below which a test was hardly randomised as said
SHOWN_COLUMNS = 5


def tables(
    analysis: Analysis, level: float, replications: int, bins: int, shares: dict, seed: int
) -> dict[str, Report]:
    """Lay the analysis out in three tables by name: the arms, the ranking of customers, the policies."""
    return {
        "arms": arms_table(analysis, level, shares),
        "ranking": ranking_table(analysis, level, replications, bins, seed),
        "policies": policies_table(analysis),
    }


# ── the arms ────────────────────────────────────────────────────────────────────────────────────────────────────────
def arms_table(analysis: Analysis, level: float, shares: dict) -> Report:
    """Means of the outcomes by arm, and whether the test looks randomised."""
    trial = analysis.trial
    outcomes = {**trial.outcomes, "profit": analysis.profit}
    rows: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(trial.arms):
        given = trial.arm == k
        rows[name] = {"customers": int(given.sum()), "share": given.double().mean().item()}
        for outcome, x in outcomes.items():
            rows[name][outcome] = [x[given].mean().item(), normal_half_width(x[given], level).item()]
        if k:
            pair = given | (trial.arm == 0)
            treated = given[pair]
            differences = standardized_differences(trial.features[pair], treated)
            rows[name]["p_of_balance"] = hotelling(trial.features[pair], treated)
            rows[name]["largest_difference"] = differences.abs().amax().item()
            rows[name]["largest_differences"] = largest(differences, trial.feature_names)
    ratio = ratio_of_sizes(trial, shares) if shares else None
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "customers": lambda row: f"{row['customers']:,}",
        "share": lambda row: f"{row['share']:.4f}",
    }
    for outcome in outcomes:
        columns[outcome] = partial(format_mean, outcome)
        columns[f"± {outcome}"] = partial(format_half_width, outcome)
    columns["balance p"] = lambda row: f"{row['p_of_balance']:.3f}" if "p_of_balance" in row else ""
    return Report(
        title=f"{len(trial.arm):,} customers by arm",
        caption="\n".join(balance_lines(rows, ratio)),
        rows=rows,
        columns=columns,
        last=None,
        extra={"p_of_sample_ratio": ratio},
        plots={},
        judged="share",
        what="arm",
    )


def ratio_of_sizes(trial: Trial, shares: dict) -> float:
    """P-value of the arms' sizes; raise ValueError where `shares` does not have just the arms."""
    if set(shares) != set(trial.arms):
        raise ValueError(f"shares: expected a share of each arm, {', '.join(trial.arms)}; got {', '.join(shares)}")
    expected = torch.tensor([float(shares[name]) for name in trial.arms])
    return sample_ratio(trial.arm.bincount(), expected)


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


# ── the ranking ─────────────────────────────────────────────────────────────────────────────────────────────────────
def tested(half: Half, analysis: Analysis, outcome: str, arm: int) -> UpliftTestSet:
    """The half's customers of an arm and of the control, with their predicted effects."""
    trial = analysis.trial
    pair = (trial.arm[half.rows] == 0) | (trial.arm[half.rows] == arm)
    rows = half.rows[pair]
    seen = analysis.ranked_by[outcome][rows]
    return UpliftTestSet(rows, seen, trial.arm[rows] == arm, half.effects[outcome][pair, arm][None])


def ranking_table(analysis: Analysis, level: float, replications: int, bins: int, seed: int) -> Report:
    """Qini coefficients of the predicted effects, by arm and outcome; means over the halves."""
    trial, rows, plots = analysis.trial, {}, {}
    for outcome in analysis.halves[0].effects:
        chosen = " / ".join(half.choices[outcome].name for half in analysis.halves)
        for arm, name in list(enumerate(trial.arms))[1:]:
            tests = [tested(half, analysis, outcome, arm) for half in analysis.halves]
            coefficient = torch.stack([metrics.qini(t.outcome, t.scores[0], t.treated) for t in tests]).mean()
            drawn = bootstrap_metrics(tests, len(trial.arm), replications, torch.Generator().manual_seed(seed)).mean(
                (0, 1)
            )
            low, high = central(drawn, level).tolist()
            parts = [metrics.by_bin(t.outcome, t.scores[0], t.treated, bins) for t in tests]
            rows[f"{name}, {outcome}"] = {
                "qini": [coefficient.item(), low, high],
                "learner": chosen,
                "uplift_by_bin": torch.stack([part.uplift for part in parts]).mean(0).tolist(),
                "predicted_by_bin": torch.stack([part.score for part in parts]).mean(0).tolist(),
            }
            if outcome == analysis.outcome:
                plots[f"qini_{arm}"] = draw_qini(tests, name, outcome)
                plots[f"uplift_{arm}"] = draw_bins(rows[f"{name}, {outcome}"], parts, name, outcome)
    return Report(
        title="how well customers are ranked by predicted effects, each by the other half's model",
        caption="Qini coefficient: 0 for a random order, 1 for the best order in hindsight; learner: of each half",
        rows=rows,
        columns={
            "learner": lambda row: row["learner"],
            "Qini": lambda row: f"{row['qini'][0]:.4f}",
            "from": lambda row: f"{row['qini'][1]:.4f}",
            "to": lambda row: f"{row['qini'][2]:.4f}",
        },
        last=None,
        extra={},
        plots=plots,
        judged="qini",
        what="arm and outcome",
    )


def draw_qini(tests: list[UpliftTestSet], arm: str, outcome: str) -> Figure:
    """Draw the Qini curve of each half."""
    figure, axes = labelled("customers treated, best first, %", f"{outcome} gained")
    entitle(figure, f"{arm}: {sum(len(t.unit) for t in tests):,} customers with their control")
    for k, t in enumerate(tests, 1):
        curve = metrics.qini_curve(t.outcome, t.scores[0], t.treated)
        axes.plot(100 * curve.x / curve.x[-1], curve.y, label=f"half {k}")
        axes.plot(
            [0, 100], [0, curve.y[-1].item()], color="grey", linestyle=":", label="random order" if k == 1 else None
        )
    axes.legend(frameon=False)
    return figure


def draw_bins(row: dict[str, Any], parts: list[metrics.Bins], arm: str, outcome: str) -> Figure:
    """Draw predicted and observed effects by equal parts of the customers, means over the halves."""
    figure, axes = labelled("customers by predicted effect, best first", f"effect on {outcome}")
    entitle(figure, f"{arm}: predicted and observed effects, ± one standard error")
    standard_error = torch.stack([part.std for part in parts]).square().sum(0).sqrt() / len(parts)
    places = range(1, len(row["uplift_by_bin"]) + 1)
    axes.bar(places, row["uplift_by_bin"], yerr=standard_error.tolist(), alpha=0.6, label="observed")
    axes.plot(places, row["predicted_by_bin"], marker="o", color="black", label="predicted")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.legend(frameon=False)
    return figure


# ── the policies ────────────────────────────────────────────────────────────────────────────────────────────────────
def policies_table(analysis: Analysis) -> Report:
    """What every policy would have earned a customer, beside the best single arm and no treatment."""
    treated = treated_shares(analysis)
    rows = {
        name: {
            **analysis.policies[name]._asdict(),
            "over_best": analysis.over_best[name],
            "over_none": analysis.over_none[name],
            "treated": treated[name],
        }
        for name in sorted(analysis.policies, key=lambda name: -analysis.policies[name].dr[0])
    }
    return Report(
        title="profit a customer, had everybody been treated by the policy",
        caption="\n".join(verdicts(analysis)),
        rows=rows,
        columns={
            "treated": lambda row: f"{row['treated']:.1%}",
            "DR": lambda row: f"{row['dr'][0]:.4f}",
            "±": lambda row: f"{half_width(row['dr']):.4f}",
            "IPS": lambda row: f"{row['ips'][0]:.4f}",
            "SNIPS": lambda row: f"{row['snips'][0]:.4f}",
            "over best arm": lambda row: f"{row['over_best'][0]:+.4f}",
            "± best": lambda row: f"{half_width(row['over_best']):.4f}",
            "over none": lambda row: f"{row['over_none'][0]:+.4f}",
            "± none": lambda row: f"{half_width(row['over_none']):.4f}",
        },
        last=None,
        extra={"verdicts": verdicts(analysis)},
        plots={"policies": draw_policies(rows)},
        judged="dr",
    )


def half_width(interval: list[float]) -> float:
    """Half the width of [value, low, high]."""
    return (interval[2] - interval[1]) / 2


def treated_shares(analysis: Analysis) -> dict[str, float]:
    """Share of customers that a policy gives another arm than the control."""
    return {
        name: 1 - torch.cat([half.targets[name][:, 0] for half in analysis.halves]).mean().item()
        for name in analysis.policies
    }


def verdicts(analysis: Analysis) -> list[str]:
    """Say of each learned policy whether it is better than the best single arm."""
    best = {analysis.trial.arms[half.best_arm] for half in analysis.halves}
    lines = [f"best single arm: {' or '.join(sorted(best))}, which earned most in the other half"]
    for outcome in analysis.halves[0].effects:
        name = f"by {outcome}"
        value, low, high = analysis.over_best[name]
        if low > 0:
            said = "better than the best single arm"
        elif high < 0:
            said = "worse than the best single arm"
        else:
            said = "no better than the best single arm, as far as this test can tell"
        lines.append(f"treating whom it pays, by predicted {outcome}: {said} ({value:+.4f}, {low:+.4f} to {high:+.4f})")
    return lines


def draw_policies(rows: dict[str, dict[str, Any]]) -> Figure:
    """Draw the policies' values with their intervals."""
    figure, axes = labelled("profit a customer (DR)", "")
    names = list(rows)[::-1]
    for place, name in enumerate(names):
        value, low, high = rows[name]["dr"]
        axes.plot([low, high], [place, place], color=COLORS[0])
        axes.plot(value, place, "o", color=COLORS[1] if name == BEST_ARM else COLORS[0])
    axes.set_yticks(range(len(names)), names)
    entitle(figure, "what each policy would have earned, with its interval")
    return figure


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────
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
