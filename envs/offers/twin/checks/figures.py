"""Figures of a twin's report."""

from __future__ import annotations

from matplotlib.figure import Figure

from rlcore.runs.plots import COLORS, labelled

OUTCOME_NAMES = {
    "trips": "a trip",
    "redeemed": "a redemption, if contacted",
    "opt_out": "opting out, if contacted",
    "churn": "churning",
}


def calibration_figure(curves: dict[str, list]) -> Figure:
    """Draw each outcome's observed frequency against its predicted probability."""
    figure, axes = labelled("predicted probability", "share in which it happened")
    for name, bins in curves.items():
        axes.plot([p for p, _, _ in bins], [y for _, y, _ in bins], marker="o", markersize=3, label=OUTCOME_NAMES[name])
    axes.axline((0.5, 0.5), slope=1, color="grey", linestyle=":", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return figure


def weeks_figure(weeks: list[dict]) -> Figure:
    """Draw trips and spend by week, as logged and as predicted."""
    figure, axes = labelled("week", "of all customers in the log")
    at = [row["week"] + 1 for row in weeks]
    for k, name in enumerate(("trips", "spend")):
        axes.plot(at, [row[name][0] for row in weeks], "o", color=COLORS[k], label=f"{name}, as logged")
        axes.plot(at, [row[name][1] for row in weeks], color=COLORS[k], label=f"{name}, predicted")
    held_out = [row["week"] + 1 for row in weeks if row["held_out"]]
    if held_out:
        axes.axvspan(held_out[0] - 0.5, held_out[-1] + 0.5, color="0.93", label="held out")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def drivers_figure(drivers: dict[str, float], top_k: int) -> Figure:
    """Draw the greatest drivers."""
    figure, axes = labelled("log-likelihood a decision lost when shuffled", "")
    names = list(drivers)[:top_k][::-1]
    axes.barh(names, [drivers[name] for name in names])
    return figure
