"""A season of a policy in a world outside the family, counted against the same customers, never contacted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.planning.knapsack import allowed_increments
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.baselines import NoContact
from envs.offers.unlike.world import UNLIKE_UNIFORMS, UnlikeWorld
from envs.offers.world.history import History, PassedWeek


class UnlikeSeason(NamedTuple):
    """What a season and its later weeks brought of each customer over never contacting them."""

    profit: Tensor  # money, [N]
    spend: Tensor  # of each week, realised, [T]
    contacts: Tensor  # of each week, [T]


def draw_uniforms(world: UnlikeWorld, n: int, generator: torch.Generator) -> Tensor:
    """Draw the uniforms of a season and of the weeks after it, [T + tail, 9, N]."""
    weeks = world.weeks + world.tail_weeks
    return torch.rand(weeks, UNLIKE_UNIFORMS, n, generator=generator, device=generator.device, dtype=world.season.dtype)


def simulate_unlike_season(policy: SeasonPolicy, market: EvaluationMarket, u: Tensor) -> UnlikeSeason:
    """Simulate a policy in a market whose world is an UnlikeWorld, by uniforms u [T + tail, 9, N].

    Profit is realised: margins and trips at their value, less spend; later weeks are discounted. It is not compared
    with anything yet.
    """
    customers, world, state = market.customers, market.world, market.initial_state
    assert isinstance(world, UnlikeWorld)
    catalogue, codec = world.catalogue, world.catalogue.action_codec
    extra, history = world.start_memory(customers), History.start(state.status, world.season.dtype)
    memory = policy.view.start(state)
    account = BudgetAccount(market.budget, market.stock, market.rollover, catalogue)
    profit, nothing = torch.zeros_like(customers.alpha), torch.zeros_like(state.status)
    spends, contacts = [], []
    for t in range(world.weeks + world.tail_weeks):
        in_season = t < world.weeks
        action = nothing
        if in_season:
            options = market.contact_policy.options(history, policy.view.subscribed(memory, state), memory)
            account.open(t)
            increments = allowed_increments(policy.increments(t, state, options), options.action_mask)

            def redeems(action, t=t, state=state, extra=extra):
                return world.advance(customers, t, state, extra, *codec.decode(action), u[t]).redeemed

            action, _ = market.budget_rule.allocate(account, increments, redeems)
        offer, channel = codec.decode(action)
        week = world.advance(customers, t, state, extra, offer, channel, u[t])
        spend = catalogue.spend(offer, channel, week.redeemed.to(profit))
        discount = world.tail_discount ** max(t - world.weeks, 0)  # as in the family's dynamic program
        profit = profit + discount * (week.margin + world.reward.trips * week.bought - spend)
        if in_season:
            spends.append(spend.sum())
            contacts.append((offer > 0).sum())
            seen = week.seen(offer, channel, state.status)
            memory = policy.view.after(memory, PassedWeek(t, seen, state, week.state))
            history = history.after(week.state.status, catalogue, offer, channel, week.bought, week.redeemed)
        state, extra = week.state, week.memory
    return UnlikeSeason(profit, torch.stack(spends), torch.stack(contacts))


def incremental_profit(
    policies: dict[str, SeasonPolicy], market: EvaluationMarket, u: list[Tensor]
) -> dict[str, Tensor]:
    """Return what each policy earns over no contact by customer, the mean over the seasons of uniforms u, [N] each."""
    totals = {name: torch.zeros_like(market.customers.alpha) for name in policies}
    for uniforms in u:
        alone = simulate_unlike_season(NoContact(), market, uniforms).profit
        for name, policy in policies.items():
            totals[name] += (simulate_unlike_season(policy, market, uniforms).profit - alone) / len(u)
    return totals
