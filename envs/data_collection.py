"""Play a behaviour in any environment, and log what it decided, how probably, and what came of it."""
from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from envs.base import VectorEnv
from rlcore.distributions import draw, unflatten
from rlcore.algorithm import Policy
from rlcore.exploration import floored
from rlcore.offline.logged_dataset import Logged


class Behaviour:
    """How a log's decisions were made."""

    def reset(self, env) -> None:
        """Get ready for a rollout that the environment has begun."""

    def probs(self, env, obs: Tensor, mask: Tensor) -> Tensor:
        """Probabilities [N, Πn] of what is done on observations [N, D] under masks bool [N, Πn]."""
        raise NotImplementedError

    def told(self, probs: Tensor, mask: Tensor) -> Tensor | None:
        """Probabilities that the log says were those, None where it says nothing."""
        return probs


class Uniform(Behaviour):
    """Any valid pair, all alike."""

    def probs(self, env, obs, mask):
        return mask.double() / mask.sum(1, keepdim=True)


class Agent(Behaviour):
    """What a trained policy does at the observed prices, and with a share ε any valid pair."""

    def __init__(self, policy: Policy, *, epsilon: float):
        self.policy, self.epsilon = policy, epsilon

    def probs(self, env, obs, mask):
        return floored(self.policy.distribution(obs, mask).probs.double(), mask, self.epsilon)


@torch.no_grad()
def rollouts(env: VectorEnv, behaviour: Behaviour, name: str, seed: int, *, decisions: int, steps: int,
             all_propensities: bool) -> Iterator[Logged]:
    """Yield at least `decisions`, a chunk a rollout: a season of new customers, or `steps` of an environment that goes on.

    A customer's decisions stand together, in order. Of an environment that goes on, each agent counts as a customer.
    """
    n, steps, device = env.num_agents, env.episode_length or steps, env.device
    generator = torch.Generator(device).manual_seed(2 * seed + 1)
    zeros, size = torch.zeros(n, device=device), n * steps
    priced = env.as_priced()
    season = week = torch.zeros(n, dtype=torch.long, device=device)
    for rollout in range(-(-decisions // size)):
        rows = []
        obs, mask = env.reset()
        behaviour.reset(env)
        for _ in range(steps):
            valid, price = mask.flatten(1), priced.price if priced else zeros
            probs = behaviour.probs(env, obs, valid)
            action = draw(probs, torch.rand(n, generator=generator, device=device, dtype=probs.dtype))
            told = behaviour.told(probs, valid)
            step = env.step(unflatten(action, env.nvec))
            info, ended = step.info, step.terminated | step.truncated
            profit, spend = info.get("profit", step.reward), info.get("spend", zeros)
            # Where the end comes, the reward has what it is worth beside the week's profit less its spend at the price.
            terminal = torch.where(step.terminated, step.reward - (profit - price * spend), 0.0) if priced else zeros
            rows.append({
                "season": season, "week": week, "obs": obs, "mask": valid, "action": action,
                "propensity": zeros.double() + torch.nan if told is None else told.gather(1, action[:, None])[:, 0].double(),
                "price": price, "profit": profit, "trips": info.get("trips", zeros).float(),
                "redeemed": info.get("redeemed", zeros).float(), "spend": spend, "terminal": terminal,
                "next_obs": step.final_obs, "next_mask": step.action_mask.flatten(1), "terminated": step.terminated,
                "truncated": step.truncated,
                **({} if told is None or not all_propensities else {"probs": told.float()})})
            season, week = season + ended.long(), torch.where(ended, 0, week + 1)
            obs, mask = step.obs, step.action_mask
        columns = {name: torch.stack([row[name] for row in rows], 1).flatten(0, 1) for name in rows[0]}
        customer = torch.arange(n, device=device) + (rollout * n if env.episode_length else 0)
        yield Logged(env.nvec, env.static_dim, (name,), rollout * size + torch.arange(size, device=device),
                     customer.repeat_interleave(steps), policy=torch.zeros(size, dtype=torch.long, device=device),
                     **{"probs": None, **columns})
