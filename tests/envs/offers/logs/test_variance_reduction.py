"""Variance reduction of logged rewards: the potential, expected effects, the cost of states, and the exposure model."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from comparisons import weights
from configs import node
from envs.data_collection import UniformPolicy, rollouts
from envs.offers.logs import nuisance_models
from envs.offers.logs.nuisance_models import NuisanceModels, smearing
from envs.offers.logs.response_model import OutcomeLikelihood, exposure_response
from envs.offers.logs.variance_reduction import VarianceReduction
from envs.offers.world.customers import CHURNED
from offline_learners import CPU, SPEND, Tabular, logged, make, offers
from rlcore.offline.deduplicated import DeduplicatedMatrix
from rlcore.offline.logged_dataset import LoggedDataset
from toy_envs import train


@pytest.fixture(scope="module")
def chain():
    return logged(Tabular(64))


@pytest.fixture(scope="module")
def season():
    env = offers()
    return env, logged(env, 2400)


def churned(env, obs):
    return env.codec.decode_status(obs) == CHURNED


FEW = {"steps": 5, "model": {"steps": 5}, "likelihood": {"steps": 5}, "hazard": {"steps": 5}}
POTENTIAL = {"heuristic_mixing": 1.0, "steps": 600, "lr": 0.1, "decay": 0.0, "batch_size": 512, "target_every": 50}


def adjusted(env, log, **changes):
    """Adjusted rewards of a log by the shipped configuration, with some of its keys replaced."""
    variance_reduction = instantiate(
        {**node("../algo/variance_reduction/potential", "algo=cql"), **changes}, _convert_="all"
    )
    return variance_reduction(env, log, log.reward, 1.0, torch.Generator().manual_seed(0))


class Same:
    """A model of outcomes with one number for each of three actions, the same for all."""

    def __init__(self, *numbers):
        self.numbers = torch.tensor(numbers)

    def __call__(self, obs, action, outcome, actions, generator):
        return lambda x: self.numbers[:actions].expand(len(x), -1)[..., None]


class Fixed:
    """Probabilities of the outcomes of nothing and of contacts, and of being lost, the same for all."""

    def fit_hazard(self, *_):
        return lambda x: 0.2 - 0.1 * x[:, -1]

    def fit_response(self, *_):
        probs = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]])
        return lambda x, action: probs[(action > 0).long()]


@pytest.mark.long
def test_the_potential_is_the_value_of_the_first_action(chain):
    net = OmegaConf.merge(node("../algo/network/action_values"), {"hidden": []})
    free = adjusted(Tabular(4), chain, net=net, **POTENTIAL)
    time, place = torch.arange(30) // 6, torch.arange(30) % 6  # staying: .2 a step, and the place at the end
    value = 0.2 * (5 - time) + place
    at, following = chain.obs.argmax(1), chain.next_obs.argmax(1)
    expected = chain.reward + torch.where(chain.terminated, 0.0, value[following]) - value[at]
    often = torch.bincount(at, minlength=30)[at] > 200
    assert (free.reward - expected)[often].abs().max() < 0.1 and often.float().mean() > 0.9
    assert torch.equal(free.discount > 0, ~chain.terminated) and (free.weight == 1).all()


def test_the_potential_is_fitted_on_other_customers(season, monkeypatch):
    env, log = season
    fitted = []

    def fit(self, batch, rows, width, nvec, generator):
        customers = set(map(tuple, batch(rows)[0][:, : env.static_dim].tolist()))  # by their features
        fitted.append(customers)

        def value(x):  # at its own customers it would show
            return 1000.0 * torch.tensor([tuple(row) in customers for row in x[:, : env.static_dim].tolist()])

        return value

    monkeypatch.setattr(VarianceReduction, "fit_potential", fit)
    free = adjusted(env, log, likelihood=None)
    torch.testing.assert_close(free.reward[log.terminated], log.gross_reward[log.terminated])
    assert len(fitted[0] | fitted[1]) == 200 and not fitted[0] & fitted[1] and 90 < len(fitted[0]) < 110


def test_the_value_of_a_trip_is_a_mean_and_not_a_geometric_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator, dtype=torch.float64)
    y = torch.exp(1.0 + 0.5 * x + 0.8 * torch.randn(200_000, generator=generator, dtype=torch.float64))
    assert smearing(y, 1.0 + 0.5 * x).item() == pytest.approx(math.exp(0.8**2 / 2), rel=0.01)


def test_adjusted_rewards_are_the_expected_effects_of_decisions(season, monkeypatch):
    env, log = season
    monkeypatch.setattr(nuisance_models, "smearing", lambda *_: 1.0)  # the model is no fit of these trips
    monkeypatch.setattr(VarianceReduction, "fit_potential", lambda self, *_: lambda x: torch.full((len(x),), 10.0))
    size = 2.0
    free = adjusted(
        env, log, model=Same(math.log(size), 1.0, 3.0), likelihood=Fixed(), hazard=Fixed(), heuristic_mixing=0.7
    )
    lost, trip = churned(env, log.next_obs), log.outcomes["trips"] > 0
    there = ~churned(env, log.obs)
    assert torch.equal(lost[log.step < 11], ~there[log.step > 0]) and 0.02 < lost.float().mean() < 0.5
    chance = torch.where(there, torch.where(trip, 0.9, 0.8), 1.0)
    # the lost count as often as chance has it
    torch.testing.assert_close(free.weight, torch.where(lost, 0.0, 1 / chance))
    torch.testing.assert_close(free.discount, torch.where(log.terminated, 0.0, 0.7 * chance))
    came = 0.8 * (10 + math.log(size)), 1 + 0.9 * (10 + 1.0), 1 + 0.9 * (10 + 3.0)
    nothing, contact = (sum(p * x for p, x in zip(probs, came)) for probs in ((0.6, 0.4, 0.0), (0.5, 0.3, 0.2)))
    spend = 0.2 * env.world.catalogue.value[log.action // 5] + env.world.catalogue.cost[log.action % 5]
    expected = torch.where(log.action >= 5, size * (contact - nothing) - spend, 0.0)
    torch.testing.assert_close(free.reward, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.long
def test_a_deduplicated_log_teaches_the_same(season):
    env, log = season
    deduplicated = log.deduplicate(env.context_dim)
    assert isinstance(deduplicated.obs, DeduplicatedMatrix) and torch.equal(deduplicated[::3].obs[:], log[::3].obs)
    config = {
        "auxiliary": SPEND,
        "total_steps": 2560,
        "variance_reduction": OmegaConf.merge(node("../algo/variance_reduction/potential", "algo=cql"), FEW),
    }
    agents = [make(env, each, "bcq", keep="bcq", **config) for each in (log, deduplicated)]
    for agent in agents:
        train(agent)
    assert torch.equal(*(agent.replay.adjusted.reward for agent in agents)) and torch.equal(*map(weights, agents))


class Tired(Fixed):
    """A customer without contact makes a trip with probability .4, or .3 if tired; nobody is lost."""

    def __init__(self, tired):
        self.tired = tired

    def fit_hazard(self, *_):
        return lambda x: torch.zeros(len(x))

    def fit_response(self, *_):
        def probs(x, action):
            trip = torch.where(self.tired(x), 0.3, 0.4)
            alone = torch.stack((1 - trip, trip, torch.zeros_like(trip)), 1)
            return torch.where((action >= 5)[:, None], torch.tensor([0.5, 0.3, 0.2]), alone)

        return probs


def test_a_contact_costs_what_the_state_it_leaves_behind_costs_until_that_has_passed(season, monkeypatch):
    env, log = season
    monkeypatch.setattr(nuisance_models, "smearing", lambda *_: 1.0)  # the model is no fit of these trips
    monkeypatch.setattr(VarianceReduction, "fit_potential", lambda self, *_: lambda x: torch.zeros(len(x)))
    options = instantiate(
        {
            **node("../algo/variance_reduction/potential", "algo=cql"),
            "model": Same(0.0, 0.0, 0.0),
            "hazard": Fixed(),
            "likelihood": Tired(lambda x: env.codec.decode_state(x).fatigue > 0),
        },
        _convert_="all",
    )
    options.hazard = options.likelihood
    models = NuisanceModels(
        options, env, log, log.reward, 1.0, torch.arange(len(log)), torch.Generator().manual_seed(0)
    )
    got = models.adjusted_rewards(torch.arange(len(log))).reward
    state, following = (
        list(zip(*(x.tolist() for x in env.codec.decode_state(o)[1:]))) for o in (log.obs, log.next_obs)
    )
    kind, pair = (log.outcomes["trips"].long() + log.outcomes["redeemed"].long()).tolist(), log.action.tolist()
    counts, alone = {}, {}  # where contacts lead, of those who stay
    for now, then, k, a in zip(state, following, kind, pair):
        if then[2] != 2:
            counts.setdefault((now, k, a % 5 if a >= 5 else None), []).append(then)
            alone.setdefault(now, []).extend([then] if a < 5 else [])

    @cache
    def cost(now, weeks=12):
        following = alone.get(now, [])
        later = sum(cost(then, weeks - 1) for then in following) / max(len(following), 1) if weeks > 1 else 0.0
        return -0.1 * (now[0] > 0) + later

    def left(now, a, probs):
        paths = (counts.get((now, k, a % 5 if a >= 5 else None), []) for k in range(3))
        return sum(p * sum(map(cost, path)) / max(len(path), 1) for p, path in zip(probs, paths))

    values = env.world.catalogue
    for row in (log.action >= 5).nonzero()[::40, 0].tolist():
        now, a, trip = state[row], pair[row], 0.3 if state[row][0] else 0.4
        spend = 0.2 * values.value[a // 5].item() + values.cost[a % 5].item()
        expected = 0.5 - trip - spend + left(now, a, (0.5, 0.3, 0.2)) - left(now, 0, (1 - trip, trip, 0.0))
        assert got[row].item() == pytest.approx(expected, abs=1e-4)
    assert len(models.states.states) > 8 and not got[log.action < 5].any()


@pytest.mark.long
def test_where_states_are_too_many_to_count_rewards_are_against_the_rested():
    config = node("offers_full_information").copy()
    config.merge_with({"num_agents": 100, "population": {"reference_size": 1000}})
    config.observation = node("observation/history")
    env = instantiate(config, _convert_="all")(CPU, 0)
    env.use_realised_outcomes()
    log = logged(env, 1200)
    free = adjusted(env, log, **OmegaConf.merge(node("../algo/variance_reduction/potential", "algo=cql"), FEW))
    rested = (env.codec.without_contacts(log.obs) == log.obs).all(1) & (log.action < 5)
    assert free.reward.isfinite().all() and not free.reward[rested].any() and rested.any()
    assert free.reward[~rested].any() and free.discount.max() > 0.8  # not shortened


class Recorded(UniformPolicy):
    """The uniform policy, and a note of the expected profit of every pair."""

    def __init__(self):
        self.expected = []

    def probs(self, env, obs, mask):
        self.expected.append(env.expected_reward().flatten(1) + env.price[:, None] * env.expected_cost(None).flatten(1))
        return super().probs(env, obs, mask)


@pytest.mark.long
def test_where_nothing_lasts_adjusted_rewards_are_the_lift_of_profit():
    env, uniform = offers(4000, world=node("world/static")), Recorded()
    log = LoggedDataset.cat(
        list(rollouts(env, uniform, "uniform", 0, decisions=48_000, steps=1, all_propensities=False))
    )
    few = {
        "steps": 40,
        "model": {"steps": 80},
        "likelihood": {"steps": 500, "batch_size": 1024},
        "hazard": {"steps": 40},
    }
    few = {name: {"batch_size": 512, **part} if isinstance(part, dict) else part for name, part in few.items()}
    config = OmegaConf.merge(node("../algo/variance_reduction/potential", "algo=cql"), {"batch_size": 512, **few})
    reward, sent = adjusted(env, log, **config).reward, log.action >= 5
    expected = torch.stack(uniform.expected, 1).flatten(0, 1)
    lift = expected.gather(1, log.action[:, None])[:, 0] - expected[:, 0]

    def by_pair(x):
        return torch.stack([x[log.action == pair].mean() for pair in range(5, 30)])

    assert torch.corrcoef(torch.stack((by_pair(reward), by_pair(lift))))[0, 1] > 0.7
    assert reward[sent].std() < 0.33 * log.reward[sent].std()


def test_the_rested_are_the_same_customers_without_a_contact(season):
    env, log = season
    rested, first, end = env.codec.without_contacts(log.obs), env.static_dim + 6, env.context_dim - 12
    assert torch.equal(rested[:, :first], log.obs[:, :first]) and torch.equal(rested[:, end:], log.obs[:, end:])
    assert not env.codec.decode_status(rested).any() and env.codec.decode_status(log.obs).any()
    # at first nobody is tired, and models expect no discount
    untouched = (log.step == 0) & (log.obs[:, first + 4] == 1)
    assert torch.equal(rested[untouched], log.obs[untouched]) and 50 < untouched.sum() < 150


def test_who_has_not_seen_a_message_does_as_if_left_alone():
    logits = torch.randn(5, 2 + 3 + 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in range(5):
        p0, mu, *q = torch.sigmoid(logits[row, :5]).tolist()
        for offer in range(4):
            p1 = 1 / (1 + math.exp(-logits[row, 0] - logits[row, 5 + offer]))
            for channel in range(3):
                sees = q[channel] if offer else 0.0
                expected = [
                    sees * (1 - p1) + (1 - sees) * (1 - p0),
                    sees * p1 * (1 - mu) + (1 - sees) * p0,
                    sees * p1 * mu,
                ]
                got = exposure_response(logits[row : row + 1], torch.tensor([offer]), torch.tensor([channel]), (4, 3))
                assert got[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_response_is_how_often_things_came():
    g = torch.Generator().manual_seed(0)
    # nothing of two kinds, then offers 1 and 2 through two channels
    action = torch.randint(0, 6, (40_000,), generator=g)
    logits = torch.tensor([[-0.5, 0.8, 0.3, -0.6, 0.0, 1.0, 2.0]]).expand(40_000, -1)
    kind = torch.multinomial(exposure_response(logits, action // 2, action % 2, (3, 2)), 1, generator=g)[:, 0]
    likelihood = OutcomeLikelihood(hidden=[], activation=torch.nn.ReLU, lr=0.1, decay=0.0, steps=150, batch_size=2000)
    obs = torch.zeros(40_000, 1)
    rows = torch.arange(40_000)
    none = rows[:0]
    probs = likelihood.fit_response(lambda at: obs[at], action, kind, rows, (3, 2), none, g)(obs[:6], torch.arange(6))
    torch.testing.assert_close(
        probs, exposure_response(logits[:6], torch.arange(6) // 2, torch.arange(6) % 2, (3, 2)), atol=0.02, rtol=0
    )
    lost = torch.rand(40_000, generator=g) < 0.03
    assert likelihood.fit_hazard(lambda at: obs[at], lost, rows, g)(obs[:1]).item() == pytest.approx(
        lost.float().mean().item(), rel=0.1
    )
    with pytest.raises(ValueError, match="algo.variance_reduction.likelihood"):
        likelihood.fit_response(lambda at: obs[at], action, kind, rows, (6,), none, g)
