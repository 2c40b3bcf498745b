"""Warnings where a log may mislead a twin."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.predictions import OutcomePrediction, PanelPredictions
from envs.offers.world.catalogue import Catalogue
from rlcore.ope.propensity_checks import imbalance, significant

MAX_NAMED = 3  # largest number of columns or pairs that a warning names


def decisions(panel: Panel) -> Tensor:
    """Weeks with more than one allowed action, bool [T, N]."""
    return panel.subscribed & (panel.num_allowed > 1)


def propensity_warnings(panel: Panel, env, level: float) -> list[str]:
    """Warn where propensities are missing or, tested at `level`, not those that drew the decisions."""
    where = decisions(panel)
    missing = panel.propensity[where].isnan()
    if missing.any():
        return [
            f"{int(missing.sum()):,} of {len(missing):,} decisions have no propensity: the log can't show whether the "
            "sender knew more than it has, so the effects of contacts may be confounded"
        ]
    customer = torch.arange(len(panel), device=where.device).expand_as(where)[where]
    assert panel.dynamics is not None  # to_panel lays them out
    dynamics = panel.dynamics.permute(1, 2, 0)[where]
    known = torch.cat((panel.features[:, customer].T, dynamics.to(panel.features)), 1)
    varies = known.std(0) > 0
    z = imbalance(known[:, varies], panel.offer[where] == 0, panel.propensity[where], panel.num_allowed[where])
    if not significant(z, level).any():
        return []
    names = [*env.population.feature_names, *env.codec.dynamics_names]
    names = [name for name, keep in zip(names, varies.tolist()) if keep] + ["their mean"]
    worst = z.abs().amax(0).argsort(descending=True)[:MAX_NAMED].tolist()
    return [
        "propensities are not those that drew the decisions: weighted by them, contacts and the rest differ in "
        + ", ".join(f"{names[k]} (z = {z.abs()[:, k].amax():.1f})" for k in worst)
    ]


def trip_residuals(trips: OutcomePrediction, panel: Panel) -> Tensor:
    """Return by how many standard deviations trips exceed their prediction, by offer and channel [O+1, C].

    The result is 0 where a pair was never sent.
    """
    known = trips.known & panel.subscribed
    pair = (panel.offer[known], panel.channel[known])
    size = [int(x.amax()) + 1 for x in pair]
    p = trips.probability
    excess, variance = torch.zeros(2, *size, dtype=torch.float64, device=p.device)
    excess.index_put_(pair, (trips.happened[known].to(p) - p[known]).double(), accumulate=True)
    variance.index_put_(pair, (p * (1 - p))[known].double(), accumulate=True)
    return excess / variance.sqrt().clamp_min(1e-9)


def mean_trip_residuals(members: list[PanelPredictions], panel: Panel) -> Tensor:
    """Return the members' mean of `trip_residuals`, [O+1, C]."""
    return torch.stack([trip_residuals(member.probabilities()["trips"], panel) for member in members]).mean(0)


def misfit_warnings(residuals: Tensor, catalogue: Catalogue, level: float) -> list[str]:
    """Name the pairs of offer and channel whose residuals [O+1, C] are significant."""
    wrong = significant(residuals, level).nonzero().tolist()
    if not wrong:
        return []
    wrong.sort(key=lambda pair: -residuals[tuple(pair)].abs().item())
    texts = []
    for offer, channel in wrong[:MAX_NAMED]:
        name = "nothing" if offer == 0 else f"{catalogue.offers[offer]} by {catalogue.channels[channel]}"
        texts.append(f"{name} (z = {residuals[offer, channel]:+.1f})")
    more = f" and {len(wrong) - MAX_NAMED} more pairs" if len(wrong) > MAX_NAMED else ""
    return [
        "the world's equations can't explain these trips, or the sender knew more than the log has: "
        + ", ".join(texts)
        + more
    ]
