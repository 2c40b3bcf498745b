"""What a policy would have earned and spent on logged decisions, by every estimator, and how far that can be trusted."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from rlcore.ope import estimators as ope
from rlcore.exploration import best
from rlcore.offline.logged_dataset import Logged, named_rows
from rlcore.ope.outcome_models import CHUNK, cross_fit, folds, numbered, seasons

KINDS = ("profit", "spend", "net")  # earned, spent, and what was earned less the spend at the logged price
LOGGED = "as logged"  # the row of what the logging policy itself brought


@dataclass(frozen=True)
class Value:
    """Rows {estimator: {kind: estimate, kind_ci, kind_normal, kind_bernstein}}, diagnostics, and what must be said."""

    rows: dict[str, dict]
    diagnostics: dict
    warnings: list[str]
    weights: Tensor | None  # of units


class Valuation:
    """Value target policies on a log.

    folds: of the cross-fitted model of outcomes. clip, switch, shrinkage: λ of clipped IPS, Switch-DR and DRos. greedy:
    the target is the mode of a policy. few: the share of effective units below which estimates are warned of.
    """

    def __init__(self, *, model: Callable, folds: int, gamma: float, clip: float, switch: float, shrinkage: float,
                 greedy: bool, level: float, replications: int, few: float, seed: int):
        if not 0 < level < 1 or folds < 2:
            raise ValueError(f"ope.level, ope.folds: expected a share in (0, 1) and at least 2, got {level}, {folds}")
        self.model, self.folds, self.gamma, self.greedy = model, folds, gamma, greedy
        self.clip, self.switch, self.shrinkage = clip, switch, shrinkage
        self.level, self.replications, self.few, self.seed = level, replications, few, seed

    def target(self, probs: Callable[[Tensor, Tensor, Tensor], Tensor], log: Logged) -> Tensor:
        """Probabilities [N, A] of a policy's actions; `probs` has them for observations, masks and prices."""
        table = torch.cat([probs(log.obs[rows], log.mask[rows], log.price[rows])
                           for rows in torch.arange(len(log), device=log.obs.device).split(CHUNK)])
        return best(table, log.mask) if self.greedy else table

    def __call__(self, log: Logged, target: Tensor) -> Value:
        """Value a target [N, A] on a log; raise ValueError where nothing can be said of it."""
        outside = (target * ~log.mask).sum(1) > 1e-6
        if outside.any():
            raise ValueError(f"target: {named_rows(outside, 0)}: it does what valid_* forbids")
        generator = torch.Generator(log.obs.device).manual_seed(self.seed)
        outcome = torch.stack((log.earned, log.spend, log.reward), 1)
        place = seasons(log.customer, log.season, log.week)
        cluster, unit = numbered(log.customer), place[:, 0]
        v, q_all = cross_fit(self.model, log.obs, log.action, outcome, target, place, folds(cluster, self.folds, generator),
                         self.gamma, generator)
        warnings, weights, ratio = [], None, None
        missing = log.propensity.isnan()
        if missing.any():
            warnings.append(f"{named_rows(missing, 0)}: no propensity; only the model of outcomes is left to go by, and what "
                            "it learns is confounded if the decisions knew more than the log does")
        else:
            ratio = ope.taken(target, log.action).double() / log.propensity
            warnings += self._support(log, target, ratio)
            ratio = by_place(ratio, place, 1.0)
            weights = ratio.prod(1)
        terms = {}
        for k, kind in enumerate(KINDS):
            r, model, q = (by_place(x[:, k], place, 0.0) for x in (outcome, v, q_all))
            terms[kind] = {LOGGED: ope.dm((ope.discounts(r, self.gamma) * r).sum(1)), **(
                {"DM" if r.shape[1] == 1 else "FQE": ope.dm(model[:, 0])} if ratio is None else
                self._terms(r, model, q, ratio))}
        rows = self._rows(terms, cluster[unit], generator)
        diagnostics = {"decisions": len(log), "seasons": len(place), "customers": int(cluster.amax()) + 1,
                       "weeks": place.shape[1]}
        if weights is not None:
            ess = ope.effective_sample_size(weights).item()
            diagnostics |= {"effective": ess, "effective_share": ess / len(weights), "max_weight": weights.amax().item(),
                            "mean_weight": weights.mean().item(), "unsupported": self.unsupported(log, target)}
            if ess < self.few * len(weights):
                warnings.append(f"the weights are worth {ess:,.0f} of {len(weights):,} units: intervals are too narrow where "
                                "weights are so uneven; log with a policy nearer to the target, or more")
        return Value(rows, diagnostics, warnings, weights)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    @staticmethod
    def unsupported(log: Logged, target: Tensor) -> float:
        """Share of target actions that were never to be logged: by the log's probabilities, or as none ever was."""
        never = torch.zeros(target.shape[1], device=target.device).index_fill_(0, log.action.unique(), 1.0)
        return ope.unsupported(target, never.expand_as(target) if log.probs is None else log.probs).item()

    def _support(self, log: Logged, target: Tensor, ratio: Tensor) -> list[str]:
        """Refuse a target that no logged decision follows, say where it has no support."""
        if not ratio.any():
            raise ValueError("target: none of the logged decisions is one that it could have made; expected some in common")
        said = []
        if log.probs is not None:
            bare = torch.where(log.probs > 0, 0.0, target).sum(1) > 0.5
            if bare.any():
                said.append(f"{named_rows(bare, 0)}: the target does what the logging policy never would there")
        elif (share := self.unsupported(log, target)) > 0:
            said.append(f"{share:.1%} of what the target does is never done in the log")
        return said

    def _terms(self, r: Tensor, v: Tensor, q: Tensor, ratio: Tensor) -> dict[str, ope.Terms]:
        """Every estimator of one kind, of seasons [M, T] or of decisions [M, 1]."""
        gamma = self.gamma
        if r.shape[1] > 1:
            following = torch.nn.functional.pad(v[:, 1:], (0, 1))
            return {"FQE": ope.dm(v[:, 0]), "PDIS": ope.pdis(ratio, r, gamma), "weighted PDIS": ope.wpdis(ratio, r, gamma),
                    "sequential DR": ope.sequential_dr(ratio, r, v, q, following, gamma),
                    "weighted DR": ope.weighted_dr(ratio, r, v, q, following, gamma)}
        w, r, v, q = (x[:, 0] for x in (ratio, r, v, q))
        return {"DM": ope.dm(v), "IPS": ope.ips(w, r), f"IPS, clipped at {self.clip:g}": ope.ips(w, r, self.clip),
                "SNIPS": ope.snips(w, r), "DR": ope.dr(w, r, v, q), "SNDR": ope.sndr(w, r, v, q),
                f"Switch-DR at {self.switch:g}": ope.switch_dr(w, r, v, q, self.switch),
                f"DRos at {self.shrinkage:g}": ope.dros(w, r, v, q, self.shrinkage)}

    def _rows(self, terms: dict[str, dict[str, ope.Terms]], cluster: Tensor, generator: torch.Generator) -> dict[str, dict]:
        """Estimates and intervals of terms by kind and name, all on the same resampled customers."""
        cluster = numbered(cluster)
        drawn = ope.bootstrap([x for named in terms.values() for x in named.values()], cluster, self.replications, generator)
        tail = (1 - self.level) / 2
        ends = iter(torch.quantile(drawn, drawn.new_tensor([tail, 1 - tail]), dim=1).T.tolist())
        rows: dict[str, dict] = {}
        for kind, named in terms.items():
            for name, made in named.items():
                rows.setdefault(name, {}).update({
                    kind: ope.estimate(made).item(), f"{kind}_ci": next(ends),
                    **{f"{kind}_{bound.__name__}": [x.item() for x in bound(made, cluster, self.level)]
                       for bound in (ope.normal, ope.bernstein)}})
        return rows


def by_place(x: Tensor, place: Tensor, empty: float) -> Tensor:
    """Lay values x [N] out by season and time, [M, T] in float64, `empty` where a season is over."""
    return torch.where(place >= 0, x.double()[place.clamp_min(0)], empty)
