"""The neural twin: histories by definition, valid responses, the world itself where networks are its equations."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from configs import load, node
from envs.offers.neural_twin.counterfactual import Counterfactual
from envs.offers.neural_twin.customers import NeuralCustomers, NeuralMember, Predictions, treatments_by_value
from envs.offers.neural_twin.env import NeuralTwinEnv
from envs.offers.neural_twin.response_models import TRIP, ExposureLikelihood, OtherOutcomes, ValidProbabilities
from envs.offers.planning.dynamic_program import no_contact_values
from envs.offers.populations.base import theta_from_matrix
from envs.offers.world.history import History, column_names
from envs.offers.world.response import outcome
from small_offers import random_log, random_season
from stored import save_state
from toy_envs import part, train

CPU, HALF_LIVES = torch.device("cpu"), [1.0, 3.0]
STATIC = node("world/static").disabled_effects


def opened(kind, **changes):
    """conf/env/KIND.yaml under the history view, with some keys changed."""
    config = node(kind).copy()
    OmegaConf.set_struct(config, False)
    config.observation = changes.pop("observation", node("observation/history"))
    return OmegaConf.merge(config, {"num_agents": 300, **changes})


def environment(kind="offers_full_information", seed=0, **changes):
    """An offers environment of a few customers under the history view, with some keys changed."""
    config = opened(kind, **changes)
    return instantiate(config, _convert_="all")(CPU, seed)


def neural(env, members=1, **changes):
    """A neural twin of an environment, unfitted, with some keys of conf/algo/twin/neural.yaml changed."""
    config = part("twin", twin=None, members=members)
    config.twin = OmegaConf.merge(node("../algo/twin/neural", "algo=twin"), {"half_lives": HALF_LIVES}, changes)
    return config, instantiate(config, _convert_="all")(env, 0)


def scalar_columns(catalogue, weeks, half_lives):
    """The columns of one customer's weeks (offer, channel, bought, redeemed), by a loop."""
    found = []
    for halving in half_lives:
        keep = 0.5 ** (1 / halving)
        sums = [0.0] * 6
        for offer, channel, bought, redeemed in weeks:
            cost = catalogue.cost[channel].item() * (offer > 0) + catalogue.value[offer].item() * redeemed
            came = (1.0, offer > 0, (offer > 0) * catalogue.attention[channel].item(), bought, redeemed, cost)
            sums = [keep * s + (1 - keep) * x for s, x in zip(sums, came)]
        found += sums
    for at in (lambda week: week[0] > 0, lambda week: week[2]):
        ago = [a for a, week in enumerate(reversed(weeks), 1) if at(week)]
        found.append(1 / ago[0] if ago else 0.0)
    return found


def test_columns_are_those_of_a_slow_loop(make_catalogue):
    catalogue, g = make_catalogue(), torch.Generator().manual_seed(0)
    history, weeks = History.start(torch.zeros(20, dtype=torch.long), torch.float64), [[] for _ in range(20)]
    for _ in range(9):
        wanted = torch.tensor([scalar_columns(catalogue, w, HALF_LIVES) for w in weeks], dtype=torch.float64)
        torch.testing.assert_close(history.columns(HALF_LIVES), wanted, atol=1e-6, rtol=1e-6)
        offer, channel = (torch.randint(n, (20,), generator=g) for n in (6, 5))
        bought, redeemed = torch.rand(20, generator=g) < 0.4, torch.rand(20, generator=g) < 0.2
        history = history.after(history.status, catalogue, offer, channel, bought, redeemed)
        for w, *came in zip(weeks, *(x.tolist() for x in (offer, channel, bought, redeemed))):
            w.append(came)
    assert history.columns(HALF_LIVES).shape[1] == len(column_names(HALF_LIVES)) and len(history.take(slice(3))) == 3


def test_of_a_forecast_columns_are_the_expected_ones(make_catalogue):
    """All 2^4 ways that four weeks can go, weighed by their probabilities."""
    catalogue, p = make_catalogue(), [0.3, 0.9, 0.5, 0.2]
    zero = torch.zeros(1, dtype=torch.long)

    def lived(weeks):
        history = History.start(zero, torch.float64)
        for x in weeks:
            history = history.after(zero, catalogue, zero, zero, torch.tensor([x]), zero)
        return history.columns(HALF_LIVES)

    total = 0.0
    for k in range(16):
        bits = [float(k >> i & 1) for i in range(4)]
        total += lived(bits) * torch.tensor([q if b else 1 - q for q, b in zip(p, bits)], dtype=torch.float64).prod()
    torch.testing.assert_close(lived(p), total)


