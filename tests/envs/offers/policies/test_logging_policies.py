"""The planner with private prices where the view hides the state: it decides on what a shop sees."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import node
from envs.offers.planning.dynamic_program import action_values, best_plan, no_contact_values
from envs.offers.planning.state_values import VisitedStates
from envs.offers.world.belief_observation import start_marginals
from envs.offers.world.customers import EXPECTATIONS, FATIGUES, HABITS, CustomerState
from envs.offers.world.filtering import Belief, filter_week
from small_offers import logging_policy


def shop(**changes):
    """An environment in which features determine θ and no state is seen, and the planner there."""
    changes_of_env = {"num_agents": 12, "population": {"reference_size": 1000}, "price_range": [1.0, 6.0]}
    config = OmegaConf.merge(node("offers_full_information", "env/observation=history"), changes_of_env)
    env = instantiate(config, _convert_="all")(torch.device("cpu"), 0)
    env.use_realised_outcomes()
    planner = logging_policy("price_perturbed", **{"epsilon": 0.0, "reference_size": 400, **changes})
    env.reset()
    planner.reset(env)
    return env, planner


def states(n: int):
    """Yield each state of a subscribed customer, for n customers."""
    for levels in itertools.product(range(HABITS), range(FATIGUES), range(EXPECTATIONS)):
        yield levels, CustomerState(*(torch.full((n,), x) for x in (*levels, 0)))


def test_without_states_the_best_expected_action_at_a_drawn_price_is_taken():
    """Beside the planner by hand: each state's action values, weighed by P(state), at many draws of the price."""
    env, planner = shop()
    c, world, cost = env.customers, env.world, env.world.catalogue.cost.double()
    values = best_plan(c, world, no_contact_values(c, world), env.prices)[0]
    start = start_marginals(env.population.draw(400, torch.Generator().manual_seed(0), "train").state)
    belief = Belief.from_marginals(start[:, None].expand(-1, 12).to(c.alpha), torch.zeros(12, dtype=torch.bool))
    for week in range(3):
        expected = torch.zeros(2, 12, 30, dtype=torch.float64)  # at prices 0 and 1: values are linear in the price
        for (h, f, d), state in states(12):
            for price in (0, 1):
                at = torch.full((12,), float(price))
                nothing, contact = action_values(c, world, week, VisitedStates(state, c.alpha), at, values[week + 1])
                flat = torch.cat((nothing.expand(1, 5, -1), contact)).flatten(0, 1).T
                expected[price] += belief.subscribed[h, f, d, :, None] * flat
        for price in (0, 1):  # who churned costs the message
            expected[price, :, 5:] -= belief.churned[:, None] * (cost * (1 + price)).repeat(5)
        drawn = (0.5 * torch.randn(20000, generator=torch.Generator().manual_seed(week))).exp().double()
        allowed, probs = env.options.action_mask, planner.probs(env, None, env.options.action_mask)
        for n in range(12):
            at_price = expected[0, n] + (drawn * env.price[n])[:, None] * (expected[1, n] - expected[0, n])
            best = at_price.masked_fill(~allowed[n], -torch.inf).argmax(1)
            share = best.bincount(minlength=30) / len(drawn)
            assert ((share - probs[n]).abs() < 4 * (probs[n] * (1 - probs[n]) / len(drawn)).sqrt() + 2e-3).all()
        assert ((probs > 0.02) & (probs < 0.98)).any()
        env.step(torch.stack((torch.full((12,), week % 2), torch.arange(12) % 5), 1))
        belief, _ = filter_week(c, world, week, belief, env.passed.seen)


@pytest.mark.parametrize("sees_hidden", [False, True])
def test_hidden_states_move_no_decision_of_a_shop(sees_hidden):
    env, planner = shop(sees_hidden=sees_hidden)
    before = planner.probs(env, None, env.options.action_mask)
    env.state = env.state._replace(habit=5 - env.state.habit, fatigue=3 - env.state.fatigue)
    after = planner.probs(env, None, env.options.action_mask)
    assert torch.equal(before, after) != sees_hidden


def test_without_states_the_planner_knows_no_more_of_theta_than_features_tell():
    env, planner = shop()
    env.customers = replace(env.customers, alpha=env.customers.alpha + 3.0)
    before = planner.probs(env, None, env.options.action_mask)
    planner.reset(env)
    assert torch.equal(before, planner.probs(env, None, env.options.action_mask))
