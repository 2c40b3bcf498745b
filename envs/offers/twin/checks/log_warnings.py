"""Warnings where a log may mislead a twin."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from rlcore.ope.propensity_checks import imbalance, significant

MAX_NAMED = 3  # largest number of columns that a warning names


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
