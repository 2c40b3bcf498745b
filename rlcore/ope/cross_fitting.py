"""Cross-fitting and fitted Q evaluation: the model that predicts for a unit has seen none of the unit's decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.offline.deduplicated import dense
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.outcome_models import CHUNK, Predict

# of outcomes [N, K] of actions [N] of A taken on observations [N, D]: (obs, action, outcome, A, generator) → Predict
Fit = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Predict]
# rows [B] of decisions, a model's outcomes of all their actions [B, A, K] → a policy's mean outcome v̂ [B, K]
Average = Callable[[Tensor, Tensor], Tensor]


def folds(cluster: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal clusters at random into `count` folds of equal size; return the fold of each row, int64 [N].

    cluster: int64 [N], numbered from 0 without a gap. Rows of one cluster share a fold.
    """
    clusters = int(cluster.amax()) + 1
    shuffled = torch.randperm(clusters, generator=generator, device=cluster.device)
    return shuffled[cluster] % count


def mean_under(target: Tensor) -> Average:
    """Return the mean outcome under a policy's probabilities [N, A]: Σ_a π(a|x)·q̂(x, a)."""

    def average(rows: Tensor, table: Tensor) -> Tensor:
        probs = target[rows, :, None]
        return (probs * table).sum(1)

    return average


def outcome_of(chosen: Tensor) -> Average:
    """Return the outcome of the actions [N] that a deterministic policy chooses."""

    def average(rows: Tensor, table: Tensor) -> Tensor:
        at = torch.arange(len(rows), device=rows.device)
        return table[at, chosen[rows]]

    return average


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
    """Fitted Q evaluation of one policy: return v̂ and q̂ of N decisions, [N, K] each; see `cross_fit_policies`."""
    v, q = cross_fit_policies(
        fit, obs, action, outcome, [mean_under(target)], target.shape[1], episode_rows, fold, gamma, generator
    )
    return v[0], q[0]


