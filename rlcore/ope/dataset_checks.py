"""What off-policy evaluation asks of a dataset and a target [N, A]: refusals, and sentences about what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset, named_rows
from rlcore.ope import estimators as ope
from rlcore.ope.cross_fitting import rows_by_episode
from rlcore.ope.outcome_models import MIN_OBS_STD

ROUNDING = 1e-6  # of probabilities that should be 0
# a decision is named where a smaller share of the target's probability is on actions that the log could take
SUPPORTED = 0.5
# what is left is selected by an action where less than this share of the action's decisions is left, as a multiple of
# the share that is left of all decisions, and so many would be
SELECTED = 0.25
EXPECTED = 10
FAR = 1e5  # standard deviations from the mean of the other folds, beyond which a model's prediction means nothing


def check_allowed(dataset: LoggedDataset, target: Tensor) -> None:
    """Raise ValueError, with the rows, where a target takes actions that are not valid."""
    on_invalid = (target * ~dense(dataset.action_mask)).sum(1)
    forbidden = on_invalid > ROUNDING
    if forbidden.any():
        raise ValueError(f"target: {named_rows(forbidden, dataset.row)}: it does what valid_* forbids")


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
        return [f"{named_rows(bare, dataset.row)}: the target does what the logging policy never would there"]
    return []


def without_unknown_propensities(
    dataset: LoggedDataset, target: Tensor, name_action: Callable[[int], str] = str
) -> tuple[LoggedDataset, Tensor, list[str]]:
    """Leave out the episodes of decisions without a propensity; count them in a sentence.

    All are kept where that would leave none, or would select decisions by what was done (a log that has propensities of
    sends alone): weights say nothing then. An episode in which nobody had a choice has propensities of 1 and tells
    nothing of a policy: it does not count as one that is left.
    """
    missing = dataset.propensity.isnan()
    if not missing.any():
        return dataset, target, []
    episode_rows = rows_by_episode(dataset)
    exists = episode_rows >= 0
    is_incomplete = (missing[episode_rows.clamp_min(0)] & exists).any(1)
    had_choice = dense(dataset.action_mask).sum(1) > 1
    has_choice = had_choice[episode_rows.clamp_min(0)] & exists
    if (is_incomplete | ~has_choice.any(1)).all():
        return dataset, target, []
    left_out = torch.zeros_like(missing)
    left_out[episode_rows[is_incomplete][exists[is_incomplete]]] = True
    selected = actions_that_select(dataset, left_out, had_choice)
    if selected:
        named = ", ".join(
            f"'{name_action(action)}' ({left:,} of {of:,} left)" for action, (left, of) in selected.items()
        )
        sentence = (
            f"without the {dataset.names.episode}s that lack a propensity, decisions would be selected by what was "
            f"done: {named}; so none is left out, and none is weighted"
        )
        return dataset, target, [sentence]
    rest = f", with the rest of their {dataset.names.episode}s" if left_out.sum() > missing.sum() else ""
    count = f"{int(left_out.sum()):,} of {len(dataset):,} decisions"
    sentence = f"{named_rows(missing, dataset.row)}: no propensity; left out{rest}: {count}"
    return dataset[~left_out], target[~left_out], [sentence]


def actions_that_select(dataset: LoggedDataset, left_out: Tensor, had_choice: Tensor) -> dict[int, tuple[int, int]]:
    """Return the flat actions whose decisions are left out far more often than others of the same logging policy.

    left_out and had_choice are bool [N]; decisions without a choice do not count. The numbers are the action's
    decisions that are left, and all of them. A logging policy that has no propensities at all is left out as a whole,
    whatever it did.
    """
    found: dict[int, tuple[int, int]] = {}
    for policy in range(len(dataset.policies)):
        own = had_choice & (dataset.policy == policy)
        share_left = (~left_out[own]).double().mean().item()
        count = torch.bincount(dataset.action[own])
        left = torch.bincount(dataset.action[own & ~left_out], minlength=len(count))
        expected = share_left * count
        for action in ((expected >= EXPECTED) & (left < SELECTED * expected)).nonzero()[:, 0].tolist():
            before = found.get(action, (0, 0))
            found[action] = (before[0] + int(left[action]), before[1] + int(count[action]))
    return found


def far_columns(obs: Tensor, fold: Tensor, names: Sequence[str]) -> list[str]:
    """Name the columns of observations [N, D] in which a fold [N] is far from all that its model was fitted to."""
    sentences = []
    greatest = obs.abs().amax(0).clamp_min(MIN_OBS_STD)  # whose square may be no number
    for k in range(int(fold.amax()) + 1):
        others = obs[fold != k]
        own = obs[fold == k]
        mean = others.mean(0)
        std = ((others / greatest).std(0) * greatest).clamp_min(MIN_OBS_STD)
        distance = torch.maximum(own.amax(0) - mean, mean - own.amin(0)) / std
        for column in (~(distance <= FAR)).nonzero()[:, 0].tolist():
            furthest = (own[:, column] - mean[column]).abs().argmax()
            value = own[furthest, column].item()
            sentences.append(
                f"'{names[column]}': {value:g} is far from the other values (mean {mean[column]:g}), so a model of "
                "outcomes predicts nonsense there"
            )
    return sentences
