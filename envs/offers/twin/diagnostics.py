"""What a log must be doubted for, and a twin's uplift held against a randomised log."""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from envs.offers.world.catalogue import Catalogue
from envs.offers.twin.likelihood import Panel
from envs.offers.world.customers import CHURNED, SUBSCRIBED
from rlcore.uplift import metrics as uplift
from rlcore.ope.intervals import LEVEL, normal_quantile
from rlcore.ope.propensity_checks import imbalance, significant
from rlcore.plots import labelled


# ── doubts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def doubts(log: Panel, env, level: float) -> list[str]:
    """Say where a log's propensities are missing, or not those that its decisions were made with."""
    at = decided(log)
    missing = log.propensity[at].isnan()
    if missing.any():
        return [f"{int(missing.sum()):,} of {len(missing):,} decisions have no propensity: whether who sent knew more than the log "
                "says can't be told, and what contacts seem to bring may be what was known"]
    rows = torch.arange(len(log), device=at.device).expand_as(at)[at]
    known = torch.cat((log.features[:, rows].T, log.known.permute(1, 2, 0)[at].to(log.features)), 1)
    kept = known.std(0) > 0
    z = imbalance(known[:, kept], log.offer[at] == 0, log.propensity[at], log.valid[at])
    wrong = significant(z, level)
    if not wrong.any():
        return []
    names = [*getattr(env.population, "feature_names", [f"feature {k}" for k in range(len(log.features))]), *env.codec.dynamics_names]
    names = [name for name, keep in zip(names, kept.tolist()) if keep] + ["their mean"]
    worst = z.abs().amax(0).argsort(descending=True)[:3].tolist()
    return ["propensities are not those that decisions were made with: weighted by them, contacts and the rest differ in "
            + ", ".join(f"{names[k]} (z = {z.abs()[:, k].amax():.1f})" for k in worst)]


def decided(log: Panel) -> Tensor:
    """Weeks in which there was something to decide, bool [T, N]."""
    return log.there & (log.state.status == SUBSCRIBED) & (log.valid > 1)


def residuals(trips: tuple[Tensor, Tensor, Tensor], log: Panel) -> Tensor:
    """Trips by (offer, channel) above their prediction, in standard deviations, [O+1, C]; 0 where a pair never came."""
    p, happened, known = trips
    known = known & (log.state.status != CHURNED) & (log.state.status == SUBSCRIBED)
    at = torch.stack((log.offer[known], log.channel[known]))
    size = [int(x.amax()) + 1 for x in at]
    above, variance = torch.zeros(2, *size, dtype=torch.float64, device=p.device)
    above.index_put_(tuple(at), (happened[known].to(p) - p[known]).double(), accumulate=True)
    variance.index_put_(tuple(at), (p * (1 - p))[known].double(), accumulate=True)
    return above / variance.sqrt().clamp_min(1e-9)


def named(z: Tensor, catalogue: Catalogue, level: float) -> list[str]:
    """Name the pairs [O+1, C] whose residuals are beyond chance."""
    wrong = significant(z, level).nonzero().tolist()
    if not wrong:
        return []
    wrong.sort(key=lambda at: -z[tuple(at)].abs().item())
    texts = [f"{'nothing' if o == 0 else f'{catalogue.offers[o]} by {catalogue.channels[c]}'} (z = {z[o, c]:+.1f})"
             for o, c in wrong[:3]]
    return ["trips are not what the world's equations can explain, or who sent knew more than the log says: " + ", ".join(texts)
            + (f" and {len(wrong) - 3} more pairs" if len(wrong) > 3 else "")]


# ── uplift ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Found:
    """Numbers, lines for the caption, and plots."""

    numbers: dict = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    plots: dict[str, Figure] = field(default_factory=dict)


