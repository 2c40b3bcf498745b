"""Offline learners: losses, limits, known values, potentials that change no rank, and the effect of prices."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from comparisons import identical, weights
from configs import node
from envs.offers.logs.variance_reduction import VarianceReduction
from envs.offers.policies.learned import PriceGridPolicy, ValueKnapsackPolicy
from envs.offers.world.customers import CHURNED, SUBSCRIBED
from offline_learners import SPEND, Tabular, logged, make, offers
from reference_offline import bcq_loss, chain_values, cql_loss, target
from rlcore.action_values import FactoredActionValues, GreedyPolicy
from rlcore.offline.adjusted_rewards import unadjusted
from rlcore.offline.constraints import (
    BCQConstraint,
    DecisionBatch,
    behaviour_cloning,
    cql_penalty,
    double_target,
    supported,
    td_loss,
)
from rlcore.offline.log_files import write_log
from toy_envs import Chain, Endless, ppo_config, train


@pytest.fixture(scope="module")
def chain():
    return logged(Tabular(64))


@pytest.fixture(scope="module")
def season():
    env = offers()
    return env, logged(env, 2400)


def churned(env, obs):
    return env.codec.decode_status(obs) == CHURNED


def batch(seed=0, rows=40, pairs=7):
    """Tables, masks with at least one valid pair, valid actions, rewards and ends, float64."""
    g = torch.Generator().manual_seed(seed)
    q, online, frozen, logits = (torch.randn(rows, pairs, generator=g, dtype=torch.float64) for _ in range(4))
    mask, next_mask = (torch.rand(rows, pairs, generator=g) < 0.6 for _ in range(2))
    mask[:, 0] = next_mask[:, 0] = True
    action = torch.multinomial(mask.float(), 1, generator=g)[:, 0]
    reward, ends = torch.randn(rows, generator=g, dtype=torch.float64), torch.rand(rows, generator=g) < 0.3
    return SimpleNamespace(
        q=q,
        online=online,
        frozen=frozen,
        logits=logits,
        mask=mask,
        next_mask=next_mask,
        action=action,
        reward=reward,
        ends=ends,
    )


# ── formulas ────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9, 1.0])
def test_losses_equal_the_papers_one_float_at_a_time(threshold):
    b = batch()
    goal = double_target(
        b.reward, 0.9 * (~b.ends).double(), b.online, b.frozen, 0.0, supported(b.logits, b.next_mask, threshold)
    )
    rows = [x.tolist() for x in (b.reward, b.ends, b.online, b.frozen, b.logits, b.next_mask)]
    expected = [target(*row, gamma=0.9, threshold=threshold) for row in zip(*rows)]
    torch.testing.assert_close(goal, torch.tensor(expected, dtype=torch.float64))
    taken, ones = b.q.gather(1, b.action[:, None])[:, 0], torch.ones(len(b.q), dtype=torch.float64)
    mine = td_loss(taken, goal, ones, 1.0) + behaviour_cloning(b.logits, b.mask, b.action, 0.01)
    rows = b.q.tolist(), b.logits.tolist(), b.mask.tolist(), b.action.tolist(), expected
    assert mine.item() == pytest.approx(bcq_loss(*rows, penalty=0.01, delta=1.0), rel=1e-12)
    mine = td_loss(taken, goal, ones, None) + 0.7 * cql_penalty(b.q, b.mask, b.action)
    assert mine.item() == pytest.approx(cql_loss(*rows, alpha=0.7, delta=None), rel=1e-12)


@pytest.mark.parametrize("name", ["BCQ", "CQL"])
def test_losses_equal_those_of_d3rlpy(name):
    pytest.importorskip("d3rlpy")
    from d3rlpy.algos import DiscreteBCQConfig, DiscreteCQLConfig
    from d3rlpy.torch_utility import TorchMiniBatch

    g, n, pairs = torch.Generator().manual_seed(1), 32, 5
    config = DiscreteBCQConfig(action_flexibility=0.9, beta=0.5) if name == "BCQ" else DiscreteCQLConfig(alpha=0.8)
    theirs = config.create(device="cpu:0")
    torch.manual_seed(0)
    theirs.create_impl((4,), pairs)
    impl, everything = theirs.impl, torch.ones(n, pairs, dtype=torch.bool)
    for parameter in impl.modules.targ_q_funcs.parameters():  # no longer the online network's
        torch.nn.init.normal_(parameter, std=0.2, generator=g)
    obs, following = (torch.randn(n, 4, generator=g) for _ in range(2))
    action, reward = torch.randint(pairs, (n,), generator=g), torch.randn(n, generator=g)
    ends = torch.rand(n, generator=g) < 0.3
    column = {"actions": action[:, None], "rewards": reward[:, None], "terminals": ends[:, None].float()}
    values = {field: None for field in TorchMiniBatch.__dataclass_fields__} | {
        "observations": obs,
        "next_observations": following,
        "intervals": torch.ones(n, 1),
        **column,
    }
    minibatch = TorchMiniBatch(**values)
    with torch.no_grad():
        loss = impl.compute_loss(minibatch, impl.compute_target(minibatch)).loss
        online, frozen = (net[0](following).q_value for net in (impl.modules.q_funcs, impl.modules.targ_q_funcs))
        q = impl.modules.q_funcs[0](obs).q_value
        allowed = everything
        if name == "BCQ":
            allowed = supported(impl.modules.imitator(following).logits, everything, 0.9)
            assert 0.2 < allowed.float().mean() < 0.9
            kept = behaviour_cloning(impl.modules.imitator(obs).logits, everything, action, 0.5)
        else:
            kept = 0.8 * cql_penalty(q, everything, action)
        goal = double_target(reward, config.gamma * ~ends, online, frozen, 0.0, allowed)
        mine = td_loss(q.gather(1, action[:, None])[:, 0], goal, torch.ones(n), 1.0) + kept
    assert mine.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.long
# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "keep, kept", [("bcq", {"threshold": 0.0}), ("bcq", {"threshold": 1e-30}), ("cql", {"alpha": 0.0})]
)
def test_without_what_keeps_them_they_are_double_dqn(chain, keep, kept):
    plain, limit = make(Tabular(4), chain, keep=None), make(Tabular(4), chain, keep=keep, kept=kept)
    train(plain), train(limit)
    assert torch.equal(weights(plain), weights(limit))
    kept = {"threshold": 0.9} if keep == "bcq" else {"alpha": 1.0}
    other = make(Tabular(4), chain, keep=keep, kept=kept)
    train(other)
    assert not torch.equal(weights(plain), weights(other))


@pytest.mark.slow
def test_at_threshold_one_bcq_does_what_the_log_mostly_does(chain):
    # of what is valid at a place, the log is made to take the last pair most of the time
    often = chain.action == (chain.action_mask * torch.arange(6)).argmax(1)
    log = chain[(often | (torch.arange(len(chain)) % 4 == 0)).nonzero()[:, 0]]
    agent = make(Tabular(4), log, keep="bcq", kept={"threshold": 1.0})
    train(agent)
    # whatever Q says
    agent.network.body[-1].bias.data += 100 * torch.randn(6, generator=torch.Generator().manual_seed(0))
    mode = (log.action_mask * torch.arange(6)).argmax(1)
    assert torch.equal(agent.policy.distribution(log.obs, log.action_mask).probs.argmax(1), mode)


def test_bcqs_support_is_what_the_log_does_at_any_price():
    """Half of the log was made at a low price, where it contacts, and half at a high one: both actions have support.

    Values are learned at prices drawn anew, here far above those of the log, and are asked for at such prices.
    """

    class Cloned(nn.Linear):
        def update_normalization(self, obs):
            return

    torch.manual_seed(0)
    constraint = BCQConstraint(1, (2,), network=lambda obs_dim, nvec: Cloned(obs_dim, *nvec), threshold=0.3, penalty=0)
    optimizer = torch.optim.Adam(constraint.parameters(), lr=0.05)
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(512, 2, dtype=torch.bool)
    for _ in range(300):
        dear = torch.rand(512, generator=g) < 0.5
        drawn = 3 + 2 * torch.rand(512, 1, generator=g)
        batch = DecisionBatch(
            obs=drawn,
            action_mask=mask,
            action=(~dear).long(),
            target=torch.zeros(512),
            weight=torch.ones(512),
            logged_obs=1.0 + dear.float()[:, None],
            logged_cost=torch.zeros(512, 2),
        )
        optimizer.zero_grad()
        constraint.loss(batch, constraint.network).backward()
        optimizer.step()
    assert constraint.allowed(torch.linspace(3, 5, 9)[:, None], mask[:9]).all()


@pytest.mark.parametrize("keep", ["bcq", "cql"])
def test_what_is_not_valid_gets_no_gradient_and_has_no_say(chain, keep):
    agent = make(Tabular(4), chain, keep=keep)
    batch = agent.compute_targets(torch.arange(200))
    never = ~(chain.action_mask | chain.next_action_mask).any(0)
    assert never.nonzero()[:, 0].tolist() == [1]
    loss, _ = agent.loss(batch)
    loss.backward()
    nets = [agent.network, agent.constraint.network] if keep == "bcq" else [agent.network]
    for net in nets:
        assert not net.body[-1].weight.grad[never].any() and net.body[-1].weight.grad[~never].abs().sum(1).all()
        assert not net.body[-1].bias.grad[never].any()
        net.body[-1].bias.data[never] = 1e6
    agent.target_network.body[-1].bias.data[never] = 1e6
    torch.testing.assert_close(agent.compute_targets(torch.arange(200)).target, batch.target)
    torch.testing.assert_close(agent.loss(batch)[0], loss)


# ── what they learn ─────────────────────────────────────────────────────────────────────────────────────────────────
TABLE = {
    "network": {"hidden": [], "gain": 0.01},
    "optimizer": {"lr": 0.1},
    "total_steps": 768_000,
    "updates": 20,
    "batch_size": 512,
    "target_every": 50,
}


def tabular(chain, **changes):
    """Train a table on the chain's log; return values [30, 6] of what the log has, and where it has them."""
    agent = make(Tabular(4), chain, **{**TABLE, "lr_schedule": node("../algo/lr_schedule/linear"), **changes})
    train(agent)
    seen = torch.bincount(chain.obs.argmax(1) * 6 + chain.action, minlength=180).view(30, 6) >= 20
    return agent.network(torch.eye(30)).detach(), seen, agent


