"""What every policy would have earned, and whether treating whom it pays is better than the best single arm."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from envs.ab_test.analysis import BEST_ARM, Analysis
from rlcore.runs.plots import COLORS, entitle, labelled
from rlcore.runs.report import Report, half_width


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
            "±": lambda row: f"{half_width(row['dr'][1:]):.4f}",
            "IPS": lambda row: f"{row['ips'][0]:.4f}",
            "SNIPS": lambda row: f"{row['snips'][0]:.4f}",
            "over best arm": lambda row: f"{row['over_best'][0]:+.4f}",
            "± best": lambda row: f"{half_width(row['over_best'][1:]):.4f}",
            "over none": lambda row: f"{row['over_none'][0]:+.4f}",
            "± none": lambda row: f"{half_width(row['over_none'][1:]):.4f}",
        },
        last=None,
        extra={"verdicts": verdicts(analysis)},
        plots={"policies": draw_policies(rows)},
        judged="dr",
    )


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
