"""Off-policy evaluation of a policy on a dataset: estimators with intervals, diagnostics of the weights, warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlcore.algorithm import Policy
from rlcore.exploration.rules import greedy
from rlcore.offline.deduplicated import dense
from rlcore.offline.file_columns import numbered
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import Fit, Layout, consecutive_ids, cross_fit, lay_out
from rlcore.ope.dataset_checks import (
    check_allowed,
    far_columns,
    share_without_support,
    support_warnings,
    without_unknown_propensities,
)
from rlcore.ope.estimators import Terms
from rlcore.ope.outcome_models import CHUNK
from rlcore.ope.weight_checks import check_weights

NET = "net"  # reward less the cost at the logged price
LOGGED = "as logged"  # the row of the logging policy's own value


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
    layout: Layout  #: the decisions that were used
    terms: dict[str, dict[str, Terms]]  #: of the episodes, {kind: {estimator: terms}}


class OffPolicyEvaluator:
    """Estimate the value of target policies on a dataset.

    `model` fits a model of outcomes (rlcore/ope/outcome_models.py), cross-fitted in `folds` folds. `gamma` is the
    discount of a step. `clip`, `switch` and `shrinkage` are λ of clipped IPS, Switch-DR and DRos. With `greedy` the
    target is the mode of a policy. `level` is that of the intervals, `replications` the number of bootstrap samples.
    There is a warning where the effective sample size is below a share `min_ess_share` of the episodes, and where the
    mean weight is not about 1. Policies are compared with at most `constant_actions` constant ones
    (rlcore/ope/alternatives.py). Episodes with an unknown propensity are left out, unless none would be left, or what
    was done would decide what is left. An estimator whose weights are greater than numbers can hold is NaN, with a
    warning.
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
        constant_actions: int,
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
        self.constant_actions = constant_actions
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

    def __call__(
        self,
        dataset: LoggedDataset,
        target: Tensor,
        *,
        name_action: Callable[[int], str] = str,
        obs_names: Sequence[str] = (),
    ) -> Evaluation:
        """Evaluate a target policy's probabilities [N, A]; raise ValueError where the dataset can't value it.

        Warnings name actions and observed columns by `name_action` and `obs_names`; empty: as numbered files do.
        """
        check_allowed(dataset, target)
        dataset, target, warnings = without_unknown_propensities(dataset, target, name_action)
        support = support_warnings(dataset, target)
        generator = torch.Generator(dataset.action.device).manual_seed(self.seed)
        layout = Layout.of(dataset, self.folds, generator)
        dataset = layout.dataset
        episode_rows = layout.episode_rows
        warnings += far_columns(layout.obs, layout.fold, obs_names or column_numbers(dataset))
        v, q = cross_fit(
            fit=self.model,
            obs=layout.obs,
            action=dataset.action,
            outcome=layout.outcome,
            target=target,
            episode_rows=episode_rows,
            fold=layout.fold,
            gamma=self.gamma,
            generator=self.model_generator(dataset),
        )
        ratio = self._ratio(dataset, target)
        if ratio is None:
            warnings.append(
                f"{named_rows(dataset.propensity.isnan(), dataset.row)}: no propensity; only the model of outcomes can "
                "value the target, and the model is confounded if the decisions used more than the log has"
            )
        else:
            warnings += support
        ratio_by_step = None if ratio is None else lay_out(ratio, episode_rows, 1.0)
        terms = self.terms(layout, v, q, ratio_by_step)
        unit_of_episode = layout.unit_of_episode
        rows = self._rows(terms, unit_of_episode, generator)

        diagnostics: dict[str, float] = {
            "decisions": len(dataset),
            "episodes": len(episode_rows),
            "units": layout.units,
            "steps": episode_rows.shape[1],
        }
        if ratio_by_step is None:
            return Evaluation(rows, diagnostics, warnings, weights=None, layout=layout, terms=terms)
        weights = ratio_by_step.prod(1)
        undefined = [name for name, row in rows.items() if any(value != value for value in row.values())]
        found, warnings_of_weights = check_weights(
            ratio_by_step,
            unit_of_episode,
            self.min_ess_share,
            undefined,
            dataset.propensity.amin().item(),
            layout.sample,
        )
        diagnostics |= found
        diagnostics["unsupported"] = share_without_support(dataset, target)
        warnings += warnings_of_weights
        return Evaluation(rows, diagnostics, warnings, weights=weights, layout=layout, terms=terms)

    def model_generator(self, dataset: LoggedDataset) -> torch.Generator:
        """Random numbers of the models' fits: the same for a policy and all that it is compared with."""
        return torch.Generator(dataset.action.device).manual_seed(self.seed + 1)

    def terms(self, layout: Layout, v: Tensor, q: Tensor, ratio_by_step: Tensor | None) -> dict[str, dict[str, Terms]]:
        """Every estimator of a policy, {kind: {estimator: terms}}; `ratio_by_step` [M, T], None without propensities.

        v and q [N, K] are a model's v̂ and q̂ of the decisions.
        """
        found = {}
        for k, kind in enumerate(kinds_of(layout.dataset)):
            reward_by_step = lay_out(layout.outcome[:, k], layout.episode_rows, 0.0)
            v_by_step = lay_out(v[:, k], layout.episode_rows, 0.0)
            q_by_step = lay_out(q[:, k], layout.episode_rows, 0.0)
            found[kind] = self._terms(reward_by_step, v_by_step, q_by_step, ratio_by_step)
        return found

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _ratio(self, dataset: LoggedDataset, target: Tensor) -> Tensor | None:
        """Importance weights of decisions, float64 [N], None where no episode has all its propensities.

        Raises ValueError where the target takes none of the logged actions.
        """
        if dataset.propensity.isnan().any():
            return None
        probability = ope.select_actions(target, dataset.action).double()
        ratio = probability / dataset.propensity
        if not ratio.any():
            raise ValueError(
                "target: none of the logged decisions is one that it could have made; expected some in common"
            )
        return ratio

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
        defined = [one for by_estimator in terms.values() for one in by_estimator.values() if is_defined(one)]
        draws = intervals.bootstrap(defined, cluster, self.replications, generator)
        bootstrap_ends = iter(intervals.central(draws, self.level).tolist())
        rows: dict[str, dict[str, Any]] = {}
        for kind, by_estimator in terms.items():
            for name, one in by_estimator.items():
                row = rows.setdefault(name, {})
                if not is_defined(one):
                    row[kind] = math.nan
                    row |= {f"{kind}_{interval}": [math.nan, math.nan] for interval in ("ci", "normal", "bernstein")}
                    continue
                normal_ends = intervals.normal(one, cluster, self.level)
                bernstein_ends = intervals.bernstein(one, cluster, self.level)
                row[kind] = intervals.estimate(one).item()
                row[f"{kind}_ci"] = next(bootstrap_ends)
                row[f"{kind}_normal"] = [x.item() for x in normal_ends]
                row[f"{kind}_bernstein"] = [x.item() for x in bernstein_ends]
        return rows


def column_numbers(dataset: LoggedDataset) -> list[str]:
    """Name observed columns as numbered files do."""
    static = dataset.static_dim
    return [*numbered("feature", static), *numbered("state", dataset.obs.shape[1] - static)]


def is_defined(terms: Terms) -> bool:
    """Tell whether the sums of an estimator are numbers."""
    numerator, weight = terms.ratios()
    sums = (terms.plain.sum(), numerator.sum(), weight.sum())
    return all(x.isfinite().item() for x in sums)
