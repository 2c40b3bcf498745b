"""What a policy is compared with on a log: its own decisions, every constant action, the best of these, given rules.

All are valued on the folds of the policy's own evaluation, by the same estimators, so that differences are paired: an
interval of a difference is that of the difference of two influence functions, clustered by unit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore.offline.deduplicated import dense
from rlcore.ope import estimators as ope
from rlcore.ope import intervals
from rlcore.ope.cross_fitting import Layout, cross_fit_policies, lay_out, outcome_of
from rlcore.ope.estimators import Terms
from rlcore.ope.evaluator import LOGGED, NET, Evaluation, OffPolicyEvaluator, is_defined

BEST = "best constant action"
LIKELIEST = "likeliest of the log"  # the greedy form of the logging policy
FEWEST = 10.0  # effective episodes below which weights say nothing of an alternative
DECIDED = 0.5  # least share of decisions with a choice in which one action is the likeliest, to speak of a likeliest
MODELS = ("DM", "FQE")  # estimators by a model alone
NameAction = Callable[[int], str]  # the name of a flat action


class Alternative(NamedTuple):
    """A deterministic policy."""

    chosen: Tensor  #: the flat action in each decision, int64 [N]
    elsewhere: float  #: share of decisions in which the wanted action is not possible, so that another is taken
    ratio: Tensor  #: importance weights of decisions by episode and step, float64 [M, T]
    effective: float  #: effective number of episodes


@dataclass(frozen=True)
class Comparison:
    """A policy beside its alternatives; values are per episode, in the dataset's units."""

    #: {policy: "estimator", a value and "_ci" by kind, "policy_less" by kind, [value, low, high]; all "estimators";
    #: of deterministic policies also "effective" and "elsewhere", as of an Alternative}
    rows: dict[str, dict[str, Any]]
    unsupported: dict[str, float]  #: effective episodes of alternatives that the log can't value
    effective: float | None  #: effective episodes of the policy; None where the log has no propensities
    left_out: int  #: number of actions that the log has and the comparison has not
    chosen: tuple[str, ...]  #: what the best constant action is, by the fold that it is valued on
    given: tuple[str, ...]  #: names of the policies that came with the dataset


def compare(evaluator: OffPolicyEvaluator, evaluation: Evaluation, name: str, name_action: NameAction) -> Comparison:
    """Compare the policy `name`, which was evaluated, with its alternatives on the same decisions."""
    layout = evaluation.layout
    given = {key: wherever_possible(layout, wanted) for key, wanted in layout.dataset.alternatives.items()}
    actions, left_out = most_logged(layout.dataset.action, evaluator.constant_actions)
    constants = {f"always {name_action(a)}": constant(layout, a) for a in actions}
    likeliest = likeliest_of_log(layout)
    candidates = {**given, **constants, **({} if likeliest is None else {LIKELIEST: likeliest})}
    fitted = {key: one for key, one in candidates.items() if one.effective >= FEWEST}
    terms = terms_of(evaluator, layout, fitted)
    valued = {key: one for key, one in fitted.items() if key in constants}
    by_fold = best_by_fold(layout, valued, evaluator.gamma)
    if by_fold:
        terms[BEST] = joined(layout, terms, by_fold)
    logged = {kind: {LOGGED: by_estimator[LOGGED]} for kind, by_estimator in evaluation.terms.items()}
    everything = {name: evaluation.terms, BEST: terms.pop(BEST, None), LOGGED: logged, **terms}
    known = {key: found for key, found in everything.items() if found is not None}
    rows = {}
    for key, found in known.items():
        rows[key] = row_of(layout, found, evaluation.terms, evaluator.level)
        if key in fitted:
            rows[key] |= {"effective": fitted[key].effective, "elsewhere": fitted[key].elsewhere}
    return Comparison(
        rows=rows,
        unsupported={key: one.effective for key, one in candidates.items() if key not in fitted},
        effective=None if evaluation.weights is None else ope.effective_sample_size(evaluation.weights).item(),
        left_out=left_out,
        chosen=tuple(by_fold),
        given=tuple(given),
    )


# ── the alternatives ────────────────────────────────────────────────────────────────────────────────────────────────
def most_logged(action: Tensor, count: int) -> tuple[list[int], int]:
    """Return the actions that were logged most often, in their order, and how many others there are."""
    known, times = torch.unique(action, return_counts=True)
    most = times.argsort(descending=True, stable=True)[:count]
    return sorted(known[most].tolist()), len(known) - len(most)


def constant(layout: Layout, action: int) -> Alternative:
    """The policy that takes one action wherever it is possible, else the first that is."""
    return wherever_possible(layout, torch.full_like(layout.dataset.action, action))


def wherever_possible(layout: Layout, wanted: Tensor) -> Alternative:
    """The policy that takes actions [N] where they are possible, else the first that is."""
    mask = dense(layout.dataset.action_mask)
    possible = ope.select_actions(mask, wanted)
    first_possible = mask.int().argmax(1)
    chosen = torch.where(possible, wanted, first_possible)
    return alternative(layout, chosen, 1 - possible.double().mean().item())


def likeliest_of_log(layout: Layout) -> Alternative | None:
    """The policy that takes the logging policy's likeliest action, or None where there is no such action to speak of.

    Where several are the likeliest, the first is taken.
    """
    probs = layout.dataset.probs
    if probs is None:
        return None
    greatest = probs.amax(1, keepdim=True)
    is_unique = (probs == greatest).sum(1) == 1
    has_choice = dense(layout.dataset.action_mask).sum(1) > 1
    if not is_unique[has_choice].double().mean() >= DECIDED:  # NaN where nobody had a choice
        return None
    return alternative(layout, probs.argmax(1), 0.0)


