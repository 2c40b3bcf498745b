"""Policies on estimates read a customer's margin off the first purchase."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from envs.configuration import make_env
from envs.offers.planning.dynamic_program import best_plan, no_contact_values
from envs.offers.planning.knapsack import Increments, concat_increments
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.information import COUNTS, FEATURES, MARGINS, Information
from envs.offers.policies.rollover import values_at_prices
from envs.offers.policies.wrappers import MarginsSeenPolicy
from envs.offers.world.history import History

SMALL = [
    "env.num_agents=8",
    "env.population.reference_size=500",
    "env.evaluation.regression_customers=500",
]
SIZES = [
    "env.evaluation.customers=60",
    "env.evaluation.seasons=1",
    "env.evaluation.tuning_customers=40",
    "env.evaluation.bound.max_evaluations=12",
]
INFORMATION = Information(FEATURES, ("states",), equations=True)


def made(view: str):
    """Return an evaluator where features tell part of θ, and its test market."""
    env = make_env("env=offers", f"env/observation={view}", "env.population.r2=0.3", *SMALL, *SIZES)
    evaluator = env.evaluation(env)
    return evaluator, evaluator.test_market(env.budget)


def test_increments_are_those_of_the_policy_that_knows_the_margin_once_a_customer_bought():
    _, market = made("state")
    dearer = replace(market.customers, margin=3 * market.customers.margin)
    before, after = (
        KnapsackPolicy(customers, market.world, INFORMATION, values=None, fee=0.0)
        for customers in (dearer, market.customers)
    )
    bought = torch.rand(2, len(market), generator=torch.Generator().manual_seed(0)) < 0.3
    none = torch.zeros_like(bought).double()
    history = History(market.initial_state.status, none, none, bought.double(), none, none)
    subscribed = torch.ones(len(market), dtype=torch.bool)
    options = market.contact_policy.options(history, subscribed, torch.zeros(len(market), 0))
    found = MarginsSeenPolicy(before, after).increments(2, market.initial_state, options)
    for customer in range(len(market)):
        policy = after if bought[:, customer].any() else before
        alone = policy.increments(2, market.initial_state, options)
        steps = (alone.price[customer] > -torch.inf).sum()  # those that exist come first
        of_found, of_alone = (Increments(*(x[customer, :steps] for x in each)) for each in (found, alone))
        assert torch.equal(of_found.action, of_alone.action)
        torch.testing.assert_close(of_found, of_alone, rtol=1e-12, atol=1e-12)  # rounding depends on a batch's size
        assert (found.price[customer, steps:] == -torch.inf).all()
    told, guessed = (policy.increments(2, market.initial_state, options) for policy in (after, before))
    assert not torch.equal(*(concat_increments([x]).action[bought.any(0)] for x in (told, guessed)))


@pytest.mark.parametrize("view, shows", [("state", False), ("state_counts", True), ("history", True), ("belief", True)])
def test_margins_are_read_where_a_view_shows_them(view, shows):
    evaluator, market = made(view)
    estimates = evaluator.on_estimates.estimates(market)
    information = evaluator.on_estimates.certainty_equivalent_planner(market).information
    assert (MARGINS in information.season) == shows == (estimates.with_margins is not None)
    if not shows:
        return
    told, guessed, true = (x.customers for x in (estimates.with_margins, estimates.market, market))
    assert torch.equal(told.margin, true.margin) and not torch.equal(guessed.margin, true.margin)
    others = [field.name for field in fields(told) if field.name != "margin"]
    assert all(torch.equal(getattr(told, name), getattr(guessed, name)) for name in others)
    bound = evaluator.solve_bound(estimates.market)
    values, _ = best_plan(
        told,
        market.world,
        no_contact_values(told, market.world),
        bound.prices,
        bound.scarcity,
        contacts=market.contact_policy.contacts,
    )
    for mine, reference in zip(values_at_prices(estimates.with_margins, bound), values):
        torch.testing.assert_close(mine.subscribed, reference.subscribed)


def test_who_reads_margins_is_no_richer_than_who_sees_counts():
    reader = Information(FEATURES, ("beliefs", MARGINS), equations=True)
    assert reader.is_no_richer_than(Information(FEATURES, ("beliefs", COUNTS)))
    assert not reader.is_no_richer_than(Information(FEATURES, ("beliefs",)))


def test_blocks_of_steps_get_one_width():
    one, two = (
        Increments(*(torch.ones(2, k, dtype=t) for t in (torch.float, torch.float, torch.long))) for k in (1, 3)
    )
    both = concat_increments([one, two])
    assert both.price.shape == (4, 3) and both.price[:2, 1:].eq(-torch.inf).all()
    assert not both.spend[:2, 1:].any() and not both.action[:2, 1:].any() and (both.price[2:] == 1).all()
