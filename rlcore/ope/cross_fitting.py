"""Cross-fitting and fitted Q evaluation: the model that predicts for a unit has seen none of the unit's decisions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlcore.ope.outcome_models import CHUNK, Predict

# of outcomes [N, K] of actions [N] of A taken on observations [N, D]: (obs, action, outcome, A, generator) → Predict
Fit = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Predict]


def folds(cluster: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal clusters at random into `count` folds of equal size; return the fold of each row, int64 [N].

    cluster: int64 [N], numbered from 0 without a gap. Rows of one cluster share a fold.
    """
    clusters = int(cluster.amax()) + 1
    shuffled = torch.randperm(clusters, generator=generator, device=cluster.device)
    return shuffled[cluster] % count


def predict_policy(predict: Predict, obs: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a model's v̂ and q̂ of N decisions, [N, K] each.

    v̂ = Σ_a π(a|x)·q̂(x, a) uses the target policy's probabilities [N, A], q̂ the actions [N] taken. obs is [N, D].
    """
    v = []
    q = []
    decisions = torch.arange(len(obs), device=obs.device)
    for rows in torch.split(decisions, CHUNK):
        table = predict(obs[rows])  # q̂ of all actions, [B, A, K]
        probs = target[rows, :, None]
        v.append((probs * table).sum(1))
        at = torch.arange(len(rows), device=obs.device)
        q.append(table[at, action[rows]])
    return torch.cat(v), torch.cat(q)


def fit_taken_actions(
    fit: Fit, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator
) -> Predict:
    """Fit to outcomes [N, K] of the actions [N] that were taken; the others have nothing to learn from.

    An action that was never taken is predicted to do what the other actions did on average, weighted by how often each
    was taken; the first action (nothing) counts only where no other was taken. Some action or other lacks rows in most
    folds of a log with many actions, and some are never allowed.
    """
    taken, number, count = torch.unique(action, return_inverse=True, return_counts=True)
    predict = fit(obs, number, outcome, len(taken), generator)
    if len(taken) == actions:
        return predict
    counted = count * (taken > 0) if (taken > 0).any() else count
    share = counted / counted.sum()

    def predict_all(x: Tensor) -> Tensor:
        table = predict(x)  # of the actions taken
        average = torch.einsum("a,bak->bk", share.to(table), table)
        outcomes = average[:, None].repeat(1, actions, 1)
        outcomes[:, taken] = table
        return outcomes

    return predict_all


def cross_fit(
    fit: Fit,
    obs: Tensor,  # [N, D]
    action: Tensor,  # int64 [N]
    outcome: Tensor,  # [N, K]
    target: Tensor,  # the target policy's probabilities, [N, A]
    episode_rows: Tensor,  # the decisions by episode and step, int64 [M, T], of `rows_by_episode`
    fold: Tensor,  # of each decision, int64 [N]
    gamma: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Fitted Q evaluation: return v̂ and q̂ of N decisions, [N, K] each, by models of other folds' decisions.

    From the last step backwards, a model for each step t is fitted to r + γ·v̂ of the next state (Voloshin et al. 2019,
    for a finite horizon). T = 1 is plain regression. Raises ValueError where a fold's complement has no decision of a
    step.
    """
    horizon = episode_rows.shape[1]
    actions = target.shape[1]
    v = torch.zeros_like(outcome)
    q = torch.zeros_like(outcome)
    for k in range(int(fold.amax()) + 1):
        v_by_others = torch.zeros_like(outcome)  # v̂ of all decisions, by the models of all folds but k
        for t in reversed(range(horizon)):
            rows_of_step = episode_rows[:, t]
            reached = rows_of_step >= 0
            rows = rows_of_step[reached]
            q_target = outcome[rows]
            if t + 1 < horizon:
                next_rows = episode_rows[reached, t + 1]
                continues = next_rows[:, None] >= 0
                next_v = torch.where(continues, v_by_others[next_rows.clamp_min(0)], 0.0)
                q_target = q_target + gamma * next_v
            held_out = fold[rows] == k
            train_rows = rows[~held_out]
            if not len(train_rows):
                raise ValueError(
                    f"step {t + 1}: expected decisions of several units to fit outcomes to, got {len(rows)} in one fold"
                )
            predict = fit_taken_actions(
                fit, obs[train_rows], action[train_rows], q_target[~held_out], actions, generator
            )
            predicted_v, predicted_q = predict_policy(predict, obs[rows], action[rows], target[rows])
            v_by_others[rows] = predicted_v
            test_rows = rows[held_out]
            v[test_rows] = predicted_v[held_out]
            q[test_rows] = predicted_q[held_out]
    return v, q


def rows_by_episode(
    unit: Tensor, episode: Tensor, step: Tensor, names: tuple[str, str, str] = ("unit", "episode", "step")
) -> Tensor:
    """Return the rows of each unit's episodes in the order of steps, int64 [M, T], −1 after an episode's end.

    unit, episode and step are int64 [N], of N decisions. Raises ValueError, with the names of `names`, where a unit
    decides twice in a step; row 1 of a file is its header.
    """
    pairs = torch.stack((unit, episode), 1)
    _, episode_id = torch.unique(pairs, dim=0, return_inverse=True)
    by_step = step.argsort(stable=True)
    by_episode = episode_id[by_step].argsort(stable=True)
    order = by_step[by_episode]
    episode_id = episode_id[order]
    step = step[order]

    same_episode = episode_id[1:] == episode_id[:-1]
    same_step = step[1:] == step[:-1]
    repeated = same_episode & same_step
    if repeated.any():
        at = repeated.nonzero()[0, 0]
        first = order[at].item() + 2
        second = order[at + 1].item() + 2
        key = f"a {names[0]}, {names[1]} and {names[2]}"
        raise ValueError(f"rows {first}, {second}: expected one decision of {key}, got two")

    length = episode_id.bincount()
    start = length.cumsum(0) - length
    place = torch.arange(len(order), device=order.device)
    place_in_episode = place - start[episode_id]
    longest = int(length.amax())
    rows = torch.full((len(length), longest), -1, dtype=torch.long, device=order.device)
    rows[episode_id, place_in_episode] = order
    return rows


def consecutive_ids(x: Tensor) -> Tensor:
    """Number the distinct values of x [N] from 0 without a gap, int64 [N]."""
    ids: Tensor
    _, ids = torch.unique(x, return_inverse=True)
    return ids
