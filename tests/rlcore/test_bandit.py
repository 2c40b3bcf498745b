"""The bandit: its decisions, its memory, that it learns, resumes exactly, and clears a budget by its values."""

from __future__ import annotations

import io

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from comparisons import identical, weights
from configs import load, node
from envs.data_collection import UniformPolicy, rollouts
from envs.offers.planning.dynamic_program import action_values
from envs.offers.planning.state_values import VisitedStates
from envs.offers.policies.baselines import KnapsackPolicy
from envs.offers.policies.information import ORACLE
from envs.offers.policies.learned import ValueKnapsackPolicy
from envs.offers.world.customers import SUBSCRIBED
from envs.wheel_bandit import Wheel
from rlcore.action_values import GreedyPolicy
from rlcore.offline.logged_dataset import LoggedDataset
from toy_envs import Bandit, Chain, train

CPU = torch.device("cpu")
SMALL = {
    "network": {"hidden": [32, 32]},
    "num_steps": 4,
    "optimizer": {"lr": 0.01},
    "memory": 4096,
    "updates": 8,
    "batch_size": 128,
    "eval_every": 1000,
    "checkpoint_every": 1000,
    "auxiliary": None,
}


def make(env, iterations, *, seed=0, arm="epsilon_greedy", body="action_values", **changes):
    """Build the bandit from its YAML for some iterations: SMALL, then `changes`."""
    config = node("../algo/bandit", f"algo/exploration={arm}", f"algo/network={body}")
    small = {key: value for key, value in SMALL.items() if key != "network" or body == "action_values"}
    config = OmegaConf.merge(config, small, changes)
    config.total_steps = iterations * config.num_steps * env.num_agents
    return instantiate(config, _convert_="all")(env, seed)


def offers(agents=200, **changes):
    """The offers environment with season's customers drawn."""
    env = load("offers_full_information", CPU, 0, num_agents=agents, population={"reference_size": 1000}, **changes)
    env.reset()
    return env


def wheel(agents=8, seed=0, **changes):
    return Wheel(
        CPU,
        seed,
        **{"num_agents": agents, "delta": 0.9, "safe": 0.12, "plain": 0.1, "prize": 1.0, "noise": 0.05, **changes},
    )


