"""Off-policy evaluation of a policy on a dataset: estimators with intervals, diagnostics of the weights, warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlcore.algorithm import Policy
from rlcore.exploration.rules import greedy
from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import Fit, consecutive_ids, cross_fit, folds, rows_by_episode
from rlcore.ope.estimators import Terms
from rlcore.ope.outcome_models import CHUNK

NET = "net"  # reward less the cost at the logged price
LOGGED = "as logged"  # the row of the logging policy's own value
ROUNDING = 1e-6  # of probabilities that should be 0
# a decision is named where a smaller share of the target's probability is on actions that the log could take
SUPPORTED = 0.5


def kinds_of(dataset: LoggedDataset) -> tuple[str, str, str]:
    """Names of the estimated quantities: reward, cost, and reward less cost at the logged price."""
    return dataset.names.reward, dataset.names.cost, NET


@dataclass(frozen=True)
class Evaluation:
    """An off-policy evaluation of a target policy. Values are per episode, in the dataset's units."""

    rows: dict[str, dict[str, Any]]  #: {estimator: {kind: estimate, kind_ci, kind_normal, kind_bernstein: [low, high]}}
    diagnostics: dict[str, float]  #: sizes of the dataset and, with propensities, how even the weights are
    warnings: list[str]
    weights: Tensor | None  #: importance weights of episodes [M], None without propensities


