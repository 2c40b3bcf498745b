"""The contracts of envs/base.py and rlcore/algorithm.py, checked on every environment, algorithm and evaluator."""

from __future__ import annotations

import inspect
from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from configs import composed
from envs.base import LookaheadEnv, PricedEnv, Step, VectorEnv
from rlcore.algorithm import Algorithm, Evaluator, OfflineAlgorithm, ValuePolicy
from rlcore.distributions import MaskedMultiDiscrete
from rlcore.network_algorithm import NetworkAlgorithm

CPU = torch.device("cpu")
ENVIRONMENTS = {
    "offers": ["env=offers", "env.num_agents=6", "env.population.reference_size=200"],
    "offers, histories and caps": [
        "env=offers",
        "env.num_agents=6",
        "env.population.reference_size=200",
        "env/observation=history",
        "env/contact_rules=caps",
    ],
    "offers_sequential": ["env=offers_sequential", "env.num_agents=3", "env.customers=4"],
    "offers_sequential, structural customers": [
        "env=offers_sequential",
        "env.num_agents=3",
        "env.customers=4",
        "env/world=sequential",
    ],
    "gymnasium": ["env=gymnasium", "env.num_agents=2"],
}
ALGORITHMS = {
    "ppo": ["algo=ppo", "algo.minibatches=1", "algo.network.hidden=[8]"],
    "ppo_expected": [
        "algo=ppo_expected",
        "algo.minibatches=1",
        "algo.network.hidden=[8]",
        "env.num_agents=6",
    ],
    "bandit": ["algo=bandit", "algo.network.hidden=[8]", "algo.memory=1000", "algo.updates=1", "algo.batch_size=8"],
    "bcq": ["algo=bcq", "algo.network.hidden=[8]"],
    "cql": ["algo=cql", "algo.network.hidden=[8]"],
    "twin": ["algo=twin", "algo.twin.reference_size=50"],
}


@cache
def make_env(name: str) -> VectorEnv:
    """Build one of ENVIRONMENTS."""
    if name == "gymnasium":
        pytest.importorskip("gymnasium")
    return instantiate(composed(*ENVIRONMENTS[name]).env, _convert_="all")(CPU, 0)


@cache
def make_algorithm(name: str, *more: str) -> Algorithm:
    """Build one of ALGORITHMS on the offers environment."""
    config = composed(*ENVIRONMENTS["offers"], *ALGORITHMS[name], *more)
    return instantiate(config.algo, _convert_="all")(make_env("offers"), 0)


def some_valid_action(env: VectorEnv, action_mask: Tensor) -> Tensor:
    """Draw valid actions [N, K] by chance."""
    logits = torch.zeros(env.num_agents, action_mask.flatten(1).shape[1], device=env.device)
    pi = MaskedMultiDiscrete(logits, action_mask, env.nvec)
    return pi.sample(torch.rand(env.num_agents, generator=torch.Generator().manual_seed(1)))


def check_observation(env: VectorEnv, obs: Tensor, action_mask: Tensor) -> None:
    """Compare an observation and its mask with the environment's declared shapes."""
    assert obs.shape == (env.num_agents, env.obs_dim) and obs.is_floating_point() and obs.isfinite().all()
    assert action_mask.shape == (env.num_agents, *env.nvec) and action_mask.dtype == torch.bool
    assert action_mask.flatten(1).any(1).all()
    assert 0 <= env.static_dim <= env.context_dim <= env.obs_dim
    assert len(env.obs_names) in (0, env.obs_dim)
    limits = env.static_limits()
    if limits is not None:
        low, high = limits
        assert low.shape == high.shape == (env.static_dim,)
        assert ((low <= obs[:, : env.static_dim]) & (obs[:, : env.static_dim] <= high)).all()


@pytest.mark.slow
# ── environments ────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_what_its_attributes_say(name):
    env = make_env(name)
    assert isinstance(env, VectorEnv) and callable(env.evaluation)
    obs, action_mask = env.reset()
    check_observation(env, obs, action_mask)
    static = obs[:, : env.static_dim].clone()
    for t in range(env.episode_length or 5):
        step = env.step(some_valid_action(env, action_mask))
        assert isinstance(step, Step) and set(step.info) == set(env.info_keys)
        check_observation(env, step.obs, step.action_mask)
        assert all(
            x.shape == (env.num_agents,) for x in (step.reward, step.terminated, step.truncated, *step.info.values())
        )
        assert step.terminated.dtype == step.truncated.dtype == torch.bool and step.final_obs.shape == step.obs.shape
        assert not (step.terminated & step.truncated).any() and (env.can_truncate or not step.truncated.any())
        assert (step.final_action_mask is not None) == env.can_truncate
        if step.final_action_mask is not None:
            assert step.final_action_mask.shape == (env.num_agents, *env.nvec)
            differs = (step.final_action_mask != step.action_mask).flatten(1).any(1)
            assert step.final_action_mask.flatten(1).any(1).all() and not (differs & ~step.truncated).any()
        if env.episode_length:
            assert env.has_fixed_lengths and step.terminated.all() == (t == env.episode_length - 1)
        if not (step.terminated | step.truncated).any():
            assert torch.equal(step.obs[:, : env.static_dim], static)
        action_mask = step.action_mask


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name != "gymnasium"])
def test_a_restored_environment_goes_on_alike(name):
    """Without Gymnasium's environments, whose inner state can't be saved."""
    env = instantiate(composed(*ENVIRONMENTS[name]).env, _convert_="all")(CPU, 0)
    other = instantiate(composed(*ENVIRONMENTS[name]).env, _convert_="all")(CPU, 1)
    other.load_state_dict(env.state_dict())
    for a, b in zip(env.reset(), other.reset()):
        assert torch.equal(a, b)
    action = some_valid_action(env, env.reset()[1] if not env.episode_length else other.reset()[1])
    if env.episode_length:
        env.reset()
    for a, b in zip(env.step(action)[:6], other.step(action)[:6]):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_priced_environment_prices_every_action(name):
    env = make_env(name)
    obs, _ = env.reset()
    priced = env.as_priced()
    assert (priced is env) == isinstance(env, PricedEnv)
    if priced:
        assert {"profit", "spend"} <= set(priced.info_keys) and priced.price.shape == (env.num_agents,)
        torch.testing.assert_close(priced.decode_price(obs), priced.price, rtol=1e-4, atol=0)
        for probability in (None, torch.rand(env.num_agents, *env.nvec)):
            assert priced.expected_cost(probability).shape == (env.num_agents, *env.nvec)
        drawn = priced.sample_prices(torch.zeros(4, dtype=torch.long), torch.Generator())
        assert drawn.price.shape == drawn.next_price.shape == (4,)
        assert drawn.encoded_price.shape == drawn.next_encoded_price.shape == (4, env.obs_dim - env.context_dim)


