"""The offers world as a whole: what planning is worth where, and that PPO learns it."""
from __future__ import annotations

import pytest
import torch
from configs import load, node
from toy_envs import train

from envs.offers.evaluation.profit_decomposition import summary
from envs.offers.policies.learned import Knapsack, Response

pytestmark = pytest.mark.slow


def evaluation(world="full", agents=1000, **changes):
    """The shipped evaluation in a world, at a small size, margins alone counting."""
    small = {"customers": 500, "seasons": 2, "validation": 300, "others": 200, **changes}
    env = load("offers", torch.device("cpu"), 0, num_agents=agents, evaluation=small, reward={"trips": 0.0},
               world={"disabled_effects": list(node(f"world/{world}").disabled_effects)})
    return env.evaluation(env)


def scores(judge):
    """Scores of the exact baselines on one market."""
    market = judge._market(500, 1, "test", judge.env.budget)
    bound, c, w = judge.bound(market), market.customers, market.world
    policies = {"propensity": Response(c, w, uplift=False), "uplift": Response(c, w, uplift=True),
                "myopic": Knapsack(c, w, "true θ", values=None, fee=0.0),
                "fee": Knapsack(c, w, "true θ", values=None, fee=1.0),
                "planning": Knapsack(c, w, "true θ", values=bound.values, fee=0.0)}
    return {name: summary(judge._play(p, market, bound, 4, 2), market, bound)["score"] for name, p in policies.items()}


def test_baselines_stand_where_the_world_puts_them():
    full = scores(evaluation())
    assert full["propensity"] < 0 < full["myopic"] < full["fee"] < full["planning"]
    assert full["myopic"] < 0.45 and 0.45 < full["fee"] < 0.75 and full["planning"] > 0.98


def test_planning_does_not_pay_where_nothing_lasts():
    static = scores(evaluation("static"))
    assert static["myopic"] > 0.998 and abs(static["planning"] - static["myopic"]) < 1e-3


def test_ppo_learns_to_plan():
    judge = evaluation()
    algo = load("../algo/ppo", judge.env, 0, total_steps=960_000, minibatches=3, eval_every=10**9,
                checkpoint_every=10**9)
    train(algo)
    result = judge.validate(algo)
    # a myopic policy with a tuned fee reaches .62, one whose advantages have the wrong sign stays below 0
    assert result["offers/score"] > 0.7 and 0.8 < result["offers/spend_ratio"] < 1.2