def pairs(env, seed=0):
    """Valid actions [N, 2] drawn at random."""
    mask = env._action_mask().flatten(1).float()
    flat = torch.multinomial(mask, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    return torch.stack((flat // 5, flat % 5), -1), flat


# ── what the environment tells it ───────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("shaping", [False, True])
def test_profit_is_the_week_s_alone_and_before_the_price(shaping):
    env = offers(reward={"shaping": shaping, "churn_cost": 3.0, "fatigue_penalty": 0.7})
    for week in range(3):
        action, flat = pairs(env, week)
        nothing, contact = action_values(
            env.customers, env.world, week, VisitedStates(env.state, env.customers.alpha), 0.0, None
        )
        table = torch.cat((nothing.expand(5, -1), contact.flatten(0, 1)))
        alone = (env.state.status != 2) * nothing
        expected = torch.where(flat >= 5, table.gather(0, flat[None])[0], alone) - shaping * alone
        yardstick = env.expected_reward().flatten(1)
        price = env.price.clone()
        spend = env.expected_cost(None).flatten(1)
        step = env.step(action)
        torch.testing.assert_close(step.info["profit"], expected, atol=2e-5, rtol=1e-5)
        there = env.state.status == SUBSCRIBED  # before or after: both were subscribed then
        paid = spend.gather(1, flat[:, None])[:, 0]
        net = yardstick.gather(1, flat[:, None])[:, 0] - (nothing if shaping else 0.0)
        torch.testing.assert_close(net[there], (step.info["profit"] - price * paid)[there], atol=2e-5, rtol=1e-5)


@pytest.mark.long
def test_realised_profit_is_right_on_average():
    sums = torch.zeros(2)
    for seed in range(2):
        made = [
            load(
                "offers_full_information",
                CPU,
                seed,
                num_agents=20_000,
                population={"reference_size": 1000},
                reward={"outcomes": kind, "churn_cost": 3.0},
            )
            for kind in ("expected", "realised")
        ]
        for env in made:
            env.reset()
        action, _ = pairs(made[0], seed)
        expected, realised = (env.step(action).info["profit"] for env in made)
        difference = realised - expected
        sums += torch.stack((difference.mean(), difference.std() / 20_000**0.5))
    assert sums[0].abs() < 4 * sums[1]


@pytest.mark.slow
def test_the_price_is_charged_by_the_spend_that_was_learned():
    env = offers()
    agent = make(env, 1, num_steps=12, memory=10_000, auxiliary=node("../algo/auxiliary/redemption_model"))
    obs, _ = env.reset()
    context = obs[:, : env.context_dim]
    redeem, catalogue = agent.auxiliary.predict(context), env.world.catalogue
    charge = agent.action_cost(context, env.price).view(-1, 6, 5)
    for offer, channel in ((0, 0), (2, 1), (5, 4)):
        paid = catalogue.value[offer] * redeem[:, offer, channel] + catalogue.cost[channel] * (offer > 0)
        torch.testing.assert_close(charge[:, offer, channel], env.price * paid)
    agent.auxiliary = None
    torch.testing.assert_close(
        agent.action_cost(context, env.price), (env.price[:, None, None] * env.expected_cost(None)).flatten(1)
    )


def test_with_the_target_reward_it_learns_what_an_action_adds_to_all_weeks():
    """The reference is the dynamic program's A⁰; the default target, the week's profit, is another number."""
    remembered = {}
    for target in ("profit", "reward"):
        env = offers(reward={"shaping": True})
        agent = make(env, 1, num_steps=12, memory=2400, target=target)
        step, start = env.step, []
        env.step = lambda action, env=env, step=step, start=start: (start.append(env.state), step(action))[1]
        decisions, _ = agent.collect()
        action, reward = decisions.action[:200], decisions.reward[:200]  # of the first week
        states = VisitedStates(start[0], env.customers.alpha)
        there = start[0].status == SUBSCRIBED
        nothing, contact = action_values(env.customers, env.world, 0, states, 0.0, env.no_contact_values[1])
        table = torch.cat((nothing.expand(5, -1), contact.flatten(0, 1)))
        advantage = table.gather(0, action[None])[0] - nothing
        remembered[target] = (reward - advantage)[there & (action >= 5)].abs().amax()
    assert remembered["reward"] < 2e-4 and remembered["profit"] > 0.1
    assert "rollout/regret" not in agent.collect()[1]
    with pytest.raises(ValueError, match="^algo.target: the remembered decisions have reward, got profit"):
        make(env, 1, num_steps=12, memory=2400).load_state_dict(agent.state_dict())


@pytest.mark.parametrize("iterations", [4, 6])  # the last iteration rebuilds the posterior; it does not
def test_the_policy_that_is_deployed_has_a_posterior_of_the_final_features(iterations):
    agent = make(Chain(16), iterations, arm="neural_linear", network={"hidden": [8]}, exploration={"refit_every": 3})
    train(agent)
    remembered = agent.memory.rows()
    context, action, reward = remembered.context, remembered.action, remembered.reward
    features = agent.network.features(context).detach().double()
    mask = torch.ones(len(context), 6, dtype=torch.bool)
    predicted = agent.policy.action_values(context, mask)
    tried = action.unique().tolist()
    assert len(tried) > 1
    for a in tried:
        x, r = features[action == a], reward[action == a].double()
        precision = x.T @ x + agent.exploration.ridge * torch.eye(9, dtype=torch.float64)
        expected = features @ torch.linalg.solve(precision, x.T @ r)
        torch.testing.assert_close(predicted[:, a].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.long
# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("explore", ["epsilon_greedy", "squarecb", "neural_ucb", "neural_ts", "neural_linear"])
def test_every_explorer_learns_the_masked_bandit(explore):
    env = Bandit(64)
    changes = {"noise_scale": 0.1} if explore == "neural_linear" else {}
    agent = make(env, 60, arm=explore, network={"hidden": [32, 32], "normalize_obs": True}, exploration=changes)
    log = train(agent)
    assert env.invalid == 0 and log["rollout/reward"][0] < 0.6 * env.best()
    assert sum(log["rollout/reward"][-10:]) / 10 > 0.9 * env.best()


def test_regret_is_what_the_best_action_would_have_earned_more():
    env = wheel(2000)
    agent = make(env, 1, num_steps=1, arm="squarecb", exploration={"gamma": 0.0})  # uniform over five actions
    log = train(agent)
    # uniform: inside (.81 of the disk) four of five lose .02, beyond it three lose .9 and one .88
    expected = 0.81 * 0.8 * 0.02 + 0.19 * (3 * 0.9 + 0.88) / 5
    assert log["rollout/regret"][0] == pytest.approx(expected, abs=0.02)
    assert log["rollout/cumulative_regret"][0] == log["rollout/regret"][0]


@pytest.mark.long
def test_exploring_with_uncertainty_finds_the_prizes_and_greed_does_not():
    def regret(arm, seed, **changes):
        agent = make(wheel(seed=seed), 400, seed=seed, num_steps=1, arm=arm, optimizer={"lr": 0.001}, **changes)
        return train(agent)["rollout/cumulative_regret"][-1]

    greedy = [regret("epsilon_greedy", seed, exploration={"epsilon": 0.0}) for seed in range(2)]
    linear = [regret("neural_linear", seed, exploration={"noise_scale": 0.1}) for seed in range(2)]
    # always the safe action: 400 · .19 · .88 = 67
    assert sum(linear) < 0.6 * sum(greedy) and max(linear) < 20


@pytest.mark.long
def test_logistic_learns_the_probability_of_a_gain():
    env = Bandit(64)
    agent = make(env, 60, body="logistic", exploration={"epsilon": 1.0})
    train(agent)
    context, mask = env.reset()
    values = agent.policy.action_values(context, torch.ones_like(mask))
    assert ((0 < values) & (values < 1)).all()
    sign = (env.state[:, 0] > 0).long()
    odd = torch.tensor([0, 1, 1, 0, 0, 1])
    clear = env.state[:, 0].abs() > 0.8
    fits = odd == sign[:, None]
    assert (values[clear][fits[clear]] > 0.7).all() and (values[clear][~fits[clear]] < 0.3).all()


@pytest.mark.slow
# ── repeatability ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("explore", ["neural_ts", "neural_linear"])
def test_a_resumed_run_equals_an_uninterrupted_one(explore):
    def build(seed):
        return make(
            Chain(16, seed),
            4,
            seed=seed,
            arm=explore,
            auxiliary=node("../algo/auxiliary/redemption_model"),
            network={"hidden": [8], "normalize_obs": True},
        )

    file, whole, stopped, resumed = io.BytesIO(), build(0), build(0), build(7)
    log = train(whole)
    train(stopped, save=lambda: torch.save(stopped.state_dict(), file), should_stop=lambda: stopped.iteration == 2)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert stopped.iteration == resumed.iteration == 2 and not torch.equal(weights(resumed), weights(whole))
    assert identical(train(resumed).rows, log.rows[2:])
    assert identical(resumed.state_dict(), whole.state_dict())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="^algo.network: the bandit needs"):
        make(Bandit(8), 1, body="actor_critic")
    with pytest.raises(ValueError, match="^algo.memory: expected at least env.num_agents × algo.num_steps, 32"):
        make(Bandit(8), 1, memory=31)
    with pytest.raises(ValueError, match="^algo.network: explorers that go by gradients need .* not logistic$"):
        train(make(Bandit(8), 1, arm="neural_ucb", body="logistic"))


# ── clearing ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_perfect_model_of_the_week_is_the_myopic_knapsack():
    env = offers(evaluation={"customers": 60, "regression_customers": 300})
    judge = env.evaluation(env)
    market = judge.make_market(60, 1, "test", env.budget)
    state = market.initial_state

    def truth(context, action_mask=None):
        nothing, contact = action_values(
            market.customers, market.world, 0, VisitedStates(state, market.customers.alpha), 0.0, None
        )
        return torch.cat((nothing.expand(5, -1), contact.flatten(0, 1))).T

    policy = ValueKnapsackPolicy(
        GreedyPolicy((6, 5), truth, None, observes_price=False),
        None,
        env.codec,
        market.customers,
        market.world,
        market.features,
    )
    allowed = market.contact_policy(state.status == SUBSCRIBED, [])
    allowed = allowed._replace(memory=env.codec.start_memory(market.features))
    myopic = KnapsackPolicy(market.customers, market.world, ORACLE, values=None, fee=0.0)
    ours, theirs = policy.increments(0, state, allowed), myopic.increments(0, state, allowed)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    charged = KnapsackPolicy(market.customers, market.world, ORACLE, values=None, fee=0.7)
    for a, b in zip(policy.with_fee(0.7).increments(0, state, allowed), charged.increments(0, state, allowed)):
        torch.testing.assert_close(a, b)
    heedless = policy.without_budget().increments(0, state, allowed)
    valid = market.world.catalogue.valid.flatten()
    assert torch.equal(heedless.action[:, 0], truth(None).masked_fill(~valid, -torch.inf).argmax(1))
    assert (heedless.spend == 0).all() and policy.keeps_budget


@pytest.mark.long
def test_it_is_as_good_as_the_myopic_optimum_where_nothing_lasts():
    env = load(
        "offers_full_information",
        CPU,
        0,
        num_agents=1000,
        world={"disabled_effects": list(node("world/static").disabled_effects)},
        evaluation={"customers": 300, "seasons": 1, "validation": 300, "tuning_customers": 100},
    )
    judge = env.evaluation(env)
    agent = instantiate(
        OmegaConf.merge(node("../algo/bandit"), {"total_steps": 240_000, "updates": 12}), _convert_="all"
    )(env, 0)
    train(agent)
    result = judge.validate(agent)  # the myopic optimum earns 1, the trade's uplift rank .76
    assert result["validation/score"] > 0.93 and 0.9 < result["validation/spend_ratio"] < 1.1


@pytest.mark.long
def test_it_learns_offline_what_it_would_by_acting():
    env = wheel(64)
    log = LoggedDataset.cat(
        list(rollouts(env, UniformPolicy(), "uniform", 0, decisions=12_800, steps=8, all_propensities=False))
    )
    agent = make(wheel(64), 60, num_steps=4, memory=12_800)
    agent.set_dataset(log)
    before = agent.env.context.clone()
    train(agent)
    assert torch.equal(agent.env.context, before)  # it did not act
    good = wheel(2000, seed=9)
    got = good.expected_reward().gather(1, agent.policy.act(good.context, good.everything)[0])[:, 0]
    best = good.expected_reward().amax(1)
    assert (best - got).mean() < 0.02 < (best - 0.12).mean() - 0.02
    # … and after half the way, resumed, the same
    half = make(wheel(64), 60, num_steps=4, memory=12_800)
    half.set_dataset(log)
    train(half, should_stop=lambda: half.iteration == 30)
    again = make(wheel(64), 60, num_steps=4, memory=12_800, seed=0)
    again.set_dataset(log)
    again.load_state_dict(half.state_dict())
    train(again)
    assert identical(weights(again), weights(agent))


def test_its_share_on_a_log_is_all_on_what_pays_at_the_price():
    env = offers(50)
    agent = make(env, 1, auxiliary=node("../algo/auxiliary/redemption_model"), num_steps=12, memory=600)
    obs, mask = env.reset()
    probs = agent.policy.distribution(obs, mask).probs
    context = obs[:, : env.context_dim]
    worth = agent.network(context) - env.price[:, None] * env.expected_cost(agent.auxiliary.predict(context)).flatten(1)
    chosen = worth.masked_fill(~mask.flatten(1), -torch.inf).argmax(1)
    assert torch.equal(probs, torch.nn.functional.one_hot(chosen, 30).float())
    with pytest.raises(ValueError, match="without a model of what actions cost"):
        make(env, 1, num_steps=12, memory=600).policy.distribution(obs, mask)
