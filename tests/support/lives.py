"""Logs of customers' whole lives: several seasons each, with joiners, leavers and weeks that nobody logged."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from envs.offers.logs.schema import COLUMNS
from envs.offers.world.customers import SUBSCRIBED, UNSUBSCRIBED, CustomerState
from envs.offers.world.history import SeenWeek
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset


def log_of_lives(env, features: Tensor, seen: list[SeenWeek], logged: Tensor) -> LoggedDataset:
    """Return what a shop logs of customers with features [N, F] in the weeks `logged`, bool [T, N]."""
    n, weeks, codec, world = len(features), env.world.weeks, env.codec, env.world
    none = torch.zeros(n, dtype=torch.long)
    opted_out, observations = torch.zeros(n, dtype=torch.bool), []
    for t in range(len(seen) + 1):
        memory = codec.start_memory(features)
        memory[:, 0] = opted_out.to(memory)
        state = CustomerState(none, none, none, torch.where(opted_out, UNSUBSCRIBED, SUBSCRIBED))
        price = torch.ones(n)
        observations.append(codec.encode(features, state, memory, t % weeks, price, 0 * price).float())
        if t < len(seen):
            opted_out = opted_out | seen[t].opted_out

    def column(of_week) -> Tensor:
        return torch.stack([of_week(t, week) for t, week in enumerate(seen)])[logged]

    def spend(week: SeenWeek) -> Tensor:
        return world.catalogue.spend(week.offer, week.channel, week.redeemed.double())

    count = int(logged.sum())
    zeros, mask = torch.zeros(count), torch.ones(count, prod(env.nvec), dtype=torch.bool)
    return LoggedDataset(
        nvec=env.nvec,
        static_dim=env.static_dim,
        policies=("test",),
        names=COLUMNS,
        row=torch.arange(count) + FIRST_ROW,
        unit=column(lambda t, week: torch.arange(n)),
        episode=column(lambda t, week: none + t // weeks),
        step=column(lambda t, week: none + t % weeks),
        policy=torch.zeros(count, dtype=torch.long),
        obs=column(lambda t, week: observations[t]),
        action_mask=mask,
        action=column(lambda t, week: world.catalogue.action_codec.encode(week.offer, week.channel)),
        propensity=torch.full((count,), 0.5, dtype=torch.float64),
        price=zeros + 1,
        reward=column(lambda t, week: week.margin + world.reward.trips * week.bought - spend(week)),
        cost=column(lambda t, week: spend(week)),
        terminal_value=zeros,
        outcomes={
            "trips": column(lambda t, week: week.bought.float()),
            "redeemed": column(lambda t, week: week.redeemed.float()),
        },
        next_obs=column(lambda t, week: observations[t + 1]),
        next_action_mask=mask,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
    )


def ragged(weeks: int, customers: int) -> Tensor:
    """Who is in a log, bool [T, N]: a third joins in week 6, a quarter leaves after 20 weeks, a fifth has a gap."""
    week, who = torch.arange(weeks)[:, None], torch.arange(customers)
    logged = ~((who % 3 == 1) & (week < 5)) & ~((who % 4 == 2) & (week >= 20))
    return logged & ~((who % 5 == 3) & (14 <= week) & (week < 16))