def cross_fit_policies(
    fit: Fit,
    obs: Tensor,  # [N, D]
    action: Tensor,  # int64 [N], of `actions`
    outcome: Tensor,  # [N, K]
    policies: list[Average],
    actions: int,
    episode_rows: Tensor,  # the decisions by episode and step, int64 [M, T], of `rows_by_episode`
    fold: Tensor,  # of each decision, int64 [N]
    gamma: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Fitted Q evaluation of P policies: return v̂ and q̂ of N decisions, [P, N, K] each, by models of other folds.

    From the last step backwards, a model for each step t is fitted to r + γ·v̂ of the next state (Voloshin et al. 2019,
    for a finite horizon), for all policies at once. T = 1 is plain regression, whose q̂ no policy changes. Raises
    ValueError where a fold's complement has no decision of a step.
    """
    horizon = episode_rows.shape[1]
    decisions, kinds = outcome.shape
    v = outcome.new_zeros(len(policies), decisions, kinds)
    q = torch.zeros_like(v)
    for k in range(int(fold.amax()) + 1):
        v_by_others = torch.zeros_like(v)  # v̂ of all decisions, by the models of all folds but k
        for t in reversed(range(horizon)):
            rows_of_step = episode_rows[:, t]
            reached = rows_of_step >= 0
            rows = rows_of_step[reached]
            q_target = outcome[rows][None]  # [1 or P, rows, K]
            if t + 1 < horizon:
                next_rows = episode_rows[reached, t + 1]
                continues = next_rows[:, None] >= 0
                next_v = torch.where(continues, v_by_others[:, next_rows.clamp_min(0)], 0.0)
                q_target = q_target + gamma * next_v
            held_out = fold[rows] == k
            train_rows = rows[~held_out]
            if not len(train_rows):
                raise ValueError(
                    f"step {t + 1}: expected decisions of several units to fit outcomes to, got {len(rows)} in one fold"
                )
            columns = q_target[:, ~held_out].movedim(0, 1).flatten(1)
            predict = fit_taken_actions(fit, obs[train_rows], action[train_rows], columns, actions, generator)
            for part in torch.split(torch.arange(len(rows), device=rows.device), max(1, CHUNK // len(q_target))):
                rows_of_part = rows[part]
                held = held_out[part]
                table = predict(obs[rows_of_part])  # q̂ of all actions, [B, A, 1 or P·K]
                by_policy = table.view(len(part), actions, -1, kinds).unbind(2)
                at = torch.arange(len(part), device=rows.device)
                for p, average in enumerate(policies):
                    of_policy = by_policy[p % len(by_policy)]
                    predicted_v = average(rows_of_part, of_policy)
                    v_by_others[p, rows_of_part] = predicted_v
                    test_rows = rows_of_part[held]
                    v[p, test_rows] = predicted_v[held]
                    q[p, test_rows] = of_policy[at, action[rows_of_part]][held]
    return v, q


def rows_by_episode(dataset: LoggedDataset) -> Tensor:
    """Return the indices of each unit's episodes in the order of steps, int64 [M, T], −1 after an episode's end.

    Raises ValueError, with the rows of the file, where a unit decides twice in a step.
    """
    pairs = torch.stack((dataset.unit, dataset.episode), 1)
    _, episode_id = torch.unique(pairs, dim=0, return_inverse=True)
    by_step = dataset.step.argsort(stable=True)
    by_episode = episode_id[by_step].argsort(stable=True)
    order = by_step[by_episode]
    episode_id = episode_id[order]
    step = dataset.step[order]

    same_episode = episode_id[1:] == episode_id[:-1]
    same_step = step[1:] == step[:-1]
    repeated = same_episode & same_step
    if repeated.any():
        at = repeated.nonzero()[0, 0]
        first, second = dataset.row[order[at : at + 2]].tolist()
        names = dataset.names
        key = f"a {names.unit}, {names.episode} and {names.step}"
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


# ── a dataset, laid out ─────────────────────────────────────────────────────────────────────────────────────────────
class Layout(NamedTuple):
    """N decisions in M episodes of at most T steps."""

    dataset: LoggedDataset  #: N decisions
    obs: Tensor  #: [N, D]
    outcome: Tensor  #: reward, cost, and reward less cost at the logged price, [N, K]
    episode_rows: Tensor  #: the decisions by episode and step, int64 [M, T], −1 after an episode's end
    unit_of_episode: Tensor  #: number of each episode's unit, int64 [M]
    units: int  #: number of units
    fold: Tensor  #: of each decision, int64 [N]; a unit's decisions share a fold

    @classmethod
    def of(cls, dataset: LoggedDataset, fold_count: int, generator: torch.Generator) -> Layout:
        """Lay a dataset out; raise ValueError where it has too few units for `fold_count` folds."""
        names = dataset.names
        episode_rows = rows_by_episode(dataset)
        unit = consecutive_ids(dataset.unit)
        units = int(unit.amax()) + 1 if len(unit) else 0
        if units < 2 * fold_count:
            raise ValueError(
                f"expected decisions of at least {2 * fold_count} {names.unit}s, 2 in each fold of ope.folds, "
                f"got {units}"
            )
        fold = folds(unit, fold_count, generator)
        return cls(
            dataset=dataset,
            obs=dense(dataset.obs),
            outcome=torch.stack((dataset.gross_reward, dataset.cost, dataset.net_reward), 1),
            episode_rows=episode_rows,
            unit_of_episode=unit[episode_rows[:, 0]],
            units=units,
            fold=fold,
        )

    @property
    def sample(self) -> str:
        """What a value is of: an episode, or a decision where episodes have one step."""
        return self.dataset.names.episode if self.episode_rows.shape[1] > 1 else "decision"


def lay_out(x: Tensor, episode_rows: Tensor, padding: float) -> Tensor:
    """Lay values x [N] out by episode and step, float64 [M, T], `padding` after an episode's end."""
    values = x.double()[episode_rows.clamp_min(0)]
    return torch.where(episode_rows >= 0, values, padding)