@pytest.mark.slow
def test_a_panel_lays_out_what_the_environment_saw():
    """In a log of the history view, the observed columns follow from the logged outcomes."""
    env = environment(num_agents=40)
    log = random_season(env)
    assert isinstance(env.codec.dynamics_names, list) and env.codec.hides_state
    _, model = neural(env, half_lives=env.codec.half_lives)
    found = model.twin.to_panel(log[torch.randperm(len(log), generator=torch.Generator().manual_seed(1))], env)
    history = slice(0, len(column_names(env.codec.half_lives)))  # the season's sums follow
    torch.testing.assert_close(found.inputs[env.static_dim : -1], found.dynamics[history])
    torch.testing.assert_close(found.inputs[-1], env.world.season.log()[:, None].expand(12, 40))
    with pytest.raises(ValueError, match="column 'week': expected all weeks of a season from the first"):
        model.twin.to_panel(log[log.step != 3], env)


class Equations(nn.Module):
    """The world's own probabilities in place of a member, where they do not depend on hidden states."""

    def __init__(self, env):
        super().__init__()
        self.population, self.world, self.static = env.population, env.world, env.static_dim

    def forward(self, inputs):
        z = inputs[:, : self.static].double() @ self.population.mixing.T
        c = self.world.inhabit(theta_from_matrix(self.population.mean + self.population.std * z))
        season, none = inputs[0, -1].exp(), torch.zeros(len(inputs))
        week = (self.world.season - season).abs().argmin().item()
        channels = len(self.world.catalogue.channels)
        trips, redeemed = [], []
        for a in range(26):
            offer, channel = divmod(a - 1 + channels, channels) if a else (0, 0)
            o = outcome(
                c, self.world, week, none, none, none, *(torch.full((len(inputs),), x) for x in (offer, channel))
            )
            trips.append(o.redeem + o.buy)
            redeemed.append(o.redeem)
        return Predictions(
            trip=torch.stack(trips, 1),
            redeem=torch.stack(redeemed, 1),
            churn=torch.stack((c.c0, 0.25 * c.c0), 1),
            opt_out=torch.zeros(len(inputs), 5),
            margin=c.margin,
        )


def twinned_env(monkeypatch, world, **changes):
    """A neural environment on Equations, and the structural one of the same seed."""
    true = environment(world=world, **changes)
    monkeypatch.setattr(
        "envs.offers.neural_twin.env.NeuralEnsemble",
        lambda path, env: type(
            "E",
            (),
            {
                "members": [Equations(env)],
                "customers": lambda self, x, w: NeuralCustomers(
                    self.members, torch.zeros(len(x), dtype=torch.long), x, w, HALF_LIVES
                ),
            },
        )(),
    )
    config = opened(
        "offers_twin", _target_="envs.offers.neural_twin.env.NeuralTwinEnv", twin="x", world=world, **changes
    )
    return instantiate(config, _convert_="all")(CPU, 0), true


def acted(g, n=300):
    """Random pairs for some customers, nothing for the others."""
    offer = torch.randint(6, (n,), generator=g) * (torch.rand(n, generator=g) < 0.5)
    return torch.stack((offer, torch.randint(5, (n,), generator=g) * (offer > 0)), 1)


