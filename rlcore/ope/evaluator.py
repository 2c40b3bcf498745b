"""Off-policy evaluation of a policy on a dataset: every estimator with intervals, diagnostics of the weights, warnings."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from rlcore.algorithm import Policy
from rlcore.exploration import greedy
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import consecutive_ids, cross_fit, folds, rows_by_episode
from rlcore.ope.estimators import Terms
from rlcore.ope.outcome_models import CHUNK

NET = "net"  # reward less the cost at the logged price
LOGGED = "as logged"  # the row of the logging policy's own value
SUPPORTED = 0.5  # of the target's probability in a decision: with less on what the log could do, the decision is named


def kinds_of(dataset: LoggedDataset) -> tuple[str, str, str]:
    """Names of what is estimated: reward, cost, and the net of both at the logged price."""
    return dataset.names.reward, dataset.names.cost, NET


@dataclass(frozen=True)
class Evaluation:
    """An off-policy evaluation: rows {estimator: {kind: estimate, kind_ci, kind_normal, kind_bernstein}} and diagnostics."""

    rows: dict[str, dict]
    diagnostics: dict
    warnings: list[str]
    weights: Tensor | None  # importance weights of episodes, None without propensities


class OffPolicyEvaluator:
    """Estimate the value of target policies on a dataset.

    folds: of the cross-fitted model of outcomes. clip, switch, shrinkage: λ of clipped IPS, Switch-DR and DRos. greedy: the
    target is the mode of a policy. min_ess_share: the effective sample size, as a share of the episodes, below which there
    is a warning.
    """

    def __init__(self, *, model: Callable, folds: int, gamma: float, clip: float, switch: float, shrinkage: float,
                 greedy: bool, level: float, replications: int, min_ess_share: float, seed: int):
        if not 0 < level < 1 or folds < 2:
            raise ValueError(f"ope.level, ope.folds: expected a share in (0, 1) and at least 2, got {level}, {folds}")
        self.model, self.folds, self.gamma, self.greedy = model, folds, gamma, greedy
        self.clip, self.switch, self.shrinkage = clip, switch, shrinkage
        self.level, self.replications, self.min_ess_share, self.seed = level, replications, min_ess_share, seed

    @torch.no_grad()
    def target(self, policy: Policy, dataset: LoggedDataset) -> Tensor:
        """Probabilities [N, A] of a policy's actions in the decisions of a dataset."""
        chunks = torch.arange(len(dataset), device=dataset.obs.device).split(CHUNK)
        table = torch.cat([policy.distribution(dataset.obs[rows], dataset.action_mask[rows]).probs for rows in chunks])
        return greedy(table, dataset.action_mask) if self.greedy else table

    def __call__(self, dataset: LoggedDataset, target: Tensor) -> Evaluation:
        """Evaluate a target [N, A]; raise ValueError where the dataset can say nothing of it."""
        forbidden = (target * ~dataset.action_mask).sum(1) > 1e-6
        if forbidden.any():
            raise ValueError(f"target: {named_rows(forbidden, 0)}: it does what valid_* forbids")
        generator = torch.Generator(dataset.obs.device).manual_seed(self.seed)
        names = dataset.names
        outcome = torch.stack((dataset.gross_reward, dataset.cost, dataset.net_reward), 1)
        episodes = rows_by_episode(dataset.unit, dataset.episode, dataset.step, (names.unit, names.episode, names.step))
        unit = consecutive_ids(dataset.unit)
        v, q = cross_fit(self.model, dataset.obs, dataset.action, outcome, target, episodes,
                         folds(unit, self.folds, generator), self.gamma, generator)
        ratio, warnings = self._ratio(dataset, target)
        by_episode = None if ratio is None else lay_out(ratio, episodes, 1.0)
        terms = {}
        for k, kind in enumerate(kinds_of(dataset)):
            reward, v_kind, q_kind = (lay_out(x[:, k], episodes, 0.0) for x in (outcome, v, q))
            logged = ope.dm((ope.discounts(reward, self.gamma) * reward).sum(1))
            terms[kind] = {LOGGED: logged, **self._terms(reward, v_kind, q_kind, by_episode)}
        rows = self._rows(terms, unit[episodes[:, 0]], generator)
        diagnostics = {"decisions": len(dataset), "episodes": len(episodes), "units": int(unit.amax()) + 1,
                       "steps": episodes.shape[1]}
        if by_episode is None:
            return Evaluation(rows, diagnostics, warnings, None)
        weights = by_episode.prod(1)
        ess = ope.effective_sample_size(weights).item()
        diagnostics |= {"effective": ess, "effective_share": ess / len(weights), "max_weight": weights.amax().item(),
                        "mean_weight": weights.mean().item(), "unsupported": self.unsupported(dataset, target)}
        if ess < self.min_ess_share * len(weights):
            warnings.append(f"the weights are worth {ess:,.0f} of {len(weights):,} units: intervals are too narrow where "
                            "weights are so uneven; log with a policy nearer to the target, or more")
        return Evaluation(rows, diagnostics, warnings, weights)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    @staticmethod
    def unsupported(dataset: LoggedDataset, target: Tensor) -> float:
        """Share of the target on actions without support: of probability 0 in the log or, if unknown, never logged."""
        if dataset.probs is not None:
            return ope.unsupported_share(target, dataset.probs).item()
        logged = torch.zeros(target.shape[1], device=target.device).index_fill_(0, dataset.action.unique(), 1.0)
        return ope.unsupported_share(target, logged.expand_as(target)).item()

    def _ratio(self, dataset: LoggedDataset, target: Tensor) -> tuple[Tensor | None, list[str]]:
        """Importance weights of decisions [N], None where propensities are missing, and warnings.

        Raises ValueError where the target takes none of the logged actions.
        """
        missing = dataset.propensity.isnan()
        if missing.any():
            return None, [f"{named_rows(missing, 0)}: no propensity; only the model of outcomes is left to go by, and what "
                          "it learns is confounded if the decisions knew more than the log does"]
        ratio = ope.select_actions(target, dataset.action).double() / dataset.propensity
        if not ratio.any():
            raise ValueError("target: none of the logged decisions is one that it could have made; expected some in common")
        warnings = []
        if dataset.probs is not None:
            bare = torch.where(dataset.probs > 0, 0.0, target).sum(1) > SUPPORTED
            if bare.any():
                warnings.append(f"{named_rows(bare, 0)}: the target does what the logging policy never would there")
        elif (share := self.unsupported(dataset, target)) > 0:
            warnings.append(f"{share:.1%} of what the target does is never done in the log")
        return ratio, warnings

    def _terms(self, reward: Tensor, v: Tensor, q: Tensor, ratio: Tensor | None) -> dict[str, Terms]:
        """Every estimator of one kind, of episodes [M, T] or of decisions [M, 1]; without weights only the model's."""
        gamma, sequential = self.gamma, reward.shape[1] > 1
        if ratio is None:
            return {"FQE" if sequential else "DM": ope.dm(v[:, 0])}
        if sequential:
            next_v = torch.nn.functional.pad(v[:, 1:], (0, 1))
            return {"FQE": ope.dm(v[:, 0]), "PDIS": ope.pdis(ratio, reward, gamma),
                    "weighted PDIS": ope.wpdis(ratio, reward, gamma),
                    "sequential DR": ope.sequential_dr(ratio, reward, v, q, next_v, gamma),
                    "weighted DR": ope.weighted_dr(ratio, reward, v, q, next_v, gamma)}
        w, reward, v, q = (x[:, 0] for x in (ratio, reward, v, q))
        return {"DM": ope.dm(v), "IPS": ope.ips(w, reward), f"IPS, clipped at {self.clip:g}": ope.ips(w, reward, self.clip),
                "SNIPS": ope.snips(w, reward), "DR": ope.dr(w, reward, v, q), "SNDR": ope.sndr(w, reward, v, q),
                f"Switch-DR at {self.switch:g}": ope.switch_dr(w, reward, v, q, self.switch),
                f"DRos at {self.shrinkage:g}": ope.dros(w, reward, v, q, self.shrinkage)}

    def _rows(self, terms: dict[str, dict[str, Terms]], unit: Tensor, generator: torch.Generator) -> dict[str, dict]:
        """Estimates and intervals of terms by kind and estimator, all on the same resampled units."""
        cluster = consecutive_ids(unit)
        flat = [x for named in terms.values() for x in named.values()]
        draws = intervals.bootstrap(flat, cluster, self.replications, generator)
        ends = iter(intervals.central(draws, self.level).tolist())
        rows: dict[str, dict] = {}
        for kind, named in terms.items():
            for name, one in named.items():
                row = rows.setdefault(name, {})
                row[kind] = intervals.estimate(one).item()
                row[f"{kind}_ci"] = next(ends)
                row[f"{kind}_normal"] = [x.item() for x in intervals.normal(one, cluster, self.level)]
                row[f"{kind}_bernstein"] = [x.item() for x in intervals.bernstein(one, cluster, self.level)]
        return rows


def lay_out(x: Tensor, episode_rows: Tensor, padding: float) -> Tensor:
    """Lay values x [N] out by episode and step, float64 [M, T], `padding` after an episode's end."""
    return torch.where(episode_rows >= 0, x.double()[episode_rows.clamp_min(0)], padding)
