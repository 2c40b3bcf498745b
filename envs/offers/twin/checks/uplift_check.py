"""A twin's uplift compared with the held-out decisions of a randomised log."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.checks.log_warnings import decisions
from envs.offers.twin.predictions import ContactEffect, PanelPredictions
from rlcore.ope.intervals import LEVEL, normal_quantile
from rlcore.runs.plots import labelled
from rlcore.uplift import comparison
from rlcore.uplift import metrics as uplift

MAX_SPREAD = 1e-3  # largest spread of a probability that counts as the same for all


@dataclass
class UpliftFindings:
    """Results of a check of predicted uplift: numbers for metrics.json, lines for the table's caption, and plots."""

    numbers: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    plots: dict[str, Figure] = field(default_factory=dict)


class UpliftCheck:
    """Compares the predicted uplift of a contact on trips with held-out decisions of a randomised log.

    `bins` is the number of bins by predicted uplift. `replications` is the number of bootstrap samples over customers,
    paired with those of a ranking by the probability of a trip. `level` is that of the intervals.
    """

    def __init__(self, *, bins: int, replications: int, level: float, seed: int):
        self.bins, self.replications, self.level, self.seed = bins, replications, level, seed

    def __call__(self, members: list[PanelPredictions], panel: Panel) -> UpliftFindings:
        """Check the members' mean prediction; the findings are empty where the log was not randomised."""
        where = decisions(panel)
        if not is_randomised(panel, where):
            return UpliftFindings(lines=["uplift is not compared with this log: contacts had unequal probabilities"])
        effects = [member.contact_effect() for member in members]
        effect = ContactEffect(*(torch.stack(x).mean(0)[where] for x in zip(*effects)))
        treated, trips, spend = (panel.offer > 0)[where], panel.bought[where].double(), panel.spend[where].double()
        units, unit_of_column = panel.customer.unique(return_inverse=True)  # a customer may have several seasons
        customer = unit_of_column.expand_as(where)[where]
        test = comparison.UpliftTestSet(customer, trips, treated, torch.stack((effect.uplift, effect.no_contact)))
        try:
            for score in test.scores:
                uplift.check_test(trips, score, treated)
        except ValueError as reason:
            return UpliftFindings(lines=[f"uplift is not compared with this log: {reason}"])
        generator = torch.Generator(where.device).manual_seed(self.seed)
        drawn = comparison.bootstrap_metrics([test], len(units), self.replications, generator)[0]

        qini, qini_by_trip = (uplift.qini(trips, score, treated).item() for score in test.scores)
        auuc = uplift.auuc(trips, effect.uplift, treated).item()
        bins = uplift.by_bin(trips, effect.uplift, treated, self.bins, customer)
        curve = uplift.cost_curve(trips, spend, effect.uplift / effect.cost.clamp_min(1e-6), treated)
        low, high = self._interval(drawn[0])
        deciles = zip(bins.score.tolist(), bins.uplift.tolist(), bins.std.tolist())
        numbers = {
            "qini": qini,
            "qini_ci": [low, high],
            "auuc": auuc,
            "qini_by_trip": qini_by_trip,
            "ahead": qini - qini_by_trip,
            "ahead_ci": self._interval(drawn[0] - drawn[1]),
            "cost_area": uplift.cost_area(*curve).item(),
            "decisions": len(trips),
            "contacted": int(treated.sum()),
            "deciles": [{"predicted": predicted, "uplift": found, "std": std} for predicted, found, std in deciles],
        }
        line = (
            f"uplift on trips: Qini {qini:.4f} ({low:.4f} to {high:.4f}), by P(trip) {qini_by_trip:.4f}; "
            f"AUUC {auuc:.4f}"
        )
        return UpliftFindings(
            numbers, [line], {"uplift": decile_figure(bins), "qini": qini_figure(test), "cost": cost_figure(curve)}
        )

    def _interval(self, drawn: Tensor) -> list[float]:
        tail = (1 - self.level) / 2
        return torch.quantile(drawn, drawn.new_tensor([tail, 1 - tail])).tolist()


def is_randomised(panel: Panel, where: Tensor) -> bool:
    """Tell whether contacts had one probability at decisions bool [T, N], and all pairs the same probability."""
    for contacted, share in ((False, panel.propensity), (True, panel.propensity * (panel.num_allowed - 1))):
        share = share[where & ((panel.offer > 0) == contacted)]
        if not len(share) or not (share.amax() - share.amin()) < MAX_SPREAD:  # false also where a propensity is missing
            return False
    return True


def decile_figure(bins: uplift.Bins) -> Figure:
    """Draw observed against predicted uplift by bin."""
    figure, axes = labelled(
        "predicted uplift of a contact on P(trip), mean of a decile", "uplift among held-out customers"
    )
    half_width = normal_quantile(LEVEL) * bins.std
    axes.errorbar(bins.score.tolist(), bins.uplift.tolist(), yerr=half_width.tolist(), fmt="o", markersize=3)
    axes.axline((0.0, 0.0), slope=1, color="grey", linestyle=":", linewidth=0.8)
    return figure


def qini_figure(test: comparison.UpliftTestSet) -> Figure:
    """Draw the Qini curves of the twin's uplift and of P(trip)."""
    figure, axes = labelled("share of decisions, highest uplift first", "incremental trips")
    for name, score in zip(("by the twin's uplift", "by P(trip)"), test.scores):
        n, gained = uplift.qini_curve(test.outcome, score, test.treated)
        axes.plot((n / n[-1]).tolist(), gained.tolist(), label=name)
    axes.plot([0, 1], [0, gained[-1].item()], color="grey", linestyle=":", linewidth=0.8)
    axes.legend(frameon=False)
    return figure


def cost_figure(curve: tuple[Tensor, Tensor]) -> Figure:
    """Draw incremental trips against incremental spend."""
    figure, axes = labelled("incremental spend", "incremental trips")
    axes.plot(*(x.tolist() for x in curve))
    axes.plot(*([0, x[-1].item()] for x in curve), color="grey", linestyle=":", linewidth=0.8)
    return figure