def alternative(layout: Layout, chosen: Tensor, elsewhere: float) -> Alternative:
    """Weigh a log's decisions by a policy that takes actions [N]; without propensities, all alike."""
    propensity = layout.dataset.propensity
    known = torch.ones_like(propensity) if propensity.isnan().any() else propensity
    ratio = lay_out((chosen == layout.dataset.action) / known, layout.episode_rows, 1.0)
    effective = ope.effective_sample_size(ratio.prod(1)).item()
    return Alternative(chosen, elsewhere, ratio, effective)


def best_by_fold(layout: Layout, constants: dict[str, Alternative], gamma: float) -> list[str]:
    """Name the constant action that earned most in all folds but k, for each k; empty where a fold has no choice.

    It is empty without propensities too: the model that values the choice in fold k would be fitted to the very folds
    that the choice was made on. What an action earned is the weighted mean of its episodes (SNIPS), which no model of
    fold k has touched.
    """
    if layout.dataset.propensity.isnan().any():
        return []
    fold = fold_of_episodes(layout)
    net = lay_out(layout.outcome[:, -1], layout.episode_rows, 0.0)
    earned = (ope.discounts(net, gamma) * net).sum(1)
    best = []
    for k in range(int(fold.amax()) + 1):
        others = fold != k
        means = {}
        for name, one in constants.items():
            weight = one.ratio.prod(1)[others]
            if ope.effective_sample_size(weight) >= FEWEST / 2:
                means[name] = intervals.estimate(ope.snips(weight, earned[others])).item()
        if not means:
            return []
        best.append(max(means, key=lambda name: means[name]))
    return best


def fold_of_episodes(layout: Layout) -> Tensor:
    """Fold of each episode, int64 [M]."""
    return layout.fold[layout.episode_rows[:, 0]]


# ── their values ────────────────────────────────────────────────────────────────────────────────────────────────────
def terms_of(
    evaluator: OffPolicyEvaluator, layout: Layout, alternatives: dict[str, Alternative]
) -> dict[str, dict[str, dict[str, Terms]]]:
    """Terms of every estimator, {alternative: {kind: {estimator: terms}}}."""
    if not alternatives:
        return {}
    dataset = layout.dataset
    v, q = cross_fit_policies(
        fit=evaluator.model,
        obs=layout.obs,
        action=dataset.action,
        outcome=layout.outcome,
        policies=[outcome_of(one.chosen) for one in alternatives.values()],
        actions=dataset.action_mask.shape[1],
        episode_rows=layout.episode_rows,
        fold=layout.fold,
        gamma=evaluator.gamma,
        generator=evaluator.model_generator(dataset),
    )
    has_propensities = not dataset.propensity.isnan().any()
    return {
        name: evaluator.terms(layout, v[p], q[p], one.ratio if has_propensities else None)
        for p, (name, one) in enumerate(alternatives.items())
    }


def joined(
    layout: Layout, terms: dict[str, dict[str, dict[str, Terms]]], by_fold: list[str]
) -> dict[str, dict[str, Terms]]:
    """Terms of the alternative `by_fold[k]` in each fold k, {kind: {estimator: terms}}; estimators with ratios lack."""
    fold = fold_of_episodes(layout)
    found: dict[str, dict[str, Terms]] = {}
    for kind, by_estimator in terms[by_fold[0]].items():
        found[kind] = {}
        for estimator, first in by_estimator.items():
            if first.numerator is None and estimator != LOGGED:
                by_alternative = torch.stack([terms[name][kind][estimator].plain for name in by_fold])
                found[kind][estimator] = Terms(by_alternative.gather(0, fold[None])[0])
    return found


def row_of(
    layout: Layout, terms: dict[str, dict[str, Terms]], policy: dict[str, dict[str, Terms]], level: float
) -> dict[str, Any]:
    """Values by kind with their intervals, of the estimator that says most; and what the policy has more, paired."""
    estimator = best_estimator(terms[NET])
    pair = best_estimator(policy[NET]) if estimator == LOGGED else estimator
    row: dict[str, Any] = {"estimator": estimator, "policy_less": {}, "estimators": {}}
    for kind, by_estimator in terms.items():
        value, low, high = with_interval(by_estimator[estimator], layout, level)
        row[kind] = value
        row[f"{kind}_ci"] = [low, high]
        if by_estimator is not policy.get(kind):
            difference = Terms(policy[kind][pair].plain - by_estimator[estimator].plain)
            row["policy_less"][kind] = with_interval(difference, layout, level)
        for other, one in by_estimator.items():
            if other != LOGGED:
                row["estimators"].setdefault(other, {})[kind] = with_interval(one, layout, level)
    return row


def best_estimator(names: Collection[str]) -> str:
    """Name the doubly robust estimator, else the model's, else the log's own value; their terms have no ratio."""
    return next(name for name in ("sequential DR", "DR", *MODELS, LOGGED) if name in names)


def with_interval(terms: Terms, layout: Layout, level: float) -> list[float]:
    """Value of an estimator and the ends of its central limit interval, clustered by unit; NaN where undefined."""
    if not is_defined(terms):
        return [float("nan")] * 3
    low, high = intervals.normal(terms, layout.unit_of_episode, level)
    return [intervals.estimate(terms).item(), low.item(), high.item()]