class Uplift:
    """Hold predicted uplift of a contact on trips against held-out decisions of a log that was drawn alike for all.

    bins: by predicted uplift. replications: of the bootstrap over customers, paired with ranking by the probability of a trip.
    """

    def __init__(self, *, bins: int, replications: int, level: float, seed: int):
        self.bins, self.replications, self.level, self.seed = bins, replications, level, seed

    def __call__(self, members: list, log: Panel) -> Found:
        """Return what was found, nothing where the log's contacts were not drawn alike."""
        at = decided(log)
        if not alike(log, at):
            return Found(said=["uplift is not held against this log: contacts were not drawn alike for all"])
        raised, anyhow, costs = (torch.stack(x).mean(0)[at] for x in zip(*(member.uplift() for member in members)))
        treated, bought, spend = (log.offer > 0)[at], log.bought[at], log.spend[at]
        customer = torch.arange(len(log), device=at.device).expand_as(at)[at]
        generator = torch.Generator(at.device).manual_seed(self.seed)
        test = uplift.UpliftTestSet(customer, bought.double(), treated, torch.stack((raised, anyhow)))
        drawn = uplift.bootstrap([test], len(log), self.replications, generator)[0]
        tail = (1 - self.level) / 2

        def interval(x):
            return torch.quantile(x, x.new_tensor([tail, 1 - tail])).tolist()
        q, rival = (uplift.qini(bought.double(), score, treated).item() for score in (raised, anyhow))
        auuc = uplift.auuc(bought.double(), raised, treated).item()
        bins = uplift.by_bin(bought.double(), raised, treated, self.bins)
        curve = uplift.cost_curve(bought.double(), spend.double(), raised / costs.clamp_min(1e-6), treated)
        low, high = interval(drawn[0])
        numbers = {"qini": q, "qini_ci": [low, high], "auuc": auuc, "qini_by_trip": rival,
                   "ahead": q - rival, "ahead_ci": interval(drawn[0] - drawn[1]),
                   "cost_area": uplift.cost_area(*curve).item(), "decisions": len(bought), "contacted": int(treated.sum()),
                   "deciles": [{"predicted": p, "uplift": u, "std": s} for p, u, s in
                               zip(bins.score.tolist(), bins.uplift.tolist(), bins.std.tolist())]}
        said = [f"uplift on trips: Qini {q:.4f} ({low:.4f} to {high:.4f}), by P(trip) {rival:.4f}; AUUC {auuc:.4f}"]
        return Found(numbers, said, {"uplift": self._deciles(bins), "qini": self._qini(test), "cost": self._cost(curve)})

    def _deciles(self, bins: uplift.Bins) -> Figure:
        figure, axes = labelled("predicted uplift of a contact on P(trip), mean of a decile", "uplift among held-out customers")
        axes.errorbar(bins.score.tolist(), bins.uplift.tolist(), yerr=(normal_quantile(LEVEL) * bins.std).tolist(), fmt="o", markersize=3)
        axes.axline((0.0, 0.0), slope=1, color="grey", linestyle=":", linewidth=0.8)
        return figure

    def _qini(self, test: uplift.UpliftTestSet) -> Figure:
        figure, axes = labelled("share of decisions, highest uplift first", "incremental trips")
        for name, score in zip(("by the twin's uplift", "by P(trip)"), test.scores):
            n, gained = uplift.qini_curve(test.outcome, score, test.treated)
            axes.plot((n / n[-1]).tolist(), gained.tolist(), label=name)
        axes.plot([0, 1], [0, gained[-1].item()], color="grey", linestyle=":", linewidth=0.8)
        axes.legend(frameon=False)
        return figure

    def _cost(self, curve: tuple[Tensor, Tensor]) -> Figure:
        figure, axes = labelled("incremental spend", "incremental trips")
        axes.plot(*(x.tolist() for x in curve))
        axes.plot(*([0, x[-1].item()] for x in curve), color="grey", linestyle=":", linewidth=0.8)
        return figure


def alike(log: Panel, at: Tensor) -> bool:
    """Whether contacts `at` some weeks [T, N] were drawn with one probability, and then any pair alike."""
    for contacted, share in ((False, log.propensity), (True, log.propensity * (log.valid - 1))):
        share = share[at & ((log.offer > 0) == contacted)]
        if not len(share) or not (share.amax() - share.amin()) < 1e-3:  # nor where one is missing
            return False
    return True
