"""How good a twin is on decisions that it wasn't fitted to, and what its log must be doubted for."""
from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.twin.likelihood import Panel
from envs.offers.twin.diagnostics import Uplift, doubts, named, residuals
from rlcore.plots import labelled
from rlcore.report import Report

SHOWN = {"trips": "a trip", "redeemed": "a redemption, if contacted", "opt_out": "opting out, if contacted",
         "churn": "churning"}
TOLD = ("response", "opt_out", "churn", "margin")  # kinds of outcomes whose drivers are asked for


class TwinEvaluator:
    """Hold a twin against held-out customers' decisions and, week by week, against the weeks that were held out.

    bins: of calibration curves, by predicted probability. shown: drivers in the plot. level: of the warnings' tests, each
    for all that it looks at. seed: of shuffles and of weeks played. uplift: holds predicted uplift against a randomised log.
    """

    headline = "twin/log_likelihood"

    def __init__(self, env, *, bins: int, shown: int, level: float, seed: int, uplift: Uplift):
        self.env, self.bins, self.shown, self.level, self.seed, self.uplift = env, bins, shown, level, seed, uplift

    def _generator(self, device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def members(self, twin, log: Panel) -> list:
        """What each member fitted so far says of a panel."""
        return [twin.twin.answers(member, self.env.world, log) for member in twin.fitted]

    @torch.no_grad()
    def likelihood(self, twin, log: Panel) -> dict[str, float]:
        """Mean log-likelihood a decision by kind of outcome, on average over the members fitted so far."""
        found = [member.likelihoods() for member in self.members(twin, log)]
        return {name: torch.stack([x[name].sum() for x in found]).mean().item() / int(log.there.sum()) for name in found[0]}

    def validate(self, twin) -> dict[str, float]:
        """How likely what held-out customers did is."""
        found = self.likelihood(twin, twin.log[twin.aside])
        return {"twin/log_likelihood": sum(found.values()), **{f"twin/{name}": x for name, x in found.items()}}

    @torch.no_grad()
    def evaluate(self, twin, name: str) -> Report:
        """Report on a fitted twin."""
        held = twin.log[twin.aside]
        rows, calibration = self.predictions(twin, held)
        weeks = self.weeks(twin)
        drivers = self.drivers(twin, held)
        effect = self.uplift(self.members(twin, held), held)
        warnings = [f"{name.replace('_', '-')} never happens in the log: {twin.twin.unheard}" for name in twin.silent] + doubts(twin.log, self.env, self.level) + self.misfit(twin, held)
        columns = {"decisions": lambda row: f"{row['decisions']:,}", "actual": lambda row: f"{row['actual']:.4f}",
                   "predicted": lambda row: f"{row['predicted']:.4f}", "±": lambda row: f"{row['members']:.4f}",
                   "ECE": lambda row: f"{row['ece']:.4f}", "skill": lambda row: f"{row['skill']:.3f}"}
        caption = ["±: deviation of members; ECE: expected calibration error; skill: 1 − log-likelihood / that of the mean"]
        caption += [f"held-out week {row['week'] + 1}: {row['trips'][0]:,.0f} trips, predicted {row['trips'][1]:,.0f}; spend "
                    f"{row['spend'][0]:,.0f}, predicted {row['spend'][1]:,.0f}" for row in weeks if row["held_out"]]
        caption += effect.said + [f"warning: {text}" for text in warnings]
        extra = {"log_likelihood": self.likelihood(twin, held), "calibration": calibration, "weeks": weeks,
                 "drivers": drivers, "uplift": effect.numbers, "warnings": warnings}
        return Report(f"{name}: {len(twin.fitted)} members, {len(held):,} customers that none was fitted to",
                      "\n".join(caption), rows, columns, None, extra,
                      {"calibration": self._calibration_figure(calibration), "weeks": self._weeks_figure(weeks),
                       "drivers": self._drivers_figure(drivers), **effect.plots}, "skill", "outcome")

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def predictions(self, twin, held: Panel) -> tuple[dict[str, dict], dict[str, list]]:
        """Each outcome's probability as the members have it on average, against what happened, and by bin."""
        members = [member.probabilities() for member in self.members(twin, held)]
        rows, curves = {}, {}
        for name, (_, happened, known) in members[0].items():
            each = torch.stack([x[name][0][known] for x in members]).double()
            p, y = each.mean(0), happened[known].double()
            if not len(y) or y.amin() == y.amax():
                continue  # never, or always: nothing to hold predictions against
            parts = [(p[part].mean().item(), y[part].mean().item(), len(part)) for part in p.argsort().tensor_split(self.bins)
                     if len(part)]
            rows[name] = {"decisions": len(y), "actual": y.mean().item(), "predicted": p.mean().item(),
                          "members": each.mean(1).std().item() if len(each) > 1 else 0.0,
                          "ece": sum(abs(a - b) * n for a, b, n in parts) / len(y),
                          "skill": (1 - bernoulli(p, y) / bernoulli(y.mean().expand_as(y), y)).item()}
            curves[name] = parts
        return rows, curves

    def weeks(self, twin) -> list[dict]:
        """Trips, margin and spend of all customers week by week, as logged and as played by the twin.

        Held-out weeks are played from what the first of them found, others' predictions are of the week alone.
        What was sent, and to whom that was possible, is what the log says.
        """
        log, world = twin.log, self.env.world
        first, rows = world.weeks - twin.held["weeks"], []
        generator = self._generator(log.features.device)
        played = [member.played(first, generator) for member in self.members(twin, log)]
        for t in range(world.weeks):
            at = log.there & (log.week == t)
            if not at.any():
                continue
            held = t >= first
            found = torch.stack([x[:, t] for x in played]).mean(0).tolist()
            actual = [(at * x).sum().item() for x in (log.bought, log.margin, log.spend)]
            rows.append({"week": t, "held_out": held, "decisions": int(at.sum()), **{
                name: list(pair) for name, *pair in zip(("trips", "margin", "spend"), actual, found)}})
        return rows

    def drivers(self, twin, held: Panel) -> dict[str, float]:
        """Log-likelihood a decision that is lost when a column is shuffled among held-out customers (Breiman 2001), greatest
        first; what is known of the state is shuffled week by week."""
        def told(panel: Panel) -> float:
            return sum(x for name, x in self.likelihood(twin, panel).items() if name in TOLD)
        order = torch.randperm(len(held), generator=self._generator(held.features.device), device=held.features.device)
        whole = told(held)
        lost = {name: whole - told(shuffled) for name, shuffled in twin.twin.shuffled(held, order, self.env)}
        return dict(sorted(lost.items(), key=lambda item: -item[1]))

    @torch.no_grad()
    def misfit(self, twin, held: Panel) -> list[str]:
        """Say which pairs bring more or fewer trips than any member can explain: the world's equations don't hold there, or
        who sent knew something that the log doesn't say."""
        found = torch.stack([residuals(member.probabilities()["trips"], held) for member in self.members(twin, held)]).mean(0)
        return named(found, self.env.world.catalogue, self.level)

    # ── plots ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _calibration_figure(self, curves: dict[str, list]) -> Figure:
        figure, axes = labelled("predicted probability", "share in which it happened")
        for name, parts in curves.items():
            axes.plot([p for p, _, _ in parts], [y for _, y, _ in parts], marker="o", markersize=3, label=SHOWN[name])
        axes.axline((0.5, 0.5), slope=1, color="grey", linestyle=":", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False)
        return figure

    def _weeks_figure(self, weeks: list[dict]) -> Figure:
        figure, axes = labelled("week", "of all customers in the log")
        at = [row["week"] + 1 for row in weeks]
        for k, name in enumerate(("trips", "spend")):
            axes.plot(at, [row[name][0] for row in weeks], "o", color=f"C{k}", label=f"{name}, as logged")
            axes.plot(at, [row[name][1] for row in weeks], color=f"C{k}", label=f"{name}, predicted")
        held = [row["week"] + 1 for row in weeks if row["held_out"]]
        if held:
            axes.axvspan(held[0] - 0.5, held[-1] + 0.5, color="0.93", label="held out")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return figure

    def _drivers_figure(self, drivers: dict[str, float]) -> Figure:
        figure, axes = labelled("log-likelihood a decision lost when shuffled", "")
        names = list(drivers)[:self.shown][::-1]
        axes.barh(names, [drivers[name] for name in names])
        return figure


def bernoulli(p: Tensor, y: Tensor) -> Tensor:
    """Mean log-likelihood of y [N], 0 or 1, under probabilities p."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return (y * p.log() + (1 - y) * (1 - p).log()).mean()
