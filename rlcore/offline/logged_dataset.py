"""Logged decisions as tensors: the fields of a dataset, and the checks of its rows. rlcore/offline/log_files.py has the files."""
from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from rlcore.offline.deduplicated import DeduplicatedMatrix

NAMED_ROWS = 5  # rows that a message names


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """What files, tables and messages call the fields of a dataset, and the names of its further outcomes."""

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

    A unit is what was drawn independently, such as a person; its decisions are correlated. An episode is a unit's decisions
    that follow each other, one a step. Actions are flat indices into all combinations of the action's heads. Observations
    and masks can be held as DeduplicatedMatrix.
    """

    nvec: tuple[int, ...]  #: sizes of the action's heads
    static_dim: int  #: the first columns of an observation, which stay the same in an episode
    policies: tuple[str, ...]  #: names of the logging policies
    names: ColumnNames = ColumnNames()
    decision: Tensor  #: int64 [N], number of the decision
    unit: Tensor  #: int64 [N], the cluster of intervals and folds
    episode: Tensor  #: int64 [N]
    step: Tensor  #: int64 [N]
    policy: Tensor  #: int64 [N], index into `policies`
    obs: Tensor | DeduplicatedMatrix  #: [N, D]
    action_mask: Tensor | DeduplicatedMatrix  #: bool [N, Πnvec]
    action: Tensor  #: int64 [N]
    propensity: Tensor  #: float64 [N], probability of the action, NaN where missing
    probs: Tensor | None = None  #: [N, Πnvec], probabilities of all actions
    price: Tensor  #: [N], Lagrangian price of the cost at the time of the decision
    reward: Tensor  #: [N], before the price of the cost
    cost: Tensor  #: [N], what the action used of the priced resource
    terminal_value: Tensor  #: [N], value of the state after an episode's last decision, else 0
    outcomes: dict[str, Tensor] = field(default_factory=dict)  #: [N] each, what else came of the decision
    next_obs: Tensor | DeduplicatedMatrix | None = None  #: [N, D]
    next_action_mask: Tensor | DeduplicatedMatrix | None = None  #: bool [N, Πnvec]
    terminated: Tensor  #: bool [N]
    truncated: Tensor  #: bool [N]

    def __len__(self) -> int:
        return len(self.action)

    def map(self, function) -> LoggedDataset:
        """Apply `function` to every tensor and deduplicated matrix."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped = {name: function(x) for name, x in columns.items() if isinstance(x, (Tensor, DeduplicatedMatrix))}
        return replace(self, outcomes={name: function(x) for name, x in self.outcomes.items()}, **mapped)

    def __getitem__(self, rows) -> LoggedDataset:
        return self.map(lambda x: x.take(rows) if isinstance(x, DeduplicatedMatrix) else x[rows])

    def to(self, device) -> LoggedDataset:
        """Return the same on a device."""
        return self.map(lambda x: x.to(device))

    def deduplicate(self, context_dim: int) -> LoggedDataset:
        """Hold repeated rows once: of static columns, of the other columns before `context_dim`, and of masks."""
        splits = {"obs": (self.static_dim, context_dim), "next_obs": (self.static_dim, context_dim), "action_mask": (),
                  "next_action_mask": ()}
        dense = {name: getattr(self, name) for name in splits}
        return replace(self, **{name: DeduplicatedMatrix.from_dense(x, splits[name])
                                for name, x in dense.items() if x is not None})

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
        policies = tuple(dict.fromkeys(name for part in parts for name in part.policies))
        parts = [part.with_policies(policies) for part in parts]
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        joined = {name: concatenate(column) for name, column in columns.items()
                  if isinstance(column[0], (Tensor, DeduplicatedMatrix))}
        outcomes = {name: torch.cat([part.outcomes[name] for part in parts]) for name in parts[0].outcomes}
        return replace(parts[0], outcomes=outcomes, **joined)

    def with_policies(self, policies: tuple[str, ...]) -> LoggedDataset:
        """Number the logging policies by their index into `policies`."""
        index = torch.tensor([policies.index(name) for name in self.policies])
        return replace(self, policy=index[self.policy.cpu()].to(self.policy), policies=policies)

    @classmethod
    def from_obp(cls, feedback: dict) -> LoggedDataset:
        """Take over `bandit_feedback` of the Open Bandit Pipeline, of one step; a position joins the context, one-hot."""
        n = int(feedback["n_rounds"])
        actions = int(feedback["n_actions"])
        obs = torch.tensor(feedback["context"], dtype=torch.float32)
        position = feedback.get("position")
        if position is not None and (position := torch.tensor(position).long()).amax() > 0:
            obs = torch.cat((obs, torch.nn.functional.one_hot(position).to(obs)), -1)
        pscore = feedback.get("pscore")
        rows, zeros = torch.arange(n), torch.zeros(n)
        dataset = cls(
            nvec=(actions,),
            static_dim=obs.shape[1],
            policies=("obp",),
            decision=rows,
            unit=rows,
            episode=torch.zeros_like(rows),
            step=torch.zeros_like(rows),
            policy=torch.zeros_like(rows),
            obs=obs,
            action_mask=torch.ones(n, actions, dtype=torch.bool),
            action=torch.tensor(feedback["action"]).long(),
            propensity=torch.full((n,), math.nan).double() if pscore is None else torch.tensor(pscore).double(),
            price=zeros,
            reward=torch.tensor(feedback["reward"]).float(),
            cost=zeros,
            terminal_value=zeros,
            terminated=torch.ones(n, dtype=torch.bool),
            truncated=torch.zeros(n, dtype=torch.bool))
        check(dataset, "bandit_feedback", 0)
        return dataset