@pytest.mark.long
def test_where_nothing_lasts_it_is_the_structural_environment(monkeypatch):
    """Static world, the equations as networks: observations, masks, rewards and outcomes are OffersEnv's."""
    env, true = twinned_env(monkeypatch, {"disabled_effects": STATIC})
    g, seen = torch.Generator().manual_seed(0), (env.reset(), true.reset())
    for a, b in zip(*seen):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(env.expected_reward(), true.expected_reward(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(env.expected_cost(None), true.expected_cost(None), atol=1e-5, rtol=1e-4)
    for _ in range(12):
        action = acted(g)
        ours, theirs = env.step(action), true.step(action)
        for name in ("obs", "action_mask", "reward", "terminated"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=2e-3, rtol=1e-4)
        assert (ours.info["trips"] == theirs.info["trips"]).float().mean() > 0.999
    assert ours.reward.abs().amax() > 0.1


@pytest.mark.long
def test_churn_weighs_as_the_dynamic_program_does(monkeypatch):
    """Where only purchases keep customers: the tail is V_end, and a season's rewards are A⁰ on average."""
    env, true = twinned_env(
        monkeypatch, {"disabled_effects": [x for x in STATIC if x != "c0"]}, num_agents=4000, price_range=[1e-6, 2e-6]
    )
    env.reset(), true.reset()
    worth = env.neural_customers.tail_value(env.season.track.history, torch.ones(4000))
    torch.testing.assert_close(
        worth, no_contact_values(true.customers, true.world)[-1].unsubscribed[0], rtol=2e-3, atol=1e-2
    )
    g, ours, theirs = torch.Generator().manual_seed(0), 0.0, 0.0
    for _ in range(12):
        action = acted(g, 4000)
        ours, theirs = ours + env.step(action).reward, theirs + true.step(action).reward
    difference = (ours - theirs).double()  # of equal means: true rewards stop where churn is drawn
    assert (
        abs(difference.mean()) < 4 * difference.std() / 4000**0.5
        and abs(ours.mean()) > 10 * difference.std() / 4000**0.5
    )


def customers_of(env, n=200, order=(), seed=0):
    """A crowd of two members of random weights, far from what any log would teach."""
    torch.manual_seed(seed)
    size = env.static_dim + len(column_names(HALF_LIVES)) + 1
    members = [
        NeuralMember(
            ExposureLikelihood(env.world.catalogue, hidden=[8], lr=0, decay=0, steps=0, batch_size=0).empty(size),
            OtherOutcomes(size, 5, [4]),
            list(order),
        )
        for _ in range(2)
    ]
    for p in (p for member in members for p in member.parameters()):
        nn.init.normal_(p, std=0.5)
    return NeuralCustomers(members, torch.arange(n) % 2, torch.randn(n, env.static_dim), env.world, HALF_LIVES)


@pytest.mark.long
def test_without_a_contact_the_contrast_is_zero_to_the_bit():
    env = environment()
    crowd, g = customers_of(env), torch.Generator().manual_seed(0)
    for realised in (False, True):
        contrast = Counterfactual(crowd, torch.zeros(200, dtype=torch.long), realised)
        nothing = torch.zeros(200, dtype=torch.long)
        for t in range(12):
            _, earned, rested = contrast.simulate_week(t, nothing, nothing, torch.rand(6, 200, generator=g))
            assert torch.equal(earned, rested) and (earned != 0).any()
        assert torch.equal(*contrast.tail_values())
    contrast = Counterfactual(crowd, nothing, False)
    _, earned, rested = contrast.simulate_week(0, nothing + 5, nothing, torch.rand(6, 200, generator=g))
    assert (earned != rested).float().mean() > 0.9


def test_probabilities_are_valid_and_grow_with_face_value(make_catalogue):
    env = environment()
    history = History.start(torch.zeros(200, dtype=torch.long), torch.float32)
    order = treatments_by_value(env.world.catalogue)
    loose, ordered = (customers_of(env, order=o).predict(history, 3)[:2] for o in ((), order))
    chain = torch.tensor(order)
    assert chain.shape == (5, 5) and (env.world.catalogue.value[1 + (chain[0] - 1) // 5].diff() > 0).all()
    assert (loose[0][:, chain].diff(dim=2) < 0).any() and (ordered[0][:, chain].diff(dim=2) >= 0).all()
    assert (ordered[1][:, chain].diff(dim=2) >= 0).all()

    class Wild(nn.Module):
        def forward(self, x):
            return 3 * torch.randn(len(x), 26, 2, generator=torch.Generator().manual_seed(0))

    for inner, trip, redeem in (
        ("seen", *loose),
        ("any", *ValidProbabilities(Wild(), order)(torch.zeros(50, 3)).unbind(-1)),
    ):
        assert (redeem >= 0).all() and (redeem <= trip).all() and (trip > 0).all() and (trip < 1).all(), inner
        assert (redeem[:, 0] == 0).all()


@pytest.mark.long
def test_what_is_fitted_is_near_the_truth_where_history_tells_all():
    """Static world: P(trip) is a function of features and action alone, and so is what a contact adds."""
    env, log = random_log(2500, world={"disabled_effects": list(STATIC)})
    _, model = neural(env, response={"steps": 400, "batch_size": 1024, "lr": 0.01}, other_outcomes={"steps": 200})
    model.set_dataset(log)
    logged = train(model)
    held = model.held_out_panel
    inputs = held.inputs[:, 5].T
    with torch.no_grad():
        found, true = model.members[0](inputs), Equations(env)(inputs)
    error = [
        ((a - b).square().mean() / b.var()).item()
        for a, b in ((found[0][:, 0], true[0][:, 0]), (found[4].log(), true[4].log()))
    ]
    assert max(error) < 0.1, error
    lift, wanted = ((x[0][:, 1:] - x[0][:, :1]).flatten() for x in (found, true))
    assert torch.corrcoef(torch.stack((lift, wanted)))[0, 1] > 0.6
    assert logged["twin/held_out"][0] > -0.9 + logged["twin/fitted"][0]


@pytest.mark.slow
def test_a_fit_goes_on_as_if_it_had_not_stopped(tmp_path):
    env, log = random_log(60)
    small = {"response": {"steps": 3, "hidden": [4]}, "other_outcomes": {"steps": 3}}
    models = [neural(env, 2, **small)[1] for _ in range(3)]
    for model in models:
        model.set_dataset(log)
    train(models[0])
    train(models[1], should_stop=lambda: True)
    models[2].load_state_dict(models[1].state_dict())
    train(models[2])
    for a, b in zip(models[0].members.parameters(), models[2].members.parameters()):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["s", "t", "x", "dr"])
def test_learners_of_effects_take_the_networks_place(learner):
    env, log = random_log(80)
    response = node(f"../algo/twin/response/{learner}", "algo=twin", "algo/twin=neural")
    ridge = {"_target_": "rlcore.ope.outcome_models.Linear", "ridge": 30.0, "own": True, "scaled": False}
    config = neural(env)[0].copy()
    OmegaConf.set_struct(config, False)
    config.twin.response, config.twin.monotone, config.twin.other_outcomes.steps = response.copy(), True, 3
    for key in {"model", "effect"} & set(response.learner):
        config.twin.response.learner[key] = ridge
    model = instantiate(config, _convert_="all")(env, 0)
    model.set_dataset(log)
    train(model)
    trip, redeem = model.members[0].response(model.panel.inputs[:, 4].T).unbind(-1)
    assert ((trip > 0) & (trip < 1) & (redeem >= 0) & (redeem <= trip)).all()
    assert (trip[:, torch.tensor(treatments_by_value(env.world.catalogue))].diff(dim=2) >= 0).all()
    again = instantiate(config, _convert_="all")(env, 1)
    again.load_policy(model.state_dict())
    torch.testing.assert_close(again.members[0].response(model.panel.inputs[:, 4].T)[..., TRIP], trip)


@pytest.mark.long
def test_policies_are_judged_on_it_and_bad_input_is_one_line(tmp_path):
    env, log = random_log(80)
    config, model = neural(env, 2, response={"steps": 5}, other_outcomes={"steps": 5})
    model.set_dataset(log)
    train(model)
    path = str(tmp_path / "neural.pt")
    save_state(path, "twin", model.state_dict(), algo=OmegaConf.to_container(config))
    small = {"customers": 30, "tuning_customers": 20, "seasons": 1, "tuning_seasons": 1, "fees": [0.0, 0.5]}
    twin = environment("offers_twin", twin=path, evaluation=small)
    assert isinstance(twin, NeuralTwinEnv) and len(twin.twin.networks) == 2
    report = twin.evaluation(twin).evaluate(None, "none")
    assert set(report.rows) == {"none", "random", "propensity", "uplift rank", "myopic knapsack", "myopic + fee"}
    assert report.rows["none"]["incremental_profit"] == 0 and report.rows["none"]["profit_ci"] == [0, 0]
    assert (
        0.5 < report.rows["myopic knapsack"]["spend_ratio"] <= 1.1 and report.rows["random"]["incremental_profit"] != 0
    )
    with pytest.raises(ValueError, match="expected env/observation=history"):
        environment("offers_twin", twin=path, observation=node("observation/state"))
    with pytest.raises(ValueError, match="a neural twin, whose customers have no parameters"):
        load("population/twin", load("catalogue/default"), path=path)
    with pytest.raises(ValueError, match="fatigue_penalty: expected 0"):
        environment("offers_twin", twin=path, reward={"fatigue_penalty": 1.0})
    with pytest.raises(ValueError, match="fitted to customers or a catalogue of another kind"):
        environment(
            "offers_twin",
            twin=path,
            catalogue={"channels": {"fax": {"cost": 1.0, "attention": 0.1, "opt_out": 0.1, "fatigue_steps": 1}}},
        )
