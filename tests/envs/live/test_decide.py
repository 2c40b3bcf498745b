"""One decision: the graph's parts are those of training and evaluation, and carry memory as a log has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from envs.configuration import make_env
from envs.live.decide import Decide, DecisionInputs
from envs.live.exportable import check_exportable
from envs.offers.constraints.contact_policy import ContactOptions
from envs.offers.planning.knapsack import compact, demand_curve
from envs.offers.policies.learned import deploy_policy
from envs.offers.populations.feature_transform import EMPTY, OTHER, FeatureTransform, level_codes
from envs.offers.world.customers import CustomerState
from envs.offers.world.history import History, PassedWeek, SeenWeek
from policies import greedy
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.networks import Actor

CPU = torch.device("cpu")


def history_env():
    """The shipped environment with few customers and a view of histories."""
    return make_env(
        "env=offers",
        "env/observation=history",
        "env/contact_rules=caps",
        "env.num_agents=30",
        "env.population.reference_size=500",
    )


def actor(env, hidden, normalize_obs=False) -> Actor:
    torch.manual_seed(3)
    made = Actor(
        env.obs_dim,
        env.nvec,
        hidden=hidden,
        activation=nn.ReLU,
        heads="joint",
        policy_gain=1.0,
        first_bias=0.0,
        normalize_obs=normalize_obs,
        clip_obs=2.0,
    )
    if normalize_obs:
        made.update_normalization(torch.randn(50, env.obs_dim) * 3)
    return made


@pytest.mark.parametrize("hidden, normalize_obs", [([16, 8], False), ([16], True), ([], False)])
def test_a_first_layer_multiplied_once_gives_the_same_logits(hidden, normalize_obs):
    env = history_env()
    network = actor(env, hidden, normalize_obs)
    beginnings, endings = torch.randn(5, env.context_dim), torch.randn(3, 2)
    found = network.logits_with_endings(beginnings, endings)
    for g in range(3):
        whole = torch.cat((beginnings, endings[g].expand(5, -1)), 1)
        torch.testing.assert_close(found[g], network.logits(whole), atol=2e-6, rtol=1e-5)


class Identity(nn.Module):
    """Features that are the numbers."""

    def forward(self, numbers, levels):
        return numbers


class FixedCosts:
    """An auxiliary model that predicts the same for everybody."""

    def __init__(self, nvec):
        self.table = torch.rand(nvec, generator=torch.Generator().manual_seed(5))

    def predict(self, obs):
        return self.table.expand(len(obs), -1, -1) * torch.sigmoid(obs[:, :1, None])


def policies(env):
    head = torch.randn(env.obs_dim, 30, generator=torch.Generator().manual_seed(2))
    return {
        "logits": actor(env, [16]),
        "values at a price": greedy(lambda obs: obs @ head, observes_price=True),
    }


@pytest.mark.parametrize("kind", ["logits", "values at a price"])
def test_the_evaluation_scores_as_the_graph_does(kind):
    """The evaluation's own policy, asked for its increments, and the graph's module on the same customers."""
    env = history_env()
    policy, auxiliary = policies(env)[kind], FixedCosts(env.nvec)
    n, prices = 200, torch.logspace(1, -1, 9)
    features = torch.randn(n, env.static_dim)
    memory = env.codec.start_memory(features)
    memory[:, 1:3] = torch.rand(n, 2)
    mask = torch.rand(n, 30) < 0.6
    mask[:, 0] = True
    options = ContactOptions(mask, torch.rand(n, len(env.contact_rules.cap_columns)), memory=memory)

    class Agent:
        learned_from = ("a simulator",)

    agent = Agent()
    agent.policy, agent.auxiliary = policy, auxiliary
    deployed = deploy_policy(
        agent, env.codec, list(range(n)), env.world.to(CPU, torch.float64), features, prices=prices, drift=-0.03
    )
    nothing = torch.zeros(n, dtype=torch.long)
    steps = deployed.batch_increments(slice(None), 4, CustomerState(*4 * [nothing]), options)
    module = Decide(policy, auxiliary, env.codec, env.world.catalogue, Identity(), [])
    inputs = DecisionInputs(features.double(), torch.zeros(n, 0), memory, options.caps_left, torch.tensor(4), mask)
    with torch.no_grad():
        logits, spend = module(*inputs, prices, torch.tensor(-0.03))
    assert logits.shape == (9, n, 30) and spend.shape == (n, 30)
    assert (logits[:, ~mask] == -torch.inf).all() and logits[:, mask].isfinite().all()
    again = compact(demand_curve(logits, spend, prices))
    assert torch.equal(again.action, steps.action)
    real = steps.price > -torch.inf
    assert torch.equal(again.price > -torch.inf, real) and real.sum() > 100
    torch.testing.assert_close(again.price[real], steps.price[real].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.spend[real], steps.spend[real].float(), rtol=1e-5, atol=1e-6)


def test_values_without_a_price_are_less_what_the_price_of_the_spend_takes():
    env = history_env()
    head = torch.randn(env.context_dim, 30, generator=torch.Generator().manual_seed(2))
    policy, auxiliary = greedy(lambda obs: obs @ head), FixedCosts(env.nvec)
    n, prices = 6, torch.tensor([3.0, 0.5])
    features = torch.randn(n, env.static_dim)
    memory, mask = env.codec.start_memory(features), torch.ones(n, 30, dtype=torch.bool)
    module = Decide(policy, auxiliary, env.codec, env.world.catalogue, Identity(), [])
    caps = torch.ones(n, len(env.contact_rules.cap_columns))
    logits, spend = module(
        features.double(), torch.zeros(n, 0), memory, caps, torch.tensor(0), mask, prices, torch.tensor(0.0)
    )
    options = ContactOptions(mask, caps, memory=memory)
    nothing = torch.zeros(n, dtype=torch.long)
    context = env.codec.encode_context(options.with_caps_left(features), CustomerState(*4 * [nothing]), memory, 0)
    for g, price in enumerate(prices):
        torch.testing.assert_close(logits[g], context @ head - price * spend)


# ── features ────────────────────────────────────────────────────────────────────────────────────────────────────────
def reference_features(columns, state) -> np.ndarray:
    """The transform a column at a time, in numpy's float64."""
    parts = []
    for name, fitted in state["numbers"].items():
        filled = np.where(np.isnan(columns[name]), fitted["median"], columns[name])
        parts.append((filled.clip(fitted["low"], fitted["high"]) - fitted["mean"]) / fitted["sd"])
    for name, fitted in state["numbers"].items():
        if fitted["has_gaps"]:
            parts.append(np.isnan(columns[name]).astype(float))
    for name, levels in state["levels"].items():
        for level in levels:
            text = [x or (EMPTY if EMPTY in levels else OTHER) for x in columns[name]]
            known = [x if x in levels else OTHER for x in text]
            parts.append(np.array([x == level for x in known], dtype=float))
    return np.stack(parts, 1)


