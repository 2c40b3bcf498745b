"""Report a twin's fit on decisions that no member was fitted to, and warnings about its log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.checks.figures import calibration_figure, drivers_figure, weeks_figure
from envs.offers.twin.checks.log_warnings import propensity_warnings
from envs.offers.twin.checks.uplift_check import UpliftCheck
from envs.offers.twin.ensemble import TwinEnsemble
from rlcore.runs.report import Report, RunResult

DRIVEN = ("response", "opt_out", "churn", "margin")  # kinds of outcomes with reported drivers


@dataclass(frozen=True)
class TwinReport(Report):
    """A twin's predictions of each outcome and, where that is known, what its log tells of each parameter."""

    parameters: Report | None = None

    def to_metrics(self) -> dict[str, Any]:
        """Lay everything out for metrics.json."""
        return super().to_metrics() | ({"parameters": self.parameters.rows} if self.parameters else {})

    def parts(self) -> dict[str, Report]:
        """Name the tables that are shown and logged."""
        return super().parts() | ({"parameters": self.parameters} if self.parameters else {})

    def result(self, name: str | None) -> RunResult:
        """Return the log-likelihood a decision of held-out customers, in total and by kind of outcome."""
        kinds = self.extra["log_likelihood"]
        row = {"log_likelihood": sum(kinds.values()), **kinds}
        return RunResult.from_rows({name or "twin": row}, name, tuple(row), higher_is_better=True)


