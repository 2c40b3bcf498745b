"""Batches of customers: the same bound, budget, seasons and scores as all at once, with and without kept tables."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from configs import load
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, simulate_season
from envs.offers.planning import batching
from envs.offers.planning.lagrangian_bound import dual
from envs.offers.policies.baselines import KnapsackPolicy, NoContact, ResponseRanking
from envs.offers.policies.information import ORACLE
from envs.offers.policies.learned import PriceGridPolicy
from envs.offers.policies.rollover import planning_policy
from policies import LogitsPolicy

CUSTOMERS = 23


@pytest.fixture(scope="module")
def at_once():
    return whole()


def whole():
    """A market, its bound, and a season by several policies."""
    env = load(
        "offers_full_information",
        torch.device("cpu"),
        0,
        contact_rules={"holdout": {"share": 0.2, "salt": 0}},
        population={"reference_size": 500},
    )
    world = env.world.to("cpu", torch.float64)
    market = EvaluationMarket.from_sample(
        env.population.draw(CUSTOMERS, torch.Generator().manual_seed(2), "test"), world, env.budget, env.contact_rules
    )
    bound = dual(
        market.customers,
        world,
        market.no_contact_values,
        market.initial_state,
        market.budget,
        market.stock,
        first_price=3.0,
        tolerance=1e-3,
        max_evaluations=5,
        contacts=market.contact_policy.contacts,
    )
    c, u = market.customers, market.sample_uniforms(torch.Generator().manual_seed(3))
    weight = torch.randn(env.obs_dim, 30, generator=torch.Generator().manual_seed(4))
    policies = {
        "none": NoContact(),
        "uplift": ResponseRanking(c, world, uplift=True),
        "myopic": KnapsackPolicy(c, world, ORACLE, values=None, fee=0.0),
        "planning": planning_policy(market, bound, ORACLE),
        "learned": PriceGridPolicy(
            LogitsPolicy(lambda obs: obs @ weight),
            None,
            env.codec,
            c,
            world,
            market.features,
            prices=torch.logspace(1, -1, 8),
            drift=0.0,
        ),
    }
    return market, bound, {name: simulate_season(policy, market, u, bound) for name, policy in policies.items()}


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("kept", [2**29, 0], ids=["kept", "made anew"])
def test_blocks_change_nothing(at_once, monkeypatch, kept):
    market, bound, records = at_once
    monkeypatch.setitem(batching.BATCH_SIZE, "cpu", 7)
    monkeypatch.setattr(batching, "MAX_TABLE_BYTES", kept)
    again, limit, found = whole()
    assert (again.no_contact_values is None) == (limit.values is None) == (kept == 0)
    near(again.budget, market.budget)
    for field in fields(bound):
        if field.name != "values":
            near(torch.as_tensor(getattr(limit, field.name)), torch.as_tensor(getattr(bound, field.name)))
    for name, record in records.items():
        for field in fields(record):
            near(getattr(found[name], field.name), getattr(record, field.name))
        assert summarise_seasons([found[name]], again, limit)["score"] == pytest.approx(
            summarise_seasons([record], market, bound)["score"]
        )
    assert records["planning"].action.any() and records["learned"].action.any()


def test_a_last_block_may_be_smaller(monkeypatch):
    monkeypatch.setitem(batching.BATCH_SIZE, "cpu", 7)
    assert [(rows.start, rows.stop) for rows in batching.batches(torch.zeros(15))] == [(0, 7), (7, 14), (14, 15)]
