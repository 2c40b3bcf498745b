"""Cross-fitting: every prediction for a unit is by a model that saw none of the unit's decisions; fitted Q evaluation."""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from rlcore.ope.outcome_models import CHUNK, Predict


def folds(cluster: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal clusters int64 [N], numbered from 0, into folds of equal size, [N]: rows of one cluster stay together."""
    deal = torch.randperm(int(cluster.amax()) + 1, generator=generator, device=cluster.device)
    return deal[cluster] % count


def predict_policy(predict: Predict, obs: Tensor, action: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted outcomes of a target policy [N, A] and of the actions [N] taken, [N, K] each."""
    v, q = [], []
    for rows in torch.arange(len(obs), device=obs.device).split(CHUNK):
        table = predict(obs[rows])
        v.append((target[rows, :, None] * table).sum(1))
        q.append(table[torch.arange(len(rows), device=obs.device), action[rows]])
    return torch.cat(v), torch.cat(q)


def cross_fit(fit: Callable, obs: Tensor, action: Tensor, outcome: Tensor, target: Tensor, episode_rows: Tensor, fold: Tensor,
              gamma: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fitted Q evaluation: v̂ and q̂ of N decisions, [N, K] each, by models of other folds' decisions.

    episode_rows [M, T] is of `rows_by_episode`. A model for each t, from the last backwards, is fitted to r + γ·v̂ of the next
    state (Voloshin et al. 2019, of a finite horizon); T = 1 is plain regression.
    """
    v, q = torch.zeros_like(outcome), torch.zeros_like(outcome)
    for k in range(int(fold.amax()) + 1):
        next_v = torch.zeros_like(outcome)  # v̂ at rows of any fold, by this fold's models
        for t in reversed(range(episode_rows.shape[1])):
            rows = episode_rows[:, t][episode_rows[:, t] >= 0]
            goal = outcome[rows]
            if t + 1 < episode_rows.shape[1]:
                next_rows = episode_rows[:, t + 1][episode_rows[:, t] >= 0]
                goal = goal + gamma * torch.where((next_rows >= 0)[:, None], next_v[next_rows.clamp_min(0)], 0.0)
            others = fold[rows] != k
            predict = fit(obs[rows[others]], action[rows[others]], goal[others], target.shape[1], generator)
            next_v[rows], predicted = predict_policy(predict, obs[rows], action[rows], target[rows])
            own = rows[~others]
            v[own], q[own] = next_v[own], predicted[~others]
    return v, q


def rows_by_episode(unit: Tensor, episode: Tensor, step: Tensor,
                    names: tuple[str, str, str] = ("unit", "episode", "step")) -> Tensor:
    """Rows [M, T] of each unit's episodes in the order of steps, −1 after an episode's end.

    Raises ValueError, in the words of `names`, where a unit decides twice in a step.
    """
    _, which = torch.unique(torch.stack((unit, episode), 1), dim=0, return_inverse=True)
    order = step.argsort(stable=True)
    order = order[which[order].argsort(stable=True)]
    which, step = which[order], step[order]
    twice = (which[1:] == which[:-1]) & (step[1:] == step[:-1])
    if twice.any():
        a, b = (order[k + twice.nonzero()[0, 0]].item() + 2 for k in (0, 1))
        raise ValueError(f"rows {a}, {b}: expected one decision of a {names[0]}, {names[1]} and {names[2]}, got two")
    count = which.bincount()
    start = count.cumsum(0) - count
    rows = torch.full((len(count), int(count.amax())), -1, dtype=torch.long, device=order.device)
    rows[which, torch.arange(len(order), device=order.device) - start[which]] = order
    return rows


def consecutive_ids(x: Tensor) -> Tensor:
    """Number the distinct values of x [N] from 0 without a gap."""
    return torch.unique(x, return_inverse=True)[1]