class OffPolicyEvaluator:
    """Estimate the value of target policies on a dataset.

    `model` fits a model of outcomes (rlcore/ope/outcome_models.py), cross-fitted in `folds` folds. `gamma` is the
    discount of a step. `clip`, `switch` and `shrinkage` are λ of clipped IPS, Switch-DR and DRos. With `greedy` the
    target is the mode of a policy. `level` is that of the intervals, `replications` the number of bootstrap samples.
    There is a warning where the effective sample size is below a share `min_ess_share` of the episodes.
    """

    def __init__(
        self,
        *,
        model: Fit,
        folds: int,
        gamma: float,
        clip: float,
        switch: float,
        shrinkage: float,
        greedy: bool,
        level: float,
        replications: int,
        min_ess_share: float,
        seed: int,
    ):
        if not 0 < level < 1 or folds < 2:
            raise ValueError(f"ope.level, ope.folds: expected a share in (0, 1) and at least 2, got {level}, {folds}")
        self.model = model
        self.folds = folds
        self.gamma = gamma
        self.clip = clip
        self.switch = switch
        self.shrinkage = shrinkage
        self.greedy = greedy
        self.level = level
        self.replications = replications
        self.min_ess_share = min_ess_share
        self.seed = seed

    @torch.no_grad()
    def target(self, policy: Policy, dataset: LoggedDataset) -> Tensor:
        """Probabilities [N, A] of a policy's actions in the decisions of a dataset."""
        decisions = torch.arange(len(dataset), device=dataset.action.device)
        tables = []
        for rows in torch.split(decisions, CHUNK):
            distribution = policy.distribution(dataset.obs[rows], dataset.action_mask[rows])
            tables.append(distribution.probs)
        probs = torch.cat(tables)
        return greedy(probs, dense(dataset.action_mask)) if self.greedy else probs

    def __call__(self, dataset: LoggedDataset, target: Tensor) -> Evaluation:
        """Evaluate a target policy's probabilities [N, A]; raise ValueError where the dataset can't value it."""
        check_allowed(dataset, target)
        generator = torch.Generator(dataset.action.device).manual_seed(self.seed)
        names = dataset.names
        keys = (names.unit, names.episode, names.step)
        episode_rows = rows_by_episode(dataset.unit, dataset.episode, dataset.step, keys)
        unit = consecutive_ids(dataset.unit)

        fold = folds(unit, self.folds, generator)
        outcome = torch.stack((dataset.gross_reward, dataset.cost, dataset.net_reward), 1)
        v, q = cross_fit(
            fit=self.model,
            obs=dense(dataset.obs),
            action=dataset.action,
            outcome=outcome,
            target=target,
            episode_rows=episode_rows,
            fold=fold,
            gamma=self.gamma,
            generator=generator,
        )
        ratio, warnings = self._ratio(dataset, target)
        ratio_by_step = None if ratio is None else lay_out(ratio, episode_rows, 1.0)

        terms = {}
        for k, kind in enumerate(kinds_of(dataset)):
            reward_by_step = lay_out(outcome[:, k], episode_rows, 0.0)
            v_by_step = lay_out(v[:, k], episode_rows, 0.0)
            q_by_step = lay_out(q[:, k], episode_rows, 0.0)
            terms[kind] = self._terms(reward_by_step, v_by_step, q_by_step, ratio_by_step)
        unit_of_episode = unit[episode_rows[:, 0]]
        rows = self._rows(terms, unit_of_episode, generator)

        diagnostics: dict[str, float] = {
            "decisions": len(dataset),
            "episodes": len(episode_rows),
            "units": int(unit.amax()) + 1,
            "steps": episode_rows.shape[1],
        }
        if ratio_by_step is None:
            return Evaluation(rows=rows, diagnostics=diagnostics, warnings=warnings, weights=None)
        weights = ratio_by_step.prod(1)
        episodes = len(weights)
        ess = ope.effective_sample_size(weights).item()
        diagnostics |= {
            "effective": ess,
            "effective_share": ess / episodes,
            "max_weight": weights.amax().item(),
            "mean_weight": weights.mean().item(),
            "unsupported": share_without_support(dataset, target),
        }
        if ess < self.min_ess_share * episodes:
            warnings.append(
                f"the weights are worth {ess:,.0f} of {episodes:,} units: intervals are too narrow where "
                "weights are so uneven; log with a policy nearer to the target, or more"
            )
        return Evaluation(rows=rows, diagnostics=diagnostics, warnings=warnings, weights=weights)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _ratio(self, dataset: LoggedDataset, target: Tensor) -> tuple[Tensor | None, list[str]]:
        """Importance weights of decisions, float64 [N], None where propensities are missing, and warnings.

        Raises ValueError where the target takes none of the logged actions.
        """
        missing = dataset.propensity.isnan()
        if missing.any():
            warning = (
                f"{named_rows(missing, 0)}: no propensity; only the model of outcomes can value the target, and "
                "the model is confounded if the decisions used more than the log has"
            )
            return None, [warning]
        probability = ope.select_actions(target, dataset.action).double()
        ratio = probability / dataset.propensity
        if not ratio.any():
            raise ValueError(
                "target: none of the logged decisions is one that it could have made; expected some in common"
            )
        return ratio, support_warnings(dataset, target)

    def _terms(self, reward: Tensor, v: Tensor, q: Tensor, ratio: Tensor | None) -> dict[str, Terms]:
        """Every estimator of one kind by name, of episodes [M, T] (decisions: T = 1); without ratios, the model's."""
        sequential = reward.shape[1] > 1
        first_v = v[:, 0]
        discounted = ope.discounts(reward, self.gamma) * reward
        terms = {LOGGED: ope.dm(discounted.sum(1))}
        terms["FQE" if sequential else "DM"] = ope.dm(first_v)
        if ratio is None:
            return terms
        if sequential:
            return terms | self._sequential_terms(reward, v, q, ratio)
        return terms | self._one_step_terms(reward[:, 0], first_v, q[:, 0], ratio[:, 0])

    def _one_step_terms(self, reward: Tensor, v: Tensor, q: Tensor, w: Tensor) -> dict[str, Terms]:
        """The weighted estimators of decisions [M]."""
        return {
            "IPS": ope.ips(w, reward),
            f"IPS, clipped at {self.clip:g}": ope.ips(w, reward, self.clip),
            "SNIPS": ope.snips(w, reward),
            "DR": ope.dr(w, reward, v, q),
            "SNDR": ope.sndr(w, reward, v, q),
            f"Switch-DR at {self.switch:g}": ope.switch_dr(w, reward, v, q, self.switch),
            f"DRos at {self.shrinkage:g}": ope.dros(w, reward, v, q, self.shrinkage),
        }

    def _sequential_terms(self, reward: Tensor, v: Tensor, q: Tensor, ratio: Tensor) -> dict[str, Terms]:
        """The weighted estimators of episodes [M, T]."""
        gamma = self.gamma
        next_v = torch.nn.functional.pad(v[:, 1:], (0, 1))
        return {
            "PDIS": ope.pdis(ratio, reward, gamma),
            "weighted PDIS": ope.wpdis(ratio, reward, gamma),
            "sequential DR": ope.sequential_dr(ratio, reward, v, q, next_v, gamma),
            "weighted DR": ope.weighted_dr(ratio, reward, v, q, next_v, gamma),
        }

    def _rows(
        self, terms: dict[str, dict[str, Terms]], unit: Tensor, generator: torch.Generator
    ) -> dict[str, dict[str, Any]]:
        """Estimates and intervals by estimator of terms {kind: {estimator: terms}}, on the same resampled units."""
        cluster = consecutive_ids(unit)
        flat: list[Terms] = []
        for by_estimator in terms.values():
            flat += by_estimator.values()
        draws = intervals.bootstrap(flat, cluster, self.replications, generator)
        bootstrap_ends = iter(intervals.central(draws, self.level).tolist())
        rows: dict[str, dict[str, Any]] = {}
        for kind, by_estimator in terms.items():
            for name, one in by_estimator.items():
                normal_ends = intervals.normal(one, cluster, self.level)
                bernstein_ends = intervals.bernstein(one, cluster, self.level)
                row = rows.setdefault(name, {})
                row[kind] = intervals.estimate(one).item()
                row[f"{kind}_ci"] = next(bootstrap_ends)
                row[f"{kind}_normal"] = [x.item() for x in normal_ends]
                row[f"{kind}_bernstein"] = [x.item() for x in bernstein_ends]
        return rows