def concatenate(parts: list[Tensor] | list[DeduplicatedMatrix]) -> Tensor | DeduplicatedMatrix:
    """Concatenate rows."""
    return DeduplicatedMatrix.cat(parts) if isinstance(parts[0], DeduplicatedMatrix) else torch.cat(parts)


def named_rows(wrong: Tensor, first: int) -> str:
    """Name the rows of a file where `wrong` holds, the header being row 1; `first` rows came before."""
    rows = (wrong.nonzero()[:, 0] + first + 2).tolist()
    more = f" and {len(rows) - NAMED_ROWS:,} more" if len(rows) > NAMED_ROWS else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:NAMED_ROWS]))}{more}"


def check(dataset: LoggedDataset, where: str, first: int) -> None:
    """Raise ValueError, with the rows, where decisions can't be used; a missing propensity can."""
    def refuse(wrong: Tensor, column: str, expected: str, got: Tensor | None = None) -> None:
        if wrong.any():
            got = "" if got is None else f", got {got[wrong][0].item():g}"
            raise ValueError(f"{where}: {named_rows(wrong, first)}, column '{column}': expected {expected}{got}")

    names, action = dataset.names, dataset.action
    numbers = {names.reward: dataset.reward, **dataset.outcomes, names.cost: dataset.cost,
               names.terminal_value: dataset.terminal_value, "price": dataset.price}
    for name, x in numbers.items():
        refuse(~x.isfinite(), name, "a number", x)
    for name, x in (("feature_* or state_*", dataset.obs), ("next_state_*", dataset.next_obs)):
        if x is not None:
            refuse(~x.isfinite().all(1), name, "numbers")
    refuse(~dataset.action_mask.any(1), "valid_*", "at least one valid pair")
    refuse((action < 0) | (action >= math.prod(dataset.nvec)), "action_*", f"an action of {dataset.nvec}")
    refuse(~dataset.action_mask.gather(1, action[:, None])[:, 0], "action_*", "a pair that valid_* allows")
    p = dataset.propensity
    refuse((p <= 0) | (p > 1), "propensity", "a probability above 0, at most 1, or nothing", p)
    if dataset.probs is not None:
        probs = dataset.probs.double()
        refuse((probs < 0).any(1) | ((probs.sum(1) - 1).abs() > 1e-4) | (probs * ~dataset.action_mask > 0).any(1), "prob_*",
               "probabilities of the valid pairs that add up to 1")
        refuse((probs.gather(1, action[:, None])[:, 0] - p).abs() > 1e-4, "propensity", "what prob_* says of the action", p)


def check_compatible(dataset: LoggedDataset, env, where: str) -> None:
    """Raise ValueError where a dataset is not of an environment's observations and actions."""
    if dataset.nvec != tuple(env.nvec) or dataset.obs.shape[1] != env.obs_dim:
        raise ValueError(f"{where}: a log of {dataset.obs.shape[1]} observed numbers and actions of {dataset.nvec} doesn't fit "
                         f"an environment of {env.obs_dim} and {tuple(env.nvec)}")
