"""Rollouts: a policy acts for T steps in N environments, and the results are kept in named columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rlcore.backends import distributed

if TYPE_CHECKING:
    from rlcore.algorithm import Policy


BatchT = TypeVar("BatchT", bound=tuple)  # a NamedTuple of columns [B, ...]


class Rollout(NamedTuple):
    """T steps of N agents."""

    obs: Tensor  #: [T, N, D]
    action_mask: Tensor  #: bool [T, N, *nvec]
    action: Tensor  #: int64 [T, N, K]
    log_prob: Tensor  #: log-probability of the action under the policy that took it, [T, N]
    reward: Tensor  #: [T, N]
    terminated: Tensor  #: bool [T, N]
    truncated: Tensor  #: bool [T, N]
    #: observation that each step led to, [T, N, D]; None where the environment never truncates
    final_obs: Tensor | None
    last_obs: Tensor  #: observation after the last step, [N, D]
    info: dict[str, Tensor]  #: further outcomes of each step, [T, N]

    @property
    def done(self) -> Tensor:
        """Steps that end an episode, bool [T, N]."""
        return self.terminated | self.truncated

    def mean_info(self) -> dict[str, Tensor]:
        """Return the mean of every outcome, for the log."""
        return {f"rollout/{name}": x.float().mean() for name, x in self.info.items()}


class EpisodicReturn:
    """Sums the rewards of each agent's episode, undiscounted; an episode may span several rollouts."""

    def __init__(self, num_agents: int, device: torch.device):
        self.running = torch.zeros(num_agents, device=device)  # of the episodes that have not ended

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> Tensor:
        """Add T steps, [T, N] each; return the mean return [] of the episodes that ended, NaN where none did.

        The mean is over the episodes of all processes. An agent's episodes that ended have together what it earned up
        to the last of these ends.
        """
        total = self.running + reward.cumsum(0)
        last_end = len(done) - 1 - done.flip(0).int().argmax(0)
        earned_at_end = torch.where(done.any(0), total.gather(0, last_end[None])[0], 0.0)
        self.running.copy_(total[-1] - earned_at_end)
        earned, ended = distributed.all_reduce_sum(torch.stack((earned_at_end.sum(), done.sum())))
        return earned / ended


@torch.no_grad()
def collect_rollout(env: Any, policy: Policy, uniforms: Tensor) -> Rollout:
    """Begin a rollout in a VectorEnv (envs/base.py) and act for T steps; the uniforms [T, N] draw the actions."""
    obs, action_mask = env.reset()
    return continue_rollout(env, policy, obs, action_mask, uniforms)


@torch.no_grad()
def continue_rollout(env: Any, policy: Policy, obs: Tensor, action_mask: Tensor, uniforms: Tensor) -> Rollout:
    """Act for T steps from the environment's last observation [N, D] and action mask [N, *nvec]."""
    steps: list[dict] = []
    infos: list[dict] = []
    for u in uniforms:
        action, log_prob = policy.act(obs, action_mask, u)
        step = env.step(action)
        columns = {
            "obs": obs,
            "action_mask": action_mask,
            "action": action,
            "log_prob": log_prob,
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
        }
        if env.can_truncate:
            columns["final_obs"] = step.final_obs
        steps.append(columns)
        infos.append(step.info)
        obs, action_mask = step.obs, step.action_mask
    columns = {"final_obs": None, **stack_columns(steps)}
    return Rollout(**columns, last_obs=obs, info=stack_columns(infos))


def stack_columns(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack T rows of tensors [N, ...] under the same names into columns [T, N, ...]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def check_minibatches(num_agents: int, num_steps: int, minibatches: int) -> None:
    """Raise ValueError where a rollout can't be split into minibatches of equal size."""
    if num_agents * num_steps % minibatches:
        raise ValueError(
            "algo.minibatches: expected a divisor of env.num_agents (of a process) × algo.num_steps, "
            f"{num_agents} × {num_steps}, got {minibatches}"
        )


def shuffled(batch: BatchT, minibatches: int, generator: torch.Generator) -> Iterator[BatchT]:
    """Yield the samples of a batch once, in minibatches of equal size and random order."""
    order = torch.randperm(len(batch[0]), generator=generator, device=batch[0].device)
    columns = [column.index_select(0, order).chunk(minibatches) for column in batch]
    for parts in zip(*columns):
        yield type(batch)(*parts)
