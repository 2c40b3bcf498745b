"""Logged decisions as tensors: what a row must be, and where else such rows come from. Files are rlcore/offline/log_files.py's."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlcore.offline.deduplicated import Table

OUTCOMES = ("profit", "trips", "redeemed", "spend", "terminal")
SHOWN = 5  # rows that a message names


@dataclass(frozen=True)
class Logged:
    """N decisions. Actions are flat combinations of the heads `nvec`; the first `features` columns of an observation hold
    all season. `propensity` is NaN where missing; next_obs, next_mask and probs are None where a log has none. What is
    observed and valid can be held slim."""

    nvec: tuple[int, ...]
    features: int
    policies: tuple[str, ...]
    decision: Tensor  # int64 [N], as the next four
    customer: Tensor
    season: Tensor
    week: Tensor
    policy: Tensor  # place in `policies`
    obs: Tensor | Table  # [N, D]
    mask: Tensor | Table  # bool [N, Πn]
    action: Tensor  # int64 [N]
    propensity: Tensor  # float64 [N]
    probs: Tensor | None  # [N, Πn]
    price: Tensor  # [N], as the next five
    profit: Tensor
    trips: Tensor
    redeemed: Tensor
    spend: Tensor
    terminal: Tensor
    next_obs: Tensor | Table | None  # [N, D]
    next_mask: Tensor | Table | None  # bool [N, Πn]
    terminated: Tensor  # bool [N], as the next
    truncated: Tensor

    def __len__(self) -> int:
        return len(self.action)

    def map(self, function) -> Logged:
        """Apply `function` to every tensor and table."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(x) for name, x in columns.items() if isinstance(x, (Tensor, Table))})

    def __getitem__(self, rows) -> Logged:
        return self.map(lambda x: x.take(rows) if isinstance(x, Table) else x[rows])

    def to(self, device) -> Logged:
        """Return the same on a device."""
        return self.map(lambda x: x.to(device))

    def slim(self, context: int) -> Logged:
        """Hold once what decisions share: features, the rest of a context of so many columns, what is valid."""
        ends = {"obs": (self.features, context), "next_obs": (self.features, context), "mask": (), "next_mask": ()}
        return replace(self, **{name: Table.of(x, at) for name, at in ends.items() if (x := getattr(self, name)) is not None})

    @property
    def earned(self) -> Tensor:
        """Profit with what the end is worth, [N]: what is to be as high as can be, before the price of spend."""
        return self.profit + self.terminal

    @property
    def reward(self) -> Tensor:
        """What is earned less the spend at the logged price, [N]."""
        return self.earned - self.price * self.spend

    @classmethod
    def cat(cls, logs: list[Logged]) -> Logged:
        """Put logs of the same shape one after the other."""
        names = tuple(dict.fromkeys(name for log in logs for name in log.policies))
        logs = [replace(log, policy=torch.tensor([names.index(x) for x in log.policies])[log.policy.cpu()].to(log.policy),
                        policies=names) for log in logs]
        columns = {f.name: [getattr(log, f.name) for log in logs] for f in fields(cls)}
        return replace(logs[0], **{name: (Table if isinstance(parts[0], Table) else torch).cat(parts)
                                   for name, parts in columns.items() if isinstance(parts[0], (Tensor, Table))})

    @classmethod
    def from_obp(cls, feedback: dict) -> Logged:
        """Take over `bandit_feedback` of the Open Bandit Pipeline: one step; a position joins the context, one-hot."""
        n, actions = int(feedback["n_rounds"]), int(feedback["n_actions"])
        obs = torch.tensor(feedback["context"], dtype=torch.float32)
        position = feedback.get("position")
        if position is not None and (position := torch.tensor(position).long()).amax() > 0:
            obs = torch.cat((obs, torch.nn.functional.one_hot(position).to(obs)), -1)
        zeros, rows = torch.zeros(n), torch.arange(n)
        pscore = feedback.get("pscore")
        log = cls((actions,), obs.shape[1], ("obp",), rows, rows, 0 * rows, 0 * rows, 0 * rows, obs,
                  torch.ones(n, actions, dtype=torch.bool), torch.tensor(feedback["action"]).long(),
                  torch.full((n,), math.nan).double() if pscore is None else torch.tensor(pscore).double(), None, zeros,
                  torch.tensor(feedback["reward"]).float(), zeros, zeros, zeros, zeros, None, None, zeros == 0, zeros > 0)
        check(log, "bandit_feedback", 0)
        return log


def named_rows(wrong: Tensor, first: int) -> str:
    """Name the rows of a file where `wrong` holds, the header being row 1; `first` rows came before."""
    rows = (wrong.nonzero()[:, 0] + first + 2).tolist()
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:SHOWN]))}{more}"


def check(log: Logged, where: str, first: int) -> None:
    """Raise ValueError, with the rows, where decisions can't be used; a missing propensity can."""
    def refuse(wrong: Tensor, column: str, expected: str, got: Tensor | None = None) -> None:
        if wrong.any():
            got = "" if got is None else f", got {got[wrong][0].item():g}"
            raise ValueError(f"{where}: {named_rows(wrong, first)}, column '{column}': expected {expected}{got}")

    for name in (*OUTCOMES, "price"):
        x = getattr(log, name)
        refuse(~x.isfinite(), name, "a number", x)
    for name, x in (("feature_* or state_*", log.obs), ("next_state_*", log.next_obs)):
        if x is not None:
            refuse(~x.isfinite().all(1), name, "numbers")
    refuse(~log.mask.any(1), "valid_*", "at least one valid pair")
    refuse((log.action < 0) | (log.action >= math.prod(log.nvec)), "action_*", f"an action of {log.nvec}")
    refuse(~log.mask.gather(1, log.action[:, None])[:, 0], "action_*", "a pair that valid_* allows")
    p = log.propensity
    refuse((p <= 0) | (p > 1), "propensity", "a probability above 0, at most 1, or nothing", p)
    if log.probs is not None:
        given = log.probs.double()
        refuse((given < 0).any(1) | ((given.sum(1) - 1).abs() > 1e-4) | (given * ~log.mask > 0).any(1), "prob_*",
               "probabilities of the valid pairs that add up to 1")
        refuse((given.gather(1, log.action[:, None])[:, 0] - p).abs() > 1e-4, "propensity", "what prob_* says of the action", p)


def fitting(log: Logged, env, where: str) -> Logged:
    """Return a log on an environment's device; raise ValueError where it is not of the same observations and actions."""
    if log.nvec != tuple(env.nvec) or log.obs.shape[1] != env.obs_dim:
        raise ValueError(f"{where}: a log of {log.obs.shape[1]} observed numbers and actions of {log.nvec} doesn't fit an "
                         f"environment of {env.obs_dim} and {tuple(env.nvec)}")
    return log.to(env.device)
