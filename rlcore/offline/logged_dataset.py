"""Logged decisions as tensors: the fields of a dataset, and the checks of its rows.

Reading and writing files is in rlcore/offline/log_files.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlcore.offline.deduplicated import DeduplicatedMatrix, dense

NAMED_ROWS = 5  # most rows that a message names
FIRST_ROW = 2  # of a file: row 1 is its header
MAX_STEP = 2**31 - 1
ROUNDING = 1e-4  # error that logged probabilities may have


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """The names, in files, tables and messages, of a dataset's fields and of its further outcomes."""

    unit: str = "unit"
    episode: str = "episode"
    step: str = "step"
    reward: str = "reward"
    cost: str = "cost"
    terminal_value: str = "terminal_value"
    outcomes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoggedDataset:
    """N decisions of a logging policy.

    A unit, such as a person, is drawn independently; its decisions are correlated. An episode is a sequence of a unit's
    decisions, one a step. An action has K parts (heads) and is stored as one index into all combinations of the parts.
    Observations and masks can be of the type DeduplicatedMatrix.
    """

    nvec: tuple[int, ...]  #: number of choices of each part of an action
    static_dim: int  #: number of leading columns of an observation that stay the same during an episode
    policies: tuple[str, ...]  #: names of the logging policies
    names: ColumnNames = ColumnNames()
    unit_names: tuple[str, ...] = ()  #: the units' own names by number; empty: numbers are their names
    row: Tensor  #: int64 [N], row of the file that has the decision, the header being row 1
    unit: Tensor  #: int64 [N]; intervals and folds of cross-fitting never split a unit
    episode: Tensor  #: int64 [N]
    step: Tensor  #: int64 [N]
    policy: Tensor  #: int64 [N], index into `policies`
    obs: Tensor | DeduplicatedMatrix  #: [N, D]
    action_mask: Tensor | DeduplicatedMatrix  #: bool [N, Πnvec]
    action: Tensor  #: int64 [N]
    propensity: Tensor  #: float64 [N], probability of the action, NaN where missing
    probs: Tensor | None = None  #: [N, Πnvec], probabilities of all actions
    price: Tensor  #: [N], Lagrangian price of the cost at the time of the decision
    reward: Tensor  #: [N], before the cost is charged at `price`
    cost: Tensor  #: [N], amount of the priced resource that the action used
    terminal_value: Tensor  #: [N], value of the state after an episode's last decision, else 0
    outcomes: dict[str, Tensor] = field(default_factory=dict)  #: [N] each, further outcomes of the decision
    #: int64 [N] each, flat actions that further deterministic policies would have taken, by the policy's name
    alternatives: dict[str, Tensor] = field(default_factory=dict)
    next_obs: Tensor | DeduplicatedMatrix | None = None  #: [N, D]
    next_action_mask: Tensor | DeduplicatedMatrix | None = None  #: bool [N, Πnvec]; None exactly where next_obs is
    terminated: Tensor  #: bool [N]
    truncated: Tensor  #: bool [N]

    def __len__(self) -> int:
        return len(self.action)

    def map(self, function: Callable[[Any], Any]) -> LoggedDataset:
        """Apply `function`, which keeps a tensor a tensor, to every tensor and deduplicated matrix."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {
            name: function(x) for name, x in columns.items() if isinstance(x, (Tensor, DeduplicatedMatrix))
        }
        outcomes = {name: function(x) for name, x in self.outcomes.items()}
        alternatives = {name: function(x) for name, x in self.alternatives.items()}
        return replace(self, outcomes=outcomes, alternatives=alternatives, **mapped)

    def __getitem__(self, rows) -> LoggedDataset:
        """Select rows, by a slice, a bool tensor [N] or indices."""

        def select(x: Tensor | DeduplicatedMatrix) -> Tensor | DeduplicatedMatrix:
            return x.take(rows) if isinstance(x, DeduplicatedMatrix) else x[rows]

        return self.map(select)

    def to(self, device) -> LoggedDataset:
        """Return the same on a device."""
        return self.map(lambda x: x.to(device))

    def deduplicate(self, context_dim: int) -> LoggedDataset:
        """Store repeated rows once: of static columns, of the other columns before `context_dim`, and of masks."""
        obs_splits = (self.static_dim, context_dim)
        obs = DeduplicatedMatrix.from_dense(dense(self.obs), obs_splits)
        action_mask = DeduplicatedMatrix.from_dense(dense(self.action_mask), ())
        deduplicated = replace(self, obs=obs, action_mask=action_mask)
        if self.next_obs is None:
            return deduplicated
        assert self.next_action_mask is not None
        next_obs = DeduplicatedMatrix.from_dense(dense(self.next_obs), obs_splits)
        next_action_mask = DeduplicatedMatrix.from_dense(dense(self.next_action_mask), ())
        return replace(deduplicated, next_obs=next_obs, next_action_mask=next_action_mask)

    def has_several_steps(self) -> bool:
        """Tell whether an episode has decisions of different steps."""
        episodes = torch.stack((self.unit, self.episode), 1).unique(dim=0)
        steps = torch.stack((self.unit, self.episode, self.step), 1).unique(dim=0)
        return len(steps) > len(episodes)

    def outcome(self, name: str, reader: str) -> Tensor:
        """Return an outcome [N] for `reader`, the setting that asks. Raises ValueError where the log lacks it."""
        if name not in self.outcomes:
            raise ValueError(f"log: no column '{name}', which {reader} learns from")
        return self.outcomes[name]

    @property
    def gross_reward(self) -> Tensor:
        """Reward and terminal value, before the price of the cost, [N]."""
        return self.reward + self.terminal_value

    @property
    def net_reward(self) -> Tensor:
        """Gross reward less the cost at the logged price, [N]."""
        return self.gross_reward - self.price * self.cost

    @classmethod
    def cat(cls, parts: list[LoggedDataset]) -> LoggedDataset:
        """Concatenate datasets of the same fields."""
        names = [name for part in parts for name in part.policies]
        policies = tuple(dict.fromkeys(names))
        parts = [part.with_policies(policies) for part in parts]
        joined: dict[str, Any] = {}
        for f in fields(cls):
            columns = [getattr(part, f.name) for part in parts]
            if isinstance(columns[0], (Tensor, DeduplicatedMatrix)):
                joined[f.name] = concatenate(columns)
        outcomes = {}
        for name in parts[0].outcomes:
            outcomes[name] = torch.cat([part.outcomes[name] for part in parts])
        alternatives = {name: torch.cat([part.alternatives[name] for part in parts]) for name in parts[0].alternatives}
        unit_names = max((part.unit_names for part in parts), key=len)  # chunks of a file name the units so far
        return replace(parts[0], unit_names=unit_names, outcomes=outcomes, alternatives=alternatives, **joined)

    def names_of_units(self, units: Tensor) -> list[str]:
        """Return the names of units int64 [U], which stay the same when decisions are added."""
        numbers = units.tolist()
        return [self.unit_names[k] for k in numbers] if self.unit_names else [str(k) for k in numbers]

    def with_policies(self, policies: tuple[str, ...]) -> LoggedDataset:
        """Number the logging policies by their index into `policies`."""
        index = torch.tensor([policies.index(name) for name in self.policies])
        policy = index[self.policy.cpu()]
        return replace(self, policy=policy.to(self.policy), policies=policies)

    @classmethod
    def from_obp(cls, feedback: dict) -> LoggedDataset:
        """Convert `bandit_feedback` of the Open Bandit Pipeline, of one step; a position joins the context, one-hot."""
        n = int(feedback["n_rounds"])
        actions = int(feedback["n_actions"])
        obs = torch.tensor(feedback["context"], dtype=torch.float32)
        position = feedback.get("position")
        if position is not None:
            position = torch.tensor(position).long()
            if position.amax() > 0:
                one_hot = torch.nn.functional.one_hot(position)
                obs = torch.cat((obs, one_hot.to(obs)), -1)
        pscore = feedback.get("pscore")
        propensity = torch.full((n,), math.nan) if pscore is None else torch.tensor(pscore)
        rows = torch.arange(n)
        zeros = torch.zeros(n)
        dataset = cls(
            nvec=(actions,),
            static_dim=obs.shape[1],
            policies=("obp",),
            row=rows + FIRST_ROW,
            unit=rows,
            episode=torch.zeros_like(rows),
            step=torch.zeros_like(rows),
            policy=torch.zeros_like(rows),
            obs=obs,
            action_mask=torch.ones(n, actions, dtype=torch.bool),
            action=torch.tensor(feedback["action"]).long(),
            propensity=propensity.double(),
            price=zeros,
            reward=torch.tensor(feedback["reward"]).float(),
            cost=zeros,
            terminal_value=zeros,
            terminated=torch.ones(n, dtype=torch.bool),
            truncated=torch.zeros(n, dtype=torch.bool),
        )
        check_rows(dataset, "bandit_feedback")
        return dataset


def concatenate(parts: list[Tensor] | list[DeduplicatedMatrix]) -> Tensor | DeduplicatedMatrix:
    """Concatenate the rows of columns or matrices of one kind."""
    if isinstance(parts[0], DeduplicatedMatrix):
        return DeduplicatedMatrix.cat(parts)
    return torch.cat(parts)


def named_rows(wrong: Tensor, row: Tensor) -> str:
    """Name those of the rows [N] of a file where `wrong`, bool [N], holds."""
    rows = row[wrong].sort().values.tolist()
    shown = ", ".join(map(str, rows[:NAMED_ROWS]))
    if len(rows) == 1:
        return f"row {shown}"
    hidden = len(rows) - NAMED_ROWS
    if hidden > 0:
        return f"rows {shown} and {hidden:,} more"
    return f"rows {shown}"


def check_rows(dataset: LoggedDataset, where: str) -> None:
    """Raise ValueError, with the rows, where decisions can't be used; a propensity may be missing."""

    def refuse(wrong: Tensor, column: str, expected: str, got: Tensor | None = None) -> None:
        if wrong.any():
            rows = named_rows(wrong, dataset.row)
            first = dataset.row[wrong].argmin()
            tail = "" if got is None else f", got {got[wrong][first].item():g}"
            raise ValueError(f"{where}: {rows}, column '{column}': expected {expected}{tail}")

    names = dataset.names
    numbers = {
        names.reward: dataset.reward,
        **dataset.outcomes,
        names.cost: dataset.cost,
        names.terminal_value: dataset.terminal_value,
        "price": dataset.price,
    }
    for name, x in numbers.items():
        refuse(~x.isfinite(), name, "a number", x)
    refuse(dataset.cost < 0, names.cost, "at least 0", dataset.cost)
    refuse((dataset.step < 0) | (dataset.step > MAX_STEP), names.step, f"0 to {MAX_STEP:,}", dataset.step)
    observations = {"": dense(dataset.obs)}
    if dataset.next_obs is not None:
        observations["next_"] = dense(dataset.next_obs)
    for prefix, x in observations.items():
        for k in (~x.isfinite()).any(0).nonzero()[:, 0].tolist():
            state = k - dataset.static_dim
            column = f"feature_{k}" if state < 0 else f"{prefix}state_{state}"
            refuse(~x[:, k].isfinite(), column, "a number", x[:, k])

    action = dataset.action
    action_mask = dense(dataset.action_mask)
    combinations = math.prod(dataset.nvec)
    refuse(~action_mask.any(1), "valid_*", "at least one valid pair")
    refuse((action < 0) | (action >= combinations), "action_*", f"an action of {dataset.nvec}")
    index = action[:, None]
    if dataset.next_action_mask is not None:
        goes_on = ~dataset.terminated
        refuse(goes_on & ~dense(dataset.next_action_mask).any(1), "next_valid_*", "at least one valid pair")
    valid = action_mask.gather(1, index)[:, 0]
    refuse(~valid, "action_*", "a pair that valid_* allows")

    propensity = dataset.propensity
    improbable = (propensity <= 0) | (propensity > 1)
    refuse(improbable, "propensity", "a probability above 0, at most 1, or nothing", propensity)
    if dataset.probs is not None:
        probs = dataset.probs.double()
        negative = (probs < 0).any(1)
        off_one = (probs.sum(1) - 1).abs() > ROUNDING
        on_invalid = (probs * ~action_mask > 0).any(1)
        refuse(negative | off_one | on_invalid, "prob_*", "probabilities of the valid pairs that add up to 1")
        prob_of_action = probs.gather(1, index)[:, 0]
        differs = (prob_of_action - propensity).abs() > ROUNDING
        refuse(differs, "propensity", "what prob_* says of the action", propensity)


def check_compatible(dataset: LoggedDataset, env, where: str) -> None:
    """Raise ValueError where a dataset is not of an environment's observations and actions."""
    obs_dim = dataset.obs.shape[1]
    nvec = tuple(env.nvec)
    if dataset.nvec != nvec or obs_dim != env.obs_dim or dataset.static_dim != env.static_dim:
        raise ValueError(
            f"{where}: a log of {obs_dim} observed numbers, {dataset.static_dim} of them feature_*, and actions of "
            f"{dataset.nvec} doesn't fit an environment of {env.obs_dim}, {env.static_dim} of them feature_*, and "
            f"{nvec} (numbered columns are those of one environment; env=log takes columns by their names)"
        )
