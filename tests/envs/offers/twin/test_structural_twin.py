"""The structural twin: likelihood against the scalar world, its maximum against closed forms and truth, draws."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from configs import load, node
from envs.offers.logs.panel import Panel, to_panel
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.twin.checks.log_warnings import decisions, propensity_warnings
from envs.offers.twin.likelihood import log_likelihood
from envs.offers.twin.structural_model import TwinPopulation
from envs.offers.world.customers import CustomerState
from reference_world import GONE, STATES, pick
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.propensity_checks import imbalance, significant
from rlcore.runs import checkpoint
from rlcore.uplift import comparison
from small_offers import random_log
from stored import save_state
from toy_envs import part, train

CPU = torch.device("cpu")


def environment(seed=0, **changes):
    """The offers environment on a few customers, with some keys changed."""
    config = node("offers_full_information")
    return instantiate(config, _convert_="all", **{"num_agents": 500, **changes})(CPU, seed)


def environment_on_twin(path):
    """The offers environment on the customers of a twin."""
    config = OmegaConf.merge(
        node("offers_full_information", "env/population=twin"), {"num_agents": 500, "population": {"path": path}}
    )
    return instantiate(config, _convert_="all")(CPU, 0)


def twin(env, members=1, **changes):
    """A twin of an environment as configured, with some keys changed."""
    config = part("twin", members=members, **{**changes, "twin": {"reference_size": 2000, **changes.get("twin", {})}})
    return instantiate(config, _convert_="all")(env, 0)


def one_week(c, rows):
    """A panel of one week of customers c; rows: (state, action, bought, redeemed, following) each."""
    s, a, bought, redeemed, then = zip(*rows)
    states, after = (CustomerState(*torch.tensor(x).T[:, None]) for x in (s, then))
    offer, channel = torch.tensor(a).T[:, None]
    n, there = len(rows), torch.ones(1, len(rows), dtype=torch.bool)
    zeros = torch.zeros(1, n, dtype=torch.float64)
    return Panel(
        torch.zeros(1, n),
        torch.arange(n),
        there,
        torch.zeros(1, n, dtype=torch.long),
        states,
        offer,
        channel,
        torch.tensor([bought]),
        torch.tensor([redeemed]),
        after,
        zeros,
        zeros,
        zeros,
        zeros + 26,
    )


def test_the_likelihood_is_the_scalar_worlds_law(make_season):
    """Summed over responses, the likelihoods of a week's outcomes are the reference's P(s' | s, a)."""
    season = make_season(6, extreme=True)
    generator = torch.Generator().manual_seed(0)
    rows, who, wanted = [], [], []
    for i, ref in enumerate(season.references):
        for s in pick(STATES[:-1], 12, generator):
            for a in pick(ref.allowed(s), 3, generator):
                wanted.append(ref.law(s, 1.0, a))
                for bought, redeemed in ((True, True), (True, False), (False, False)):
                    if redeemed and a == (0, 0):
                        continue
                    moves = product(*([m for m, p in step if p] for step in ref.moves(s, a, bought, redeemed)))
                    after = {ref.settle(s, z, *move) for move in moves for z in (s[3], 1 if a != (0, 0) else s[3])}
                    for then in sorted(after | {GONE}):
                        rows.append((s, a, bought, redeemed, then))
                        who.append((i, len(wanted) - 1))
    c = season.customers[torch.tensor([i for i, _ in who])]
    found = log_likelihood(c, season.world, one_week(c, rows))
    assert (found.pop("margin") == 0).logical_or(one_week(c, rows).bought).all()
    each = sum(found.values())[0].exp().tolist()
    for k, law in enumerate(wanted):
        total = {}
        for (_, at), row, p in zip(who, rows, each):
            if at == k:
                total[row[4]] = total.get(row[4], 0.0) + p
        assert set(law) <= set(total)
        for then, p in total.items():
            assert p == pytest.approx(law.get(then, 0.0), abs=1e-5)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences():
    env, log = random_log(40)
    world = env.world.to(CPU, torch.float64)
    found = to_panel(log, env, "log")
    truth = theta_to_matrix(env.population.draw(40, torch.Generator().manual_seed(3), "train").customers)

    def total(theta):
        return sum(x.sum() for x in log_likelihood(world.inhabit(theta_from_matrix(theta)), world, found).values())

    theta = truth.clone().requires_grad_()
    (slope,) = torch.autograd.grad(total(theta), theta)
    direction = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in range(truth.shape[1]):
        step = torch.zeros_like(truth)
        step[:, k] = 1e-6 * direction[:, k]
        numeric = (total(truth + step) - total(truth - step)).item() / 2e-6
        assert numeric == pytest.approx((slope * direction)[:, k].sum().item(), rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_a_panel_holds_what_the_log_does():
    env, log = random_log(30)
    order = torch.randperm(len(log), generator=torch.Generator().manual_seed(0))
    found = to_panel(log[order], env, "log")
    assert found.logged.shape == (12, 30) and found.logged.all() and (found.week == torch.arange(12)[:, None]).all()
    for a, b in zip(found.state, found.next_state):
        assert (a[1:] == b[:-1]).all()  # what a week led to is where the next began
    again = environment(0, num_agents=30)
    again.reset()
    torch.testing.assert_close(
        found.margin[found.bought], again.customers.margin.expand(12, -1)[found.bought], rtol=1e-5, atol=1e-4
    )
    assert found.bought.double().mean() == log.outcomes["trips"].double().mean()


@pytest.mark.long
def test_without_features_it_finds_the_shares_that_were_counted():
    """Without features, δ and π− are shares of possible moves that happened, and g is a mean."""
    env, log = random_log(600)
    log.obs[:, : env.static_dim] = 0.0
    model = twin(env, holdout={"customers": 0.01, "weeks": 0}, twin={"penalty": 0.0, "rounds": 16})
    model.set_dataset(log)
    model.members = model.members[:1]
    weight = model.fit_weeks.float()
    rows = (~model.held_out).nonzero()[:, 0]
    held = model.panel[rows]
    model.twin.fit(model.members[0], env.world, held, weight[:, rows], held, weight[:, rows], model.generator)
    theta = theta_from_matrix(model.members[0](torch.zeros(1, env.static_dim)))
    s, after = held.state, held.next_state
    stays = (after.status != 2) & (s.status != 2)
    for name, could, moved in (
        ("pi_minus", stays & ~held.bought & (s.habit > 0), after.habit < s.habit),
        ("delta_f", (after.status == 0) & (held.offer == 0) & (s.fatigue > 0), after.fatigue < s.fatigue),
        ("delta_d", (after.status == 0) & ~held.redeemed & (s.expectation > 0), after.expectation < s.expectation),
    ):
        assert getattr(theta, name).item() == pytest.approx(moved[could].double().mean().item(), abs=2e-3), name
    assert theta.margin.item() == pytest.approx(held.margin[held.bought].double().mean().item(), rel=2e-3)


@pytest.mark.long
def test_more_decisions_bring_it_nearer_to_the_truth():
    """Squared errors, in units of the spread of customers, fall as decisions come in, and are small in the end."""
    errors = []
    for n in (200, 3000):
        env, log = random_log(n)
        model = twin(env, twin={"rounds": 3})
        model.set_dataset(log)
        train(model)
        sample = env.population.draw(2000, torch.Generator().manual_seed(9), "test")
        with torch.no_grad():
            guess = theta_from_matrix(model.members[0](sample.features.float()))
        errors.append(
            [
                ((of(guess) - of(sample.customers)).square().mean() / of(sample.customers).var()).item()
                for of in (
                    lambda c: c.alpha + c.kappa / 2,
                    lambda c: c.margin.log(),
                    lambda c: c.pi_minus,
                    lambda c: c.delta_d,
                )
            ]
        )
    assert all(many < few / 2 for few, many in zip(*errors)) and max(errors[1][:2]) < 0.02, errors


@pytest.fixture
def saved(tmp_path):
    """A twin of two members that answer by different margins, and its path."""
    env = environment()
    model = twin(env, members=2)
    log = random_log(60)[1]
    model.set_dataset(log)
    model.iteration = 2
    for k, member in enumerate(model.members):
        with torch.no_grad():
            member.linear.bias[3] = float(k)
    path = tmp_path / "twin.pt"
    save_state(path, "twin", model.state_dict())
    return model, str(path)


@pytest.mark.long
def test_every_customer_is_one_members_and_all_members_are_drawn(saved):
    model, path = saved
    env = environment_on_twin(path)
    sample = env.population.draw(400, torch.Generator().manual_seed(0), "train")
    with torch.no_grad():
        each = torch.stack(
            [theta_to_matrix(theta_from_matrix(member(sample.features.float()))) for member in model.members]
        )
    same = (theta_to_matrix(sample.customers).float() - each).abs().amax(2) < 1e-4
    assert (same.sum(0) == 1).all() and (same.double().mean(1) - 0.5).abs().max() < 0.1
    for k in range(2):
        alone = env.population.members()[k].draw(400, torch.Generator().manual_seed(0), "train")
        torch.testing.assert_close(theta_to_matrix(alone.customers).float(), each[k], rtol=1e-4, atol=1e-4)
        assert (alone.features == sample.features).all()  # the same customers


@pytest.mark.slow
def test_fixed_parameters_are_drawn_from_the_priors_and_not_the_customers_own(saved):
    """Fixed parameters have the base population's law, and features, which reveal a customer's own, don't tell them."""
    _, path = saved
    state = checkpoint.load(path)
    state["agent"]["fixed_columns"] = [0, 5]
    checkpoint.save(path, state)
    catalogue = load("catalogue/default")
    base = load("population/synthetic", catalogue)
    population = TwinPopulation(catalogue, base=lambda _: base, path=path)
    found = theta_to_matrix(population.draw(4000, torch.Generator().manual_seed(0), "train").customers)
    own = theta_to_matrix(base.draw(4000, torch.Generator().manual_seed(0), "train").customers)
    for k in (0, 5):
        assert abs(torch.corrcoef(torch.stack((found[:, k], own[:, k])))[0, 1]) < 0.06
        assert (found[:, k].mean() - own[:, k].mean()).abs() < 0.09 * own[:, k].std()
        assert found[:, k].std() == pytest.approx(own[:, k].std().item(), rel=0.05)


def test_a_log_in_which_nobody_churns_leaves_churn_to_the_priors():
    env, log = random_log(50)
    obs, then = (env.codec.decode_state(x).status for x in (log.obs, log.next_obs))
    stayed = torch.ones(50, dtype=torch.bool)
    stayed[log.unit[(then == 2) | (obs == 2)]] = False
    model = twin(env)
    model.set_dataset(log[stayed[log.unit]])
    assert "churn" in model.unobserved_outcomes and set(model.twin.fixed_parameters) >= {"c0", "gamma_f", "gamma_h"}


def test_weights_make_a_log_count_as_if_drawn_alike():
    env, log = random_log(50)
    model = twin(env, weighted=True, holdout={"customers": 0.1, "weeks": 2})
    halved = log.map(lambda x: x.clone())
    halved.propensity[::2] /= 2
    model.set_dataset(halved)
    weight = model.weights()
    assert (weight[10:] == 0).all()
    flat = weight[:10].T.flatten()
    double = torch.arange(600).view(50, 12)[:, :10].flatten() % 2 == 0
    torch.testing.assert_close(flat[double], 2 * flat[~double].mean().expand(int(double.sum())))
    halved.propensity[7] = torch.nan
    with pytest.raises(ValueError, match="row 9, column 'propensity'"):
        model.set_dataset(halved)


def test_balance_sees_wrong_propensities_and_lets_true_ones_be():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 3, generator=g, dtype=torch.float64)
    p = torch.sigmoid(x[:, 0])  # of nothing; else one of two others
    nothing = torch.rand(20000, generator=g, dtype=torch.float64) < p
    valid = torch.full((20000,), 3)
    true = torch.where(nothing, p, (1 - p) / 2)
    assert not significant(imbalance(x, nothing, true, valid), 0.001).any()
    found = imbalance(x, nothing, torch.full_like(p, 1 / 3), valid)
    assert significant(found, 0.001)[:, 0].all() and not significant(found, 0.001)[:, 1:3].any()


@pytest.mark.slow
def test_a_log_with_wrong_propensities_is_warned_of():
    env, log = random_log(300)
    assert propensity_warnings(to_panel(log, env, "log"), env, 0.001) == []
    wrong = log.map(lambda x: x.clone())
    wrong.propensity.mul_(1 + 0.5 * (log.obs[:, 4] > 0)).clamp_(max=1.0)
    assert "feature 4" in propensity_warnings(to_panel(wrong, env, "log"), env, 0.001)[0]
    wrong.propensity[:] = torch.nan
    assert "no propensity" in propensity_warnings(to_panel(wrong, env, "log"), env, 0.001)[0]


@pytest.mark.long
def test_bad_input_is_one_line(saved, tmp_path):
    _, path = saved
    env, log = random_log(40)
    with pytest.raises(ValueError, match="what decisions led to"):
        to_panel(LoggedDataset(**{**log.__dict__, "next_obs": None}), env, "x.csv")
    odd = log.map(lambda x: x.clone())
    odd.outcomes["redeemed"][3], odd.outcomes["trips"][3] = 1.0, 0.0
    with pytest.raises(ValueError, match="x.csv: row 5, column 'redeemed'"):
        to_panel(odd, env, "x.csv")
    odd = log.map(lambda x: x.clone())
    odd.step[3] = 12
    with pytest.raises(ValueError, match="row 5, column 'week': expected a week of the season, 0 to 11"):
        to_panel(odd, env, "x.csv")
    with pytest.raises(ValueError, match="no such parameter: alfa"):
        twin(env, twin={"fixed_parameters": ["alfa"]})
    with pytest.raises(ValueError, match="expected the path of a log"):
        train(twin(env))
    save_state(tmp_path / "ppo.pt", "ppo", {})
    with pytest.raises(ValueError, match="expected a checkpoint of algo=twin, got ppo"):
        environment_on_twin(str(tmp_path / "ppo.pt"))
    state = checkpoint.load(path)
    for member in state["agent"]["members"]:
        member["standardize.mean"] = torch.zeros(7)
    checkpoint.save(path, state)
    with pytest.raises(ValueError, match="fitted to customers of 7 features, here they have 24"):
        environment_on_twin(path)
    state["agent"]["iteration"] = 0
    checkpoint.save(path, state)
    with pytest.raises(ValueError, match="expected a twin with at least one fitted member, got none"):
        environment_on_twin(path)


@pytest.fixture(scope="module")
def world_itself():
    """A twin whose only member is the world's own G, with 1,500 customers' random decisions."""
    env, log = random_log(1500)
    model = twin(env, holdout={"customers": 0.9, "weeks": 2})
    model.set_dataset(log)
    model.iteration, member, truth = 1, model.members[0], env.population
    with torch.no_grad():
        for x, y in ((member.middle, truth.mean), (member.spread, truth.std), (member.linear.weight, truth.mixing)):
            x.copy_(y)
    return env, model


@pytest.mark.long
def test_the_world_itself_is_calibrated_and_gives_no_doubt(world_itself):
    _, model = world_itself
    report = model.make_evaluator().evaluate(model, "twin")
    assert report.extra["warnings"] == [] and set(report.rows) == {"trips", "redeemed", "opt_out", "churn"}
    for name, row in report.rows.items():
        sd = (row["actual"] / row["decisions"]) ** 0.5
        assert abs(row["predicted"] - row["actual"]) < 4 * sd and row["ece"] < 5 * sd and row["skill"] > 0, name
    weeks = report.extra["weeks"]
    assert [row["week"] for row in weeks if row["held_out"]] == [10, 11]
    for row in weeks:
        assert row["trips"][1] == pytest.approx(row["trips"][0], abs=4 * row["decisions"] ** 0.5 / 2)
        assert row["spend"][1] == pytest.approx(row["spend"][0], rel=0.25)
    assert report.extra["drivers"]["habit"] > 0 and len(report.extra["uplift"]["deciles"]) == 10
    assert {"calibration", "weeks", "drivers", "uplift", "qini", "cost"} <= set(report.plots)
    assert "held-out week 11" in report.caption and report.to_markdown().count("|")


def test_the_interval_of_uplift_resamples_customers_and_not_seasons(world_itself, monkeypatch):
    """Each customer has two seasons: both are drawn together, so that a customer counts once."""
    _, model = world_itself
    panel = replace(model.panel, customer=model.panel.customer // 2)
    drawn = []

    def bootstrap(tests, units, replications, generator):
        drawn.append((tests[0].unit, units))
        return torch.zeros(1, 2, replications)

    monkeypatch.setattr(comparison, "bootstrap_metrics", bootstrap)
    model.make_evaluator().uplift(model.predictions(panel), panel)
    (unit, units) = drawn[0]
    assert units == len(panel.customer.unique()) < len(panel)
    column = decisions(panel).nonzero()[:, 1]
    assert torch.equal(unit, panel.customer.unique(return_inverse=True)[1][column])


def test_the_error_of_a_decile_counts_a_customers_weeks_once(world_itself):
    """A log that has every customer twice, under one id, tells no more than the log itself."""
    _, model = world_itself
    panel = model.panel[torch.arange(300)]
    twice = panel[torch.arange(300).repeat(2)]
    once, again = (
        model.make_evaluator().uplift(model.predictions(log), log).numbers["deciles"] for log in (panel, twice)
    )
    # The edges of tenths may lie half a decision apart; as if independent, errors would be 1/√2 of these.
    assert [row["std"] for row in again] == pytest.approx([row["std"] for row in once], rel=0.1)


def test_trips_that_no_equation_explains_are_named(world_itself):
    """Customers contacted by a channel that nobody sees buy all the same: the sender knew more than the log."""
    _, model = world_itself
    log, evaluation = model.panel, model.make_evaluator()
    by_push = (log.offer > 0) & (log.channel == 0) & log.logged & (log.state.status == 0)
    warnings = evaluation.misfit(model, replace(log, bought=log.bought | by_push), model.held_out)
    assert len(warnings) == 1 and "by push" in warnings[0]
