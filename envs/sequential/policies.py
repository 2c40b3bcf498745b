"""Policies of the sequential environment: nothing, random contacts, a bid price, and what an algorithm has learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.offers.world.catalogue import ActionCodec
from envs.sequential.env import SLACK, SequentialEnv
from rlcore.algorithm import Policy

TIE = 1e-6  # money: of actions that earn the same at a price, the dearer one is taken
#: environment, obs [W, D], action mask [W, *nvec] → flat actions [W]
Choose = Callable[[SequentialEnv, Tensor, Tensor], Tensor]


def no_contact(env: SequentialEnv, obs: Tensor, action_mask: Tensor) -> Tensor:
    """Send nothing."""
    return torch.zeros(len(obs), dtype=torch.long, device=obs.device)


def random_actions(generator: torch.Generator) -> Choose:
    """Send any valid action, all with the same probability."""

    def choose(env, obs, action_mask):
        u = torch.rand(action_mask.flatten(1).shape, generator=generator, device=action_mask.device)
        return u.masked_fill(~action_mask.flatten(1), -1.0).argmax(-1)

    return choose


def bid_price(price: float) -> Choose:
    """Send the action that earns most at a price of budget; at price 0, first come, first served."""

    def choose(env, obs, action_mask):
        affordable = (env.cost <= env.budget_left[:, None] + SLACK).view(-1, *env.nvec)
        fits = env.world.mask_actions(env.inputs.visit, affordable).flatten(1)
        value = env.world.values(env.inputs.visit, env.inputs.week) - (price - TIE) * env.cost
        return value.masked_fill(~fits, -torch.inf).argmax(-1)

    return choose


def learned_policy(policy: Policy, generator: torch.Generator | None) -> Choose:
    """Send a learned policy's draws, by a random stream of their own, or without a stream the policy's mode."""

    def choose(env, obs, action_mask):
        u = None if generator is None else torch.rand(len(obs), generator=generator, device=obs.device)
        return ActionCodec(*env.nvec).encode_action(policy.act(obs, action_mask, u)[0])

    return choose