# ── a dataset and a target [N, A] ───────────────────────────────────────────────────────────────────────────────────
def check_allowed(dataset: LoggedDataset, target: Tensor) -> None:
    """Raise ValueError, with the rows, where a target takes actions that are not valid."""
    on_invalid = (target * ~dense(dataset.action_mask)).sum(1)
    forbidden = on_invalid > ROUNDING
    if forbidden.any():
        raise ValueError(f"target: {named_rows(forbidden, 0)}: it does what valid_* forbids")


def share_without_support(dataset: LoggedDataset, target: Tensor) -> float:
    """Share of the target on actions without support: of probability 0 in the log or, if unknown, never logged."""
    if dataset.probs is not None:
        return ope.unsupported_share(target, dataset.probs).item()
    logged = torch.zeros(target.shape[1], device=target.device)
    logged[torch.unique(dataset.action)] = 1.0
    return ope.unsupported_share(target, logged.expand_as(target)).item()


def support_warnings(dataset: LoggedDataset, target: Tensor) -> list[str]:
    """Warn where the target takes actions that the logging policy never takes."""
    if dataset.probs is None:
        share = share_without_support(dataset, target)
        return [f"{share:.1%} of what the target does is never done in the log"] if share > 0 else []
    unsupported = torch.where(dataset.probs > 0, 0.0, target).sum(1)
    bare = unsupported > SUPPORTED
    if bare.any():
        return [f"{named_rows(bare, 0)}: the target does what the logging policy never would there"]
    return []


def lay_out(x: Tensor, episode_rows: Tensor, padding: float) -> Tensor:
    """Lay values x [N] out by episode and step, float64 [M, T], `padding` after an episode's end."""
    values = x.double()[episode_rows.clamp_min(0)]
    return torch.where(episode_rows >= 0, values, padding)
