"""Log the decisions, propensities and outcomes of a logging policy in any environment as a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from envs.base import Step, VectorEnv
from envs.offers.logs.schema import COLUMNS
from rlcore.algorithm import Policy
from rlcore.distributions import draw, unflatten
from rlcore.exploration.rules import floored
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset


class LoggingPolicy:
    """A policy that makes the decisions of a log."""

    def reset(self, env) -> None:
        """Prepare for a rollout, after the environment's reset."""

    def probs(self, env, obs: Tensor, action_mask: Tensor) -> Tensor:
        """Probabilities [N, Πn] of actions in observations [N, D] under masks bool [N, Πn]."""
        raise NotImplementedError

    def reported(self, probs: Tensor, action_mask: Tensor) -> Tensor | None:
        """Probabilities that the log reports, None where the log reports none."""
        return probs


class UniformPolicy(LoggingPolicy):
    """Any valid action, all with the same probability."""

    def probs(self, env, obs, action_mask):
        return action_mask.double() / action_mask.sum(1, keepdim=True)


class AgentPolicy(LoggingPolicy):
    """A trained policy at the observed prices, and with a share ε of decisions any valid action."""

    def __init__(self, policy: Policy, *, epsilon: float):
        self.policy, self.epsilon = policy, epsilon

    def probs(self, env, obs, action_mask):
        return floored(self.policy.distribution(obs, action_mask).probs.double(), action_mask, self.epsilon)


@torch.no_grad()
def rollouts(
    env: VectorEnv, policy: LoggingPolicy, name: str, seed: int, *, decisions: int, steps: int, all_propensities: bool
) -> Iterator[LoggedDataset]:
    """Yield at least `decisions`, a chunk a rollout: an episode of new units, or `steps` where there are no episodes.

    A unit's decisions are consecutive rows, in order. In an environment without episodes each agent counts as a unit.
    """
    n, steps, device = env.num_agents, env.episode_length or steps, env.device
    generator = torch.Generator(device).manual_seed(2 * seed + 1)
    size = n * steps
    episode = step_index = torch.zeros(n, dtype=torch.long, device=device)
    for rollout in range(-(-decisions // size)):
        rows = []
        obs, action_mask = env.reset()
        policy.reset(env)
        for _ in range(steps):
            row, step = decide(env, policy, obs, action_mask.flatten(1), generator, all_propensities)
            row["episode"], row["step"] = episode, step_index
            rows.append(row)
            ended = step.terminated | step.truncated
            episode = episode + ended.long()
            step_index = torch.where(ended, 0, step_index + 1)
            obs, action_mask = step.obs, step.action_mask
        columns: dict[str, Any] = {}
        for key in rows[0]:
            columns[key] = torch.stack([row[key] for row in rows], 1).flatten(0, 1)
        unit = torch.arange(n, device=device) + (rollout * n if env.episode_length else 0)
        yield LoggedDataset(
            nvec=env.nvec,
            static_dim=env.static_dim,
            policies=(name,),
            names=COLUMNS,
            row=rollout * size + torch.arange(size, device=device) + FIRST_ROW,
            unit=unit.repeat_interleave(steps),
            policy=torch.zeros(size, dtype=torch.long, device=device),
            outcomes={key: columns.pop(key) for key in COLUMNS.outcomes},
            **columns,
        )


def decide(
    env: VectorEnv,
    policy: LoggingPolicy,
    obs: Tensor,
    action_mask: Tensor,
    generator: torch.Generator,
    all_propensities: bool,
) -> tuple[dict[str, Tensor], Step]:
    """Draw an action of every agent and take it; return the decision's columns, [N, …] each, and the step."""
    zeros = torch.zeros(len(obs), device=env.device)
    priced = env.as_priced()
    price = priced.price if priced else zeros
    probs = policy.probs(env, obs, action_mask)
    action = draw(probs, torch.rand(len(obs), generator=generator, device=env.device, dtype=probs.dtype))
    reported = policy.reported(probs, action_mask)
    step = env.step(unflatten(action, env.nvec))
    reward, cost = step.info.get(COLUMNS.reward, step.reward), step.info.get(COLUMNS.cost, zeros)
    # The last reward of a priced environment is the step's reward, less its cost at the price, plus the terminal value.
    end = torch.where(step.terminated, step.reward - (reward - price * cost), 0.0) if priced else zeros
    final_mask = step.final_action_mask  # an episode that was cut goes on from `final_obs`, whose actions these are
    unreported = torch.full_like(zeros, torch.nan, dtype=torch.float64)
    row = {
        "obs": obs,
        "action_mask": action_mask,
        "action": action,
        "propensity": unreported if reported is None else reported.gather(1, action[:, None])[:, 0].double(),
        "price": price,
        "reward": reward,
        "cost": cost,
        "terminal_value": end,
        **{key: step.info.get(key, zeros).float() for key in COLUMNS.outcomes},
        "next_obs": step.final_obs,
        "next_action_mask": (step.action_mask if final_mask is None else final_mask).flatten(1),
        "terminated": step.terminated,
        "truncated": step.truncated,
    }
    if all_propensities and reported is not None:
        row["probs"] = reported.float()
    return row, step