@pytest.mark.parametrize("levels", [["a", EMPTY, OTHER], ["a", "b"], ["a", OTHER]])
def test_features_of_tensors_are_those_of_the_transform_bit_by_bit(levels):
    random = np.random.default_rng(0)
    columns = {
        "x": random.normal(3, 50, 500),
        "y": np.where(random.random(500) < 0.2, np.nan, random.exponential(size=500)),
        "t": random.choice(["a", "b", "", "new", OTHER], 500).astype(object),
    }
    state = {
        "numbers": {
            "x": {"mean": 1 / 3, "sd": 7.7, "low": -40.1, "high": 55.5, "median": 2.9, "has_gaps": False},
            "y": {"mean": 0.7, "sd": 1.3, "low": 0.0, "high": 3.3, "median": 0.69, "has_gaps": True},
        },
        "levels": {"t": levels},
    }
    found = FeatureTransform(state)(columns, "t.csv")
    assert np.array_equal(found.numpy(), reference_features(columns, state))
    assert level_codes(columns["t"], levels).max() == len(levels)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_memory_carried_for_52_weeks_is_the_history_of_the_whole_log():
    """Frequency and recency against `History.columns` of all weeks at once, in float64; sums against sums."""
    env = history_env()
    codec, catalogue, n, weeks = env.codec, env.world.catalogue, 50, 52
    generator = torch.Generator().manual_seed(8)
    features = torch.zeros(n, env.static_dim)
    nothing = torch.zeros(n, dtype=torch.long)
    states = CustomerState(*4 * [nothing])
    memory, history = codec.start_memory(features), History.start(nothing, torch.float64)
    purchases = torch.zeros(n)
    for week in range(weeks):
        action = torch.randint(30, (n,), generator=generator)
        offer = torch.where(action >= 5, action // 5, 0) * (torch.rand(n, generator=generator) < 0.3)
        bought = torch.rand(n, generator=generator) < 0.3
        redeemed = bought & (offer > 0) & (torch.rand(n, generator=generator) < 0.5)
        quiet = torch.zeros(n, dtype=torch.bool)
        seen = SeenWeek(offer, action % 5, bought, redeemed, quiet, bought * 3.0)
        memory = codec.remember(memory, features, PassedWeek(week, seen, states, states))
        history = history.after(nothing, catalogue, offer, action % 5, bought, redeemed)
        purchases += bought
        own = memory[:, 1 + len(codec.counts) :]
        torch.testing.assert_close(own.double(), history.columns(codec.half_lives), atol=1e-6, rtol=0)
    assert torch.equal(memory[:, 1], purchases)


# ── what can't be exported ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("view", ["state", "state_counts"])
def test_what_no_shop_sees_is_refused(view):
    env = make_env("env=offers", f"env/observation={view}", "env.num_agents=8", "env.population.reference_size=200")
    with pytest.raises(ValueError, match="env/observation=history or belief"):
        check_exportable(env, None, "c.pt")


def test_other_worlds_other_policies_and_unknown_costs_are_refused():
    small = ("env.num_agents=8", "env.population.reference_size=200")
    unlike = make_env("env=offers_unlike", *small)
    with pytest.raises(ValueError, match="UnlikeEnv: expected a policy of env=offers"):
        check_exportable(unlike, None, "c.pt")
    with pytest.raises(ValueError, match="expected a policy of logits at a price or of action values"):
        check_exportable(history_env(), object(), "c.pt")

    class Agent(NetworkAlgorithm):
        def __init__(self, env):
            self.policy, self.auxiliary = actor(env, [4]), None

        def iterate(self, progress):
            raise NotImplementedError

    env = history_env()
    with pytest.raises(ValueError, match="expected algo/auxiliary=redemption_model"):
        check_exportable(env, Agent(env), "c.pt")