@pytest.mark.long
@pytest.mark.parametrize("keep, kept", [("bcq", {"threshold": 0.05}), ("cql", {"alpha": 0.0})])
def test_a_table_reaches_the_known_values(chain, keep, kept):
    values, seen, _ = tabular(chain, keep=keep, kept=kept)
    known = chain_values()
    wrong = [(values[t * 6 + p, a] - q).abs().item() for (t, p, a), q in known.items() if seen[t * 6 + p, a]]
    assert len(wrong) > 40 and max(wrong) < 0.005, max(wrong)


@pytest.mark.long
def test_a_potential_changes_values_by_itself_and_no_rank(chain, monkeypatch):
    phi = torch.randn(30, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(VarianceReduction, "fit_potential", lambda self, *_: lambda obs: obs @ phi)
    values, seen, _ = tabular(chain, kept={"alpha": 0.0})
    shifted, *_ = tabular(
        chain,
        kept={"alpha": 0.0},
        variance_reduction={**node("../algo/variance_reduction/potential", "algo=cql"), "heuristic_mixing": 1.0},
    )
    assert (shifted + phi[:, None] - values)[seen].abs().max() < 0.01


def test_a_time_limit_is_not_an_end():
    env = Endless(32)
    agent = make(
        env, logged(env, 4000), keep=None, gamma=0.8, **{**TABLE, "lr_schedule": node("../algo/lr_schedule/linear")}
    )
    train(agent)
    torch.testing.assert_close(
        agent.network(torch.eye(2)).detach(), torch.tensor([[0.0, 0.0], [5.0, 5.0]]), atol=0.05, rtol=0
    )


def test_a_resumed_run_equals_an_uninterrupted_one(chain):
    def fresh():
        return make(Tabular(4), chain, keep="bcq", lr_schedule=node("../algo/lr_schedule/linear"))

    whole, first, second = fresh(), fresh(), fresh()
    train(whole)
    count = iter(range(100))
    train(first, should_stop=lambda: next(count) == 3)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    train(second)
    states = [{name: x for name, x in agent.state_dict().items() if name != "kl"} for agent in (whole, second)]
    assert identical(*states)  # there is no KL: it is nan, which equals nothing


# ── prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_prices_drawn_anew_are_those_of_a_season():
    env = offers(20_000)
    week = torch.full((20_000,), 4)
    price, steer, following, then = env.sample_prices(week, torch.Generator().manual_seed(0))
    for drawn, seen, t in ((price, steer, 4), (following, then, 5)):
        own = torch.stack((env.prices[t].log(), env.drift)), torch.stack((drawn.log(), _drift(env, seen)))
        torch.testing.assert_close(own[0].mean(1), own[1].mean(1), atol=0.04, rtol=0)
        torch.testing.assert_close(own[0].cov(), own[1].cov(), atol=0.04, rtol=0.05)
        torch.testing.assert_close(seen, env.codec.encode_price(drawn, _drift(env, seen)))
    step = (following / price).log() - _drift(env, steer)
    assert step.mean().abs() < 0.005 and step.std() == pytest.approx(2**0.5 * env.price_noise, rel=0.05)


def _drift(env, seen):
    low, high = env.drift_range
    return seen[:, 1] * (high - low) / 12**0.5 + (low + high) / 2


def test_goals_are_worth_at_the_price_drawn(season):
    env, log = season
    agent = make(env, log, keep=None, auxiliary=SPEND)
    rows = torch.arange(400)
    state = agent.generator.get_state()
    made = agent.compute_targets(rows)
    agent.generator.set_state(state)
    _, steer, following, then = env.sample_prices(log.step[rows], agent.generator)
    torch.testing.assert_close(made.obs, torch.cat((log.obs[rows, : env.context_dim], steer), 1))
    torch.testing.assert_close(made.logged_obs, log.obs[rows])
    spend = env.world.catalogue.spend(
        torch.arange(6)[:, None], torch.arange(5), agent.auxiliary.predict(log.obs[rows])
    ).flatten(1)
    torch.testing.assert_close(made.logged_cost, log.price[rows, None] * spend)
    next_obs = torch.cat((log.next_obs[rows, : env.context_dim], then), 1)
    spend = env.world.catalogue.spend(
        torch.arange(6)[:, None], torch.arange(5), agent.auxiliary.predict(next_obs)
    ).flatten(1)
    best = (
        (agent.network(next_obs) - following[:, None] * spend)
        .masked_fill(~log.next_action_mask[rows], -torch.inf)
        .amax(1)
    )
    # at first the target network is the same
    expected = log.gross_reward[rows] + torch.where(log.terminated[rows], 0.0, best)
    torch.testing.assert_close(made.target, expected)


def test_values_of_a_price_clear_a_budget_as_the_exact_knapsack_does():
    env = offers(evaluation={"price_grid": {"low": 0.01, "high": 200.0, "points": 96}})
    judge = env.evaluation(env)
    market = judge.make_market(300, 1, "test", env.budget)
    head = torch.randn(env.context_dim, 30, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 8, 30)
    setting = None, env.codec, market.customers, judge.world, market.features
    exact = ValueKnapsackPolicy(GreedyPolicy((6, 5), lambda x, mask: x @ head, None, observes_price=False), *setting)
    values = GreedyPolicy((6, 5), lambda obs, mask: obs[:, : env.context_dim] @ head, None, observes_price=True)
    priced = PriceGridPolicy(values, *setting, prices=judge.prices, drift=0.0)
    allowed = market.contact_policy(market.initial_state.status == SUBSCRIBED, [])
    allowed = allowed._replace(memory=env.codec.start_memory(market.features))
    context, spend = exact.context_and_spend(slice(None), 0, market.initial_state, allowed)
    worth = (context @ head).masked_fill(~allowed.action_mask, -torch.inf).double()
    for price in (0.5, 3.0, 20.0):
        earned = []
        for policy in (exact, priced):
            steps = policy.increments(0, market.initial_state, allowed)
            taken = (steps.price >= price).sum(1)
            action = torch.cat((torch.zeros_like(steps.action[:, :1]), steps.action), 1)
            if policy is priced:  # steps of the grid: the last that is one
                place = torch.arange(1, steps.price.shape[1] + 1) * (steps.price >= price)
                taken = place.amax(1)
            action = action.gather(1, taken[:, None])
            earned.append((worth - price * spend).gather(1, action).sum())
        best = (worth - price * spend).amax(1).sum()
        assert earned[0] == pytest.approx(best.item(), rel=1e-6) and earned[1] == pytest.approx(best.item(), rel=2e-3)


def test_what_cannot_be_learned_from_is_refused_in_one_line(season):
    env, log = season
    with pytest.raises(ValueError, match="log: expected next_state_"):
        make(env, replace(log, next_obs=None, next_action_mask=None), auxiliary=SPEND)
    with pytest.raises(ValueError, match="algo.auxiliary"):
        make(env, log)
    with pytest.raises(ValueError, match="log: no column 'redeemed', which algo.auxiliary learns from"):
        make(env, replace(log, outcomes={"trips": log.outcomes["trips"]}), auxiliary=SPEND)
    adjusted = {"auxiliary": SPEND, "variance_reduction": node("../algo/variance_reduction/potential", "algo=cql")}
    with pytest.raises(ValueError, match="log: no column 'trips', which algo.variance_reduction learns from"):
        make(env, replace(log, outcomes={"redeemed": log.outcomes["redeemed"]}), **adjusted)
    config = {**node("../algo/cql"), "network": node("../algo/network/actor_critic")}
    with pytest.raises(ValueError, match="algo.network"):
        instantiate(config, _convert_="all")(env, 0)
    with pytest.raises(ValueError, match="algo.behaviour_constraint.threshold: .* got 1.5"):
        make(env, log, auxiliary=SPEND, keep="bcq", kept={"threshold": 1.5})
    agent = make(env, log, auxiliary=SPEND)
    agent.replay = None
    with pytest.raises(ValueError, match="log: expected the path"):
        train(agent)


def test_several_weeks_of_a_file_without_next_states_are_refused(season, tmp_path):
    pytest.importorskip("pyarrow")
    env, log = season
    without = {"next_obs": None, "next_action_mask": None, "terminated": torch.ones_like(log.terminated)}
    for kept, is_refused in ((log.step < 2, True), (log.step == 1, False)):
        write_log(tmp_path / "log.parquet", [replace(log, **without)[kept]])
        read = env.read_log(str(tmp_path / "log.parquet"), "train")
        if is_refused:
            with pytest.raises(ValueError, match="log: expected next_state_.* where an episode has several steps$"):
                make(env, read, auxiliary=SPEND)
        else:
            assert make(env, read, auxiliary=SPEND).replay.data is read


def test_next_prices_are_those_observed_whatever_the_order_of_rows(season):
    env, log = season
    shuffled = log[torch.randperm(len(log), generator=torch.Generator().manual_seed(0))]
    in_order, mixed = (make(env, x, auxiliary=SPEND, relabel=False) for x in (log, shuffled))
    at = torch.arange(0, len(log), 7)
    where = shuffled.row.argsort()[at]
    assert torch.equal(shuffled.row[where], log.row[at])
    torch.testing.assert_close(mixed.compute_targets(where).target, in_order.compute_targets(at).target)


@pytest.mark.parametrize("keep", ["bcq", "cql"])
def test_all_networks_normalise_alike(chain, keep):
    kept = {"network": {"normalize_obs": True}} if keep == "bcq" else None
    agent = make(Tabular(4), chain, keep=keep, kept=kept, network={"normalize_obs": True})
    networks = [agent.network, agent.target_network, *([agent.constraint.network] if keep == "bcq" else [])]
    for network in networks:
        torch.testing.assert_close(network.normalize.mean, chain.obs.mean(0))
        assert network.normalize.count == len(chain)


def test_folds_of_the_models_depend_on_no_stream_that_drew_a_log(chain):
    seen = []

    def adjust(env, data, reward, gamma, generator):
        seen.append(torch.rand(5, generator=generator))
        return unadjusted(env, data, reward, gamma, generator)

    agent = make(Tabular(4), chain, seed=3)
    for seed in (3, 3, 4):
        agent.seed, agent.variance_reduction = seed, adjust
        agent.set_dataset(chain)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    for stream in (2 * 3, 2 * 3 + 1):  # of an environment, of actions and minibatches
        assert not torch.equal(seen[0], torch.rand(5, generator=torch.Generator().manual_seed(stream)))


# ── offline to online ───────────────────────────────────────────────────────────────────────────────────────────────
def test_the_price_is_read_from_observations(season):
    env, log = season
    torch.testing.assert_close(env.decode_price(log.obs), log.price, rtol=1e-4, atol=0)


def make_student(env, iterations, teacher, **changes):
    """Build PPO that first imitates another algorithm's policy."""
    config = {**ppo_config(env, iterations), "_target_": "rlcore.distillation.DistilledPPO", **changes}
    return instantiate(config, _convert_="all")(env, 0, teacher=lambda env: teacher.policy)


def test_ppo_starts_from_what_its_teacher_prefers(chain):
    teacher = make(
        Tabular(4),
        chain,
        keep="bcq",
        kept={"threshold": 0.05},
        **{**TABLE, "total_steps": 384_000, "lr_schedule": node("../algo/lr_schedule/linear")},
    )
    train(teacher)
    env = Tabular(64)
    ppo = make_student(env, 30, teacher, distill_iterations=30, temperature=0.02)
    log = train(ppo)
    assert log["losses/imitation"][-1] < 0.2 * log["losses/imitation"][0] and env.invalid == 0
    assert sum(log["rollout/reward"][-3:]) / 3 > 0.9 * Chain.best / 5  # a step's share of the best return
    assert "losses/policy_loss" not in log.rows[-1]
    ppo = make_student(Tabular(64), 3, teacher, distill_iterations=2, temperature=1.0)
    assert ["losses/policy_loss" in row for row in train(ppo).rows] == [False, False, True]


def test_factored_values_are_sums_of_products():
    torch.manual_seed(0)
    net = FactoredActionValues(
        3, (6, 5), rank=2, hidden=[8], activation=torch.nn.ReLU, gain=1.0, normalize_obs=False, clip_obs=10.0
    )
    x = torch.randn(4, 3)
    out, table = net.body(x), net(x).view(4, 6, 5)
    for b in range(4):
        for offer in range(6):
            for channel in range(5):
                terms = (out[b, 1 + 11 * k + offer] * out[b, 1 + 11 * k + 6 + channel] for k in range(2))
                assert table[b, offer, channel].item() == pytest.approx(
                    (out[b, 0] + (sum(terms) if offer else 0)).item(), abs=1e-5
                )