@pytest.mark.parametrize("name", ["offers", "offers_sequential", "gymnasium"])
def test_a_lookahead_values_every_action_of_every_state(name):
    env = make_env(name)
    lookahead = env.as_lookahead(privileged=True)
    assert (lookahead is None) == (name != "offers")
    if lookahead:
        obs, _ = env.reset()
        season = obs.expand(env.episode_length, -1, -1)
        state, critic_obs = lookahead.visited_states(), lookahead.critic_obs(season)
        assert state.shape == season.shape[:2] and 0 <= state.min() <= state.max() <= lookahead.num_states
        assert critic_obs.shape == (*season.shape[:2], lookahead.critic_dim)
        futures = lookahead.future_critic_obs(critic_obs)
        assert futures.shape == (lookahead.num_futures, len(season) - 1, env.num_agents, lookahead.critic_dim)
        values = lookahead.backup(state, torch.zeros(*futures.shape[:3], lookahead.num_states))
        assert values.shape == (*state.shape, int(torch.tensor(env.nvec).prod())) and values.isfinite().all()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_graph_regions_and_graph_state_name_what_there_is(name):
    env = make_env(name)
    env.reset()
    assert all(callable(getattr(env, region)) for region in env.graph_regions)
    assert all(getattr(env, attribute) is not None for attribute in env.graph_state)


@pytest.mark.slow
# ── algorithms ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_what_the_loop_asks_for(name):
    algorithm = make_algorithm(name)
    assert isinstance(algorithm, Algorithm) and isinstance(algorithm.env, algorithm.env_type or VectorEnv)
    assert algorithm.iteration == 0 < algorithm.iterations
    assert algorithm.eval_every > 0 and algorithm.checkpoint_every > 0
    assert all(callable(getattr(algorithm, region)) for region in algorithm.graph_regions)
    state = algorithm.state_dict()
    assert set(algorithm.sharded) <= set(state)
    algorithm.load_policy(state)
    algorithm.load_state_dict(state)
    assert isinstance(algorithm, OfflineAlgorithm) == (name in ("bandit", "bcq", "cql", "twin"))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "twin"])
def test_a_policy_acts_by_its_own_distribution(name):
    algorithm = make_algorithm(name)
    env, policy = algorithm.env, algorithm.policy
    obs, action_mask = env.reset()
    pi = policy.distribution(obs, action_mask)
    for u in (None, torch.rand(env.num_agents)):
        action, log_prob = policy.act(obs, action_mask, u)
        assert action.shape == (env.num_agents, len(env.nvec)) and torch.equal(pi.log_prob(action), log_prob)
        assert action_mask[(torch.arange(env.num_agents), *action.T)].all()
    assert torch.equal(policy.act(obs, action_mask)[0], pi.mode())
    if not policy.observes_price:
        context = obs[:, : env.context_dim]
        assert torch.equal(policy.action_values(context, action_mask), policy.action_values(obs, action_mask))
    if isinstance(policy, ValuePolicy):
        values = policy.action_values(obs, action_mask)
        assert torch.equal(values == -torch.inf, ~action_mask.flatten(1))


def test_an_auxiliary_model_predicts_a_probability_of_every_action():
    algorithm = make_algorithm("ppo")
    obs, _ = algorithm.env.reset()
    probability = algorithm.auxiliary.predict(obs)
    assert probability.shape == (algorithm.env.num_agents, *algorithm.env.nvec)
    assert ((probability > 0) & (probability < 1)).all()


@pytest.mark.parametrize("kind", [Algorithm, NetworkAlgorithm, VectorEnv, PricedEnv, LookaheadEnv])
def test_every_attribute_of_a_contract_is_documented(kind):
    """An attribute has a comment `#:` beside it, a method a docstring."""
    source = inspect.getsource(kind)
    body = source.split("def ")[0]
    for line in body.splitlines():
        declares = (
            line.startswith("    ")
            and not line.startswith("     ")
            and ": " in line
            and not line.lstrip().startswith(('"', "#", "An", "Under"))
        )
        if declares and line.split(":")[0].strip().isidentifier():
            assert "#:" in line, line
    for name, member in vars(kind).items():
        if not name.startswith("_") and callable(member):
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"


# ── evaluators ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_evaluator_says_what_it_is_known_by(name):
    env = make_env(name)
    evaluator: Evaluator = env.evaluation(env)
    assert isinstance(evaluator.headline, str) and "/" in evaluator.headline
    for method, arguments in (("validate", 1), ("evaluate", 2)):
        assert len(inspect.signature(getattr(evaluator, method)).parameters) == arguments