class TwinEvaluator:
    """Compares a twin with held-out customers' decisions and, week by week, with the held-out weeks.

    `bins` is the number of bins of calibration curves, by predicted probability. `top_k_drivers` is the number of
    drivers in the plot. `level` is that of each warning's test, over everything that the test looks at. `seed` is that
    of shuffles and simulated weeks. `uplift` compares predicted uplift with a randomised log.
    """

    headline = "validation/log_likelihood"

    def __init__(self, env, *, bins: int, top_k_drivers: int, level: float, seed: int, uplift: UpliftCheck):
        self.env = env
        self.bins, self.top_k_drivers = bins, top_k_drivers
        self.level, self.seed = level, seed
        self.uplift = uplift

    def _generator(self, device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    @torch.no_grad()
    def log_likelihood(self, twin: TwinEnsemble, panel: Panel) -> dict[str, float]:
        """Return the mean log-likelihood a decision by kind of outcome, averaged over the members fitted so far."""
        found = [member.log_likelihoods() for member in twin.predictions(panel)]
        decisions = int(panel.logged.sum())
        return {name: torch.stack([x[name].sum() for x in found]).mean().item() / decisions for name in found[0]}

    def validate(self, twin: TwinEnsemble) -> dict[str, float]:
        """Return the log-likelihood of the held-out customers' outcomes."""
        found = self.log_likelihood(twin, twin.held_out_panel)
        kinds = {f"validation/{name}": x for name, x in found.items()}
        return {"validation/log_likelihood": sum(found.values()), **kinds}

    @torch.no_grad()
    def evaluate(self, twin: TwinEnsemble, name: str) -> TwinReport:
        """Report on a fitted twin."""
        held_out = twin.held_out_panel
        rows, calibration = self.calibration(twin, held_out)
        weeks = self.weeks(twin)
        drivers = self.drivers(twin, held_out)
        uplift = self.uplift(twin.predictions(held_out), held_out)
        warnings = self.warnings(twin)
        caption = [
            "±: deviation of members; ECE: expected calibration error; skill: 1 − log-likelihood / that of the mean"
        ]
        caption += [
            f"held-out week {row['week'] + 1}: {row['trips'][0]:,.0f} trips, predicted {row['trips'][1]:,.0f}; spend "
            f"{row['spend'][0]:,.0f}, predicted {row['spend'][1]:,.0f}"
            for row in weeks
            if row["held_out"]
        ]
        drift = twin.fit_drift()
        caption += uplift.lines + (drift.lines() if drift else []) + [f"warning: {text}" for text in warnings]
        return TwinReport(
            title=f"{name}: {len(twin.fitted_members)} members, {len(held_out):,} customers that none was fitted to",
            caption="\n".join(caption),
            rows=rows,
            columns={
                "decisions": lambda row: f"{row['decisions']:,}",
                "actual": lambda row: f"{row['actual']:.4f}",
                "predicted": lambda row: f"{row['predicted']:.4f}",
                "±": lambda row: f"{row['members']:.4f}",
                "ECE": lambda row: f"{row['ece']:.4f}",
                "skill": lambda row: f"{row['skill']:.3f}",
            },
            last=None,
            extra={
                "log_likelihood": self.log_likelihood(twin, held_out),
                "calibration": calibration,
                "weeks": weeks,
                "drivers": drivers,
                "uplift": uplift.numbers,
                "warnings": warnings,
                "fit_drift": drift.numbers() if drift else None,
            },
            plots={
                "calibration": calibration_figure(calibration),
                "weeks": weeks_figure(weeks),
                "drivers": drivers_figure(drivers, self.top_k_drivers),
                **uplift.plots,
            },
            judged="skill",
            what="outcome",
            parameters=self.parameters(twin),
        )

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def calibration(self, twin: TwinEnsemble, held_out: Panel) -> tuple[dict[str, dict], dict[str, list]]:
        """Compare each outcome's probability, averaged over the members, with what happened: overall and by bin.

        A bin is (mean probability, share that happened, decisions).
        """
        members = [member.probabilities() for member in twin.predictions(held_out)]
        rows, curves = {}, {}
        for name, (_, happened, known) in members[0].items():
            by_member = torch.stack([x[name].probability[known] for x in members]).double()
            p, y = by_member.mean(0), happened[known].double()
            if not len(y) or y.amin() == y.amax():
                continue  # never, or always: no comparison with predictions is possible
            bins = [
                (p[part].mean().item(), y[part].mean().item(), len(part))
                for part in p.argsort().tensor_split(self.bins)
                if len(part)
            ]
            rows[name] = {
                "decisions": len(y),
                "actual": y.mean().item(),
                "predicted": p.mean().item(),
                "members": by_member.mean(1).std().item() if len(by_member) > 1 else 0.0,
                "ece": sum(abs(a - b) * n for a, b, n in bins) / len(y),
                "skill": (1 - mean_log_prob(p, y) / mean_log_prob(y.mean().expand_as(y), y)).item(),
            }
            curves[name] = bins
        return rows, curves

    def weeks(self, twin: TwinEnsemble) -> list[dict]:
        """Return trips, margin and spend of all customers by week, [as logged, as the twin has them].

        Held-out weeks are simulated from the first held-out week on; predictions of the other weeks are of one week
        each. Contacts, and the customers who could be contacted, are as logged.
        """
        panel, rows = twin.panel, []
        generator = self._generator(panel.features.device)
        simulated = [member.simulate_season(twin.first_held_out_week, generator) for member in twin.predictions(panel)]
        for t in range(self.env.world.weeks):
            in_week = panel.logged & (panel.week == t)
            if not in_week.any():
                continue
            predicted = torch.stack([x[:, t] for x in simulated]).mean(0).tolist()
            actual = [(in_week * x).sum().item() for x in (panel.bought, panel.margin, panel.spend)]
            rows.append(
                {
                    "week": t,
                    "held_out": t >= twin.first_held_out_week,
                    "decisions": int(in_week.sum()),
                    **{name: list(pair) for name, *pair in zip(("trips", "margin", "spend"), actual, predicted)},
                }
            )
        return rows

    def drivers(self, twin: TwinEnsemble, held_out: Panel) -> dict[str, float]:
        """Return permutation importances, greatest first (Breiman 2001).

        An importance is the loss of log-likelihood a decision when a column is shuffled among held-out customers.
        """

        def driven(panel: Panel) -> float:
            return sum(x for name, x in self.log_likelihood(twin, panel).items() if name in DRIVEN)

        device = held_out.features.device
        order = torch.randperm(len(held_out), generator=self._generator(device), device=device)
        whole = driven(held_out)
        lost = {
            name: whole - driven(shuffled) for name, shuffled in twin.twin.shuffled_columns(held_out, order, self.env)
        }
        return dict(sorted(lost.items(), key=lambda item: -item[1]))

    @torch.no_grad()
    def misfit(self, twin: TwinEnsemble, panel: Panel, held_out: Tensor) -> list[str]:
        """Name the decisions that bring more or fewer outcomes than the members can explain.

        There the world's equations do not hold, or the sender knew something that the log does not have. `held_out`,
        bool [N], are customers of the panel that no member is fitted to.
        """
        return twin.twin.misfits(twin.fitted_members, panel, held_out, self.env, self.level)

    def parameters(self, twin: TwinEnsemble) -> Report | None:
        """Say what the customers that members are fitted to tell of each parameter."""
        rows = twin.fitted.nonzero()[:, 0]
        weight, channels = twin.fit_weeks[:, rows].float(), self.env.world.catalogue.channels
        with torch.enable_grad():
            return twin.twin.parameters(twin.fitted_members, self.env.world, twin.panel[rows], weight, channels)

    def warnings(self, twin: TwinEnsemble) -> list[str]:
        """List the reasons why the log may mislead the twin."""
        unobserved = [
            f"{name.replace('_', '-')} never happens in the log: its parameters are drawn from the priors"
            for name in twin.unobserved_outcomes
        ]
        propensities = propensity_warnings(twin.panel, self.env, self.level)
        return unobserved + propensities + self.misfit(twin, twin.panel, twin.held_out)


def mean_log_prob(p: Tensor, y: Tensor) -> Tensor:
    """Return the mean log-probability of y [N], 0 or 1, under probabilities p [N] of 1."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return (y * p.log() + (1 - y) * (1 - p).log()).mean()
