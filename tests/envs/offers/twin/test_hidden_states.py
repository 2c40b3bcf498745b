"""The structural twin of a log without states: likelihood, scores and their sums, recovery, draws, bad input."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import hypergeom

from configs import load, node
from envs.offers.logs.panel import to_panel
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.twin.checks.filter_misfits import Decisions, Segments, misfits
from envs.offers.twin.hidden_states.fisher_scoring import (
    TOLERATED_GAIN,
    bounded_step,
    coefficients,
    quadratic_model,
    scores,
    set_coefficients,
)
from envs.offers.twin.hidden_states.identification import (
    coefficient_covariance,
    parameter_names,
    parameter_report,
    parameter_rows,
)
from envs.offers.twin.hidden_states.mixture_filter import panel_weeks, seen_weeks
from envs.offers.twin.hidden_states.random_effects import RandomEffects
from envs.offers.twin.structural_model import ParameterNetwork, TwinPopulation
from envs.offers.world.filtering import Belief
from envs.offers.world.life_likelihood import life_log_likelihood
from hidden_markov import simulate
from lives import log_of_lives
from small_offers import random_log, random_season
from stored import save_state
from toy_envs import part

CPU = torch.device("cpu")
CLOSED: dict[str, list] = {"random_effects": [], "nodes": []}  # of the fit: features determine all parameters


def unseen_log(customers: int, seed: int = 0):
    """An environment whose view hides the state, and a season of random decisions in it."""
    config = OmegaConf.merge(node("offers_full_information", "env/observation=history"), {"num_agents": customers})
    env = instantiate(config, _convert_="all")(CPU, seed)
    return env, random_season(env, seed)


def twin(env, members=1, **changes):
    """A twin as configured, with some keys changed."""
    small = {"reference_size": 2000, "score_customers": 300, **changes.pop("twin", {})}
    return instantiate(part("twin", members=members, twin=small, **changes), _convert_="all")(env, 0)


def sds(model, **of_parameters):
    """Sds of random effects by θ's columns, in θ's units; float64."""
    found = torch.zeros(len(model.members[0].middle), dtype=torch.float64)
    for name, sd in of_parameters.items():
        found[model.twin.columns[name]] = sd
    return found


@pytest.fixture(scope="module")
def small():
    """In float64: a world, a panel of 12 customers, their parameters, the start, and the fit's settings."""
    env, log = unseen_log(12)
    model = twin(env)
    world = env.world.to(CPU, torch.float64)
    sample = env.population.draw(12, torch.Generator().manual_seed(3), "train")
    panel = to_panel(log, env, "log")
    panel = replace(panel, features=sample.features.T)
    return world, panel, theta_to_matrix(sample.customers), model


@pytest.mark.long
def test_the_mixture_is_the_quadrature_of_whole_seasons(small):
    """log Σ_jk w_j w_k P(season | α + σ·x_j, ω + τ·x_k), each by the filter of one α and ω.

    With σ = τ = 0 it is the filter.
    """
    world, panel, theta, model = small
    method, weeks = model.twin.hidden_states, seen_weeks(panel)
    c = world.inhabit(theta_from_matrix(theta))

    def alone(alpha, omega):
        belief = Belief.from_marginals(method.start[:, None].expand(-1, 12), torch.zeros(12, dtype=torch.bool))
        nobody_spends = [week._replace(margin=torch.zeros(12, dtype=torch.float64)) for week in weeks]
        moved = replace(c, alpha=c.alpha + alpha, omega=c.omega + omega, margin=torch.ones_like(c.alpha))
        return life_log_likelihood(moved, world, nobody_spends, belief)

    rules = [np.polynomial.hermite_e.hermegauss(nodes) for nodes in method.nodes]
    nobody = torch.zeros(12, dtype=torch.bool)
    for of_alpha, of_omega in ((0.0, 0.0), (0.7, 0.0), (0.7, 0.4)):
        mixture = method.mixture(world, theta, sds(model, alpha=of_alpha, omega=of_omega), nobody)
        found = sum(mixture.observe(week) for week in panel_weeks(panel))
        wanted = [
            math.log(v * w / (2 * math.pi)) + alone(of_alpha * x, of_omega * y)
            for x, v in zip(*rules[0])
            for y, w in zip(*rules[1])
        ]
        torch.testing.assert_close(found, torch.stack(wanted).logsumexp(0), rtol=0, atol=1e-10)


def test_random_effects_have_the_moments_of_independent_normals():
    """The product rule is exact for polynomials of degree below twice the nodes; one effect moves all channels."""
    columns = {"alpha": [0], "omega": [1, 2], "mu": [3]}
    effects = RandomEffects.of_parameters({"omega": 3, "mu": 2}, columns, torch.zeros(1, dtype=torch.float64))
    alpha, push, sms, mu = effects.at.T
    weight = effects.log_weight.exp()
    assert weight.sum().item() == pytest.approx(1.0) and len(weight) == 6
    assert not alpha.any() and torch.equal(push, sms)
    moments = [(weight * push**i * mu**j).sum().item() for i, j in ((1, 0), (0, 1), (2, 0), (0, 2), (4, 0), (1, 1))]
    assert moments == pytest.approx([0, 0, 1, 1, 3, 0], abs=1e-12)
    assert (weight * push**4 * mu**2).sum().item() == pytest.approx(3.0)
    low, high = torch.tensor([-9.0, -9.0, -9.0, 0.0]), torch.tensor([9.0, 9.0, 9.0, 1.0])
    theta = torch.tensor([[0.0, 1.0, 2.0, 0.9], [0.5, 0.0, 0.0, 0.1]], dtype=torch.float64)
    at = effects.spread_over(theta, torch.tensor([1.0, 0.5, 0.25, 0.3]), torch.stack((low, high))).view(6, 2, 4)
    assert torch.equal(at[:, :, 0], theta[:, 0].expand(6, 2)) and at[:, 0, 3].tolist() == pytest.approx([0.6, 1.0] * 3)
    assert (at[4:, 0, 1:3] - theta[0, 1:3]).flatten().tolist() == pytest.approx([3**0.5 * x for x in (0.5, 0.25)] * 2)
    nothing = RandomEffects.of_parameters({}, columns, torch.zeros(1))
    assert not nothing.at.any() and nothing.log_weight.tolist() == [0.0]


def test_predictions_are_what_the_likelihood_scores(small):
    """P(bought) by the mixture is the probability that it gives to weeks with a purchase, redeemed or not."""
    world, panel, theta, model = small
    weeks, nobody = panel_weeks(panel), torch.zeros(12, dtype=torch.bool)
    sd = sds(model, alpha=0.5, omega=0.2)
    mixture = model.twin.hidden_states.mixture(world, theta, sd, nobody)
    for t in range(3):
        mixture.observe(weeks[t])
    week = weeks[3].seen._replace(opted_out=torch.zeros(12, dtype=torch.bool))
    opted_out = mixture.belief.unsubscribed.view(6, -1, 12).sum((0, 1)) > 0
    week = week._replace(offer=torch.where(opted_out, 0, week.offer))
    predicted = mixture.predict(3, week.offer, week.channel)
    total = torch.zeros(12, dtype=torch.float64)
    for redeemed in (False, True):
        for opted_out in (False, True):
            other = model.twin.hidden_states.mixture(world, theta, sd, nobody)
            other.belief, other.log_weight = mixture.belief, mixture.log_weight
            shape = {"bought": True, "redeemed": redeemed, "opted_out": opted_out}
            some = week._replace(**{name: torch.full((12,), x) for name, x in shape.items()})
            p = other.observe(weeks[3]._replace(seen=some)).exp()
            total += torch.where((some.redeemed | some.opted_out) & (week.offer == 0), 0.0, p)
    torch.testing.assert_close(total, predicted.bought, rtol=0, atol=1e-9)


@pytest.mark.long
def test_scores_are_the_gradient_and_information_their_outer_products(small):
    world, panel, _, model = small
    member, method = model.members[0].double(), model.twin.hidden_states
    member.fit_scale(panel.features.T)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        member.linear.weight.normal_(0, 0.1, generator=generator)
    weight = torch.ones(12, 12)
    weight[9:] = 0.0
    weight[:, :4] *= 2
    variance = torch.tensor([0.09, 0.04], dtype=torch.float64, requires_grad=True)
    sd = method.sd_of_columns(member, variance)
    likelihood = partial(method.life_log_likelihoods, world)
    found = scores(likelihood, member, sd, method.effects.of_columns, panel, weight, 5)

    each = likelihood(member(panel.features.T), sd, panel, weight)
    wanted = []
    for i in range(12):
        slopes = torch.autograd.grad(each[i], (member.linear.bias, member.linear.weight, variance), retain_graph=True)
        wanted.append(torch.cat((torch.cat((slopes[0][:, None], slopes[1]), 1).flatten(), slopes[2])))
    s, times = torch.stack(wanted), weight.amax(0).double()
    torch.testing.assert_close(found.gradient, (s * times[:, None]).sum(0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.information, s.T @ (s * times[:, None]), rtol=1e-8, atol=1e-8)
    assert found.log_likelihood.item() == pytest.approx((each * times).sum().item(), rel=1e-12)
    assert coefficients(member, variance)[1] == member.linear.weight[0, 0] and len(s[0]) == len(found.gradient)

    # The likelihood's own slope, by finite differences.
    theta, sd = member(panel.features.T).detach(), sd.detach()
    direction = torch.randn(theta.shape, generator=generator, dtype=torch.float64) * member.spread
    up, down = (likelihood(theta + sign * 1e-5 * direction, sd, panel, weight).sum() for sign in (1, -1))
    theta.requires_grad_()
    (slope,) = torch.autograd.grad(likelihood(theta, sd, panel, weight).sum(), theta)
    assert (slope * direction).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-5)
    member.float()


@pytest.mark.slow
def test_a_parameter_held_at_its_bound_has_no_score(small):
    """χ of 1 stays 1 however G's coefficients move, and the scores are those of G as it is held."""
    world, panel, _, model = small
    member, method, d = model.members[0].double(), model.twin.hidden_states, 1 + len(panel.features)
    member.fit_scale(panel.features.T)
    column = model.twin.columns["chi"][0]
    with torch.no_grad():
        member.linear.bias[column] = 50.0
    found = method.scores(member, sds(model, alpha=0.3), world, panel, torch.ones(12, 12))
    rest = found.information[column * d : (column + 1) * d]
    assert not found.gradient[column * d : (column + 1) * d].any() and not rest.any() and found.gradient.any()
    with torch.no_grad():
        member.linear.bias[column] = 0.0
    member.float()


def test_of_margins_the_score_is_exact_and_the_information_the_expected_one(small):
    """With features left out of G, log g moves by Σ y / (n·g) − 1 in a step: near the maximum, Newton's."""
    world, panel, _, model = small
    member, method = model.members[0].double(), model.twin.hidden_states
    member.fit_scale(panel.features.T)
    weight, column = torch.ones(12, 12), model.twin.columns["margin"][0]
    sd = sds(model, alpha=0.3)
    found = method.scores(member, sd, world, panel, weight)
    theta = member(panel.features.T).detach().requires_grad_()
    whole = method.life_log_likelihoods(world, theta, sd, panel, weight).sum()
    (slope,) = torch.autograd.grad(whole, theta)
    at = column * (1 + len(panel.features))
    assert found.gradient[at].item() == pytest.approx((slope[:, column].sum() * member.spread[column]).item())
    assert found.log_likelihood.item() == pytest.approx(whole.item(), rel=1e-6)
    spread = member.spread[column].item()
    assert found.information[at, at].item() == pytest.approx(int(panel.bought.sum()) * spread**2)
    others = torch.ones(len(found.gradient), dtype=torch.bool)
    others[at : at + 1 + len(panel.features)] = False
    assert (found.information[at, others] == 0).all() and found.information[0, 0] > 0
    member.float()


@pytest.mark.slow
def test_a_log_that_tells_nothing_leaves_the_priors_range_however_strong_the_pull(small):
    world, panel, _, model = small
    member, method = copy.deepcopy(model.members[0]).double(), model.twin.hidden_states
    found = coefficient_covariance(method, member, world, panel, torch.ones(12, 12), 24.0, 0)
    rows = parameter_rows([member], found, panel)
    pulled, half = method.pulled_columns(), NormalDist().inv_cdf(0.975)
    for k, row in enumerate(rows):
        low, high = member.bounds[:, k].tolist()
        assert row.low == pytest.approx(max(row.mean - half * row.prior_sd, low), abs=1e-5)
        assert row.high == pytest.approx(min(row.mean + half * row.prior_sd, high), abs=1e-5)
    assert pulled and all(found.fit[k, 0, k, 0].item() == pytest.approx(1 / method.pull) for k in pulled)


@pytest.mark.parametrize("features", [2, 5, 60])
def test_of_a_log_that_tells_nothing_no_parameter_seems_identified(small, features):
    """However many features there are: the penalty a feature grows with their number."""
    world, panel, _, model = small
    member = ParameterNetwork(features, model.members[0].middle, model.members[0].spread, hidden=[]).double()
    x = torch.randn(features, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    panel = replace(panel, features=(x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True))
    weight, penalty = torch.ones(12, 12), model.twin.penalty_by_input * features
    found = coefficient_covariance(model.twin.hidden_states, member, world, panel, weight, penalty, 0)
    rows = parameter_rows([member], found, panel)
    assert [row.given_features for row in rows] == [1.0] * len(rows)


@pytest.mark.slow
def test_of_a_random_effects_parameter_the_error_has_what_features_leave_open(small):
    world, panel, _, model = small
    member, method = copy.deepcopy(model.members[0]).double(), model.twin.hidden_states
    member.fit_scale(panel.features.T)
    alpha = model.twin.columns["alpha"][0]
    found = coefficient_covariance(method, member, world, panel, torch.ones(12, 12), 24.0, 40000)
    closed = parameter_rows([member], found, panel)
    member.effect_sd[alpha] = 0.6 * member.spread[alpha]
    open_ = parameter_rows([member], found, panel)
    assert closed[alpha].given_features == closed[alpha].error == open_[alpha].given_features < 0.7
    assert open_[alpha].error == pytest.approx((open_[alpha].given_features ** 2 + 0.36) ** 0.5)
    assert [row for k, row in enumerate(open_) if k != alpha] == [row for k, row in enumerate(closed) if k != alpha]
    # Of a parameter whose E[α | features] is known the source is the log, whatever features leave open.
    member.effect_sd[alpha] = 0.95 * member.spread[alpha]
    names = parameter_names(model.twin.columns, ["a", "b", "c", "d", "e"])
    report = parameter_report(names, parameter_rows([member], found, panel), set())
    assert report.rows["alpha"]["error"] > 0.9 and report.columns["source"](report.rows["alpha"]) == "log"
    assert (
        "random effects, sd in those of the prior (of channels what they have in common): alpha 0.95" in report.caption
    )


@pytest.fixture(scope="module")
def fitted():
    """A twin fitted to 3,000 customers whose states and churn nobody saw, and their environment."""
    env, log = unseen_log(3000)
    small = {"score_customers": 1500, "hidden_states": {"steps": 40, "nodes": [3, 2]}}
    model = twin(env, holdout={"customers": 0.15, "weeks": 2}, twin=small)  # .05 more end the fit: .8 are fitted to
    model.set_dataset(log)
    model.setup(None, lambda: False)
    metrics = model.iterate(0.0)
    model.iteration = 1
    return env, model, metrics


@pytest.mark.long
def test_it_finds_what_the_log_tells(fitted):
    env, model, metrics = fitted
    method, member = model.twin.hidden_states, model.members[0]
    sample = env.population.draw(2000, torch.Generator().manual_seed(9), "test")
    truth = theta_to_matrix(sample.customers)
    with torch.no_grad():
        guess = member(sample.features.float()).double()
    z = (guess - truth) / truth.std(0)
    error = dict(zip(model.twin.columns, z.square().mean(0).sqrt().tolist()))  # of the single columns, in order
    assert error["alpha"] < 0.35 and error["margin"] < 0.2 and error["opt_out"] < 0.75 and error["kappa"] < 0.75, error
    mu = model.twin.columns["mu"][0]  # its mean is less certain than its differences between customers
    assert torch.corrcoef(torch.stack((guess[:, mu], truth[:, mu])))[0, 1] > 0.5
    pulled = z.mean(0)[method.pulled_columns()]
    assert pulled.abs().max() < 0.15  # their means stay the priors'
    assert model.unobserved_outcomes == () and model.twin.fixed_parameters == ()  # silence tells of churn
    panel, weight = model.validation_panel, model.validation_weight
    sd = sds(model)

    def likelihood_of(theta):
        return method.life_log_likelihoods(env.world, theta, sd, panel, weight).sum() / (weight > 0).sum()

    with torch.no_grad():
        middle = likelihood_of(member.middle.expand(len(panel), -1))
        assert metrics["twin/held_out"] > middle + 0.12


@pytest.mark.long
def test_the_fit_ends_where_every_way_leads_down(fitted):
    """The posterior density, by the likelihood itself, one posterior sd away from the fit in random directions."""
    env, model, _ = fitted
    method, member = model.twin.hidden_states, model.members[0]
    prior, center = method.prior_precision(member, model.twin.penalty), method.prior_center(member)
    variance = method.first_variance(member, True).detach()
    at = coefficients(member, variance)
    found = method.scores(member, member.effect_sd, env.world, model.fit_panel, model.fit_weight)
    assert bounded_step(quadratic_model(found, at, prior, center), at, 2)[1] < 5 * TOLERATED_GAIN
    root_of_covariance = torch.linalg.cholesky(torch.linalg.inv(found.information + prior.diag()))
    generator = torch.Generator().manual_seed(0)

    def height(coefficients_there):
        set_coefficients(member, variance, coefficients_there)
        with torch.no_grad():
            theta = member(model.fit_panel.features.T)
            sd = method.sd_of_columns(member, variance)
            each = method.life_log_likelihoods(env.world, theta, sd, model.fit_panel, model.fit_weight)
        return (each.double().sum() - 0.5 * (prior * (coefficients_there - center).square()).sum()).item()

    top = height(at)
    for _ in range(3):
        direction = root_of_covariance @ torch.randn(len(at), generator=generator, dtype=torch.float64)
        direction[-2:] = torch.minimum(direction[-2:].abs(), at[-2:])  # no variance is below 0
        lower = [height(at + sign * direction) for sign in (1, -1)]
        assert max(lower) < top and 0.5 * sum(lower) - top == pytest.approx(-0.5 * len(at), rel=0.6)
    height(at)


@pytest.mark.long
def test_its_report_says_what_is_identified(fitted):
    env, model, _ = fitted
    report = model.make_evaluator().evaluate(model, "twin")
    assert set(report.parts()) == {"table", "parameters"} and set(report.rows) == {"trips", "redeemed", "opt_out"}
    rows = report.to_metrics()["parameters"]
    assert rows["log margin"]["error"] < 0.2 < 0.9 < rows["chi"]["error"] and rows["chi"]["pulled"]
    assert all(row["low"] <= row["mean"] <= row["high"] and 0 < row["error"] <= 1 for row in rows.values())
    assert "hardly identifies" in report.parameters.caption and "chi" in report.parameters.caption
    for name, tolerance in (("trips", 0.05), ("redeemed", 0.2)):
        row = report.rows[name]
        assert row["predicted"] == pytest.approx(row["actual"], rel=tolerance) and row["skill"] > 0.03
    weeks = report.extra["weeks"]
    assert [row["week"] for row in weeks if row["held_out"]] == [10, 11]
    assert all(row["trips"][1] == pytest.approx(row["trips"][0], rel=0.15) for row in weeks)
    assert set(report.extra["drivers"]) == set(env.population.feature_names)


@pytest.mark.slow
def test_more_customers_tell_more(fitted):
    env, model, _ = fitted
    some = slice(0, 300)
    panel, weight = model.fit_panel[some], model.fit_weight[:, some]
    method, member = model.twin.hidden_states, model.members[0]
    few, many = (coefficient_covariance(method, member, env.world, panel, weight, 24.0, n) for n in (3000, 300000))
    for fewer, more in zip(few, many):
        fewer, more = (x.flatten(0, 1).flatten(1).diagonal() if x.dim() > 1 else x for x in (fewer, more))
        assert (more < fewer).all() and (fewer > 0).all()


@pytest.mark.slow
def test_what_the_twin_cannot_explain_has_a_segment_and_a_week(fitted):
    """Customers high in a feature buy whatever is sent in the fifth week: the group and the week are named."""
    env, model, _ = fitted
    names = env.population.feature_names
    predicted = model.twin.predict(model.members[0], env.world, model.panel).probabilities()
    high = model.panel.features[7] > 0.5
    bought = model.panel.bought.clone()
    bought[4] |= high & (model.panel.offer[4] > 0)
    changed = replace(model.panel, bought=bought)
    predicted = {**predicted, "trips": predicted["trips"]._replace(happened=bought)}
    decisions = Decisions.of_season(seen_weeks(changed))
    everybody = torch.ones(len(changed), dtype=torch.bool)
    segments = Segments(changed.features, names, everybody, changed.features[:0], [])
    found = misfits(predicted, decisions, env.world.catalogue, 0.001, segments)
    assert any("highest third of feature 7, contacted" in text and "most in week 5" in text for text in found), found


@pytest.mark.slow
def test_segments_of_two_parameters_are_named(fitted):
    """Who is high in both α and β, or low in both, ignores what is sent in this log."""
    _, model, _ = fitted
    with torch.no_grad():
        theta = model.members[0](model.panel.features.T)
    high = [theta[:, k] > theta[:, k].median() for k in (model.twin.columns["alpha"][0], model.twin.columns["beta"][0])]
    ignores = (high[0] == high[1]) & (model.panel.offer > 0)
    changed = replace(model.panel, redeemed=model.panel.redeemed & ~ignores)
    found = model.make_evaluator().misfit(model, changed, model.held_out)
    assert len(found) == 1 and "alpha and log beta on the same side of their medians, contacted (z = -" in found[0]


@pytest.mark.slow
def test_a_week_that_is_wrong_for_fitted_customers_alone_is_named(fitted):
    """Held-out customers show nothing; those who were fitted to all buy in the fifth week."""
    _, model, _ = fitted
    bought = model.panel.bought.clone()
    bought[4] |= ~model.held_out & model.panel.logged[4]
    found = model.make_evaluator().misfit(model, replace(model.panel, bought=bought), model.held_out)
    assert len(found) == 1 and "trips, week 5 (z = +" in found[0] and "third of" not in found[0]


@pytest.fixture
def saved(fitted, tmp_path):
    path = tmp_path / "twin.pt"
    save_state(path, "twin", fitted[1].state_dict())
    return str(path)


def test_its_customers_differ_by_what_features_leave_open(fitted, saved):
    _, model, _ = fitted
    catalogue = load("catalogue/default")
    population = TwinPopulation(catalogue, base=lambda _: load("population/synthetic", catalogue), path=saved)
    population.networks[0].effect_sd.copy_(sds(model, alpha=0.4, omega=0.3, mu=0.05))
    sample = population.draw(4000, torch.Generator().manual_seed(0), "train")
    with torch.no_grad():
        middle = model.members[0](sample.features.float()).double()
    apart = theta_to_matrix(sample.customers) - middle
    columns = model.twin.columns
    for name, sd in (("alpha", 0.4), ("omega", 0.3), ("mu", 0.05)):
        each = apart[:, columns[name]]
        assert each.std(0).tolist() == pytest.approx([sd] * each.shape[1], rel=0.06) and each.mean().abs() < 0.08 * sd
    assert torch.corrcoef(apart[:, columns["omega"]].T).min() > 0.999  # one effect moves all channels
    assert torch.corrcoef(apart[:, [columns[name][0] for name in ("alpha", "omega", "mu")]].T)[0, 1:].abs().max() < 0.05
    rest = [k for name in columns if name not in ("alpha", "omega", "mu") for k in columns[name]]
    assert apart[:, rest].abs().max() < 1e-5 and theta_to_matrix(sample.customers)[:, columns["mu"]].max() <= 1


@pytest.mark.long
def test_policies_on_it_may_see_histories_and_null_is_the_true_world(saved):
    config = OmegaConf.merge(node("offers_twin", "env/observation=history"), {"num_agents": 60, "twin": saved})
    env = instantiate(config, _convert_="all")(CPU, 0)
    assert isinstance(env.population, TwinPopulation) and env.codec.hides_state and len(env.population.members()) == 1
    obs, _ = env.reset()
    step = env.step(torch.zeros(60, 2, dtype=torch.long))
    assert obs.shape == (60, env.obs_dim) and step.reward.abs().max() == 0.0
    config.twin = None
    true = instantiate(config, _convert_="all")(CPU, 0)
    true.reset()
    assert not isinstance(true.population, TwinPopulation)
    config.twin = ""
    with pytest.raises(ValueError, match="env.twin: expected the path of a checkpoint of algo=twin"):
        instantiate(config, _convert_="all")(CPU, 0)


@pytest.mark.slow
def test_bad_input_is_one_line():
    env, log = unseen_log(40)
    model = twin(env, weighted=True)
    model.set_dataset(log.map(lambda x: x))
    model.setup(None, lambda: False)
    model.fit_weight[3] *= 2
    with pytest.raises(ValueError, match="algo.weighted=true: a log without states"):
        model.iterate(0.0)
    with pytest.raises(ValueError, match="hidden_states.pulled: no such parameter: psi"):
        twin(env, twin={"hidden_states": {"pulled": ["psi"]}})
    with pytest.raises(ValueError, match="hidden_states.random_effects: no such parameter: psi"):
        twin(env, twin={"hidden_states": {"random_effects": ["psi", "mu"]}})
    with pytest.raises(
        ValueError, match=r"hidden_states.nodes: expected one for each .* got \[5\] for \['alpha', 'omega'\]"
    ):
        twin(env, twin={"hidden_states": {"nodes": [5]}})
    with pytest.raises(ValueError, match="for each of the random_effects, none of them twice"):
        twin(env, twin={"hidden_states": {"random_effects": ["mu", "mu"]}})
    with pytest.raises(ValueError, match="hidden_states.random_effects: no such parameter: margin"):
        twin(env, twin={"hidden_states": {"random_effects": ["alpha", "margin"]}})


@pytest.mark.slow
def test_a_fit_goes_on_from_another_in_fewer_steps():
    env, log = unseen_log(400)

    def fitted(steps, start=None):
        model = twin(env, members=1, twin={"hidden_states": {"steps": steps, "passes": 1, "nodes": [2, 2]}})
        if start:
            model.start_from(start)
        model.set_dataset(log)
        model.setup(None, lambda: False)
        model.iterate(0.0)
        model.iteration = 1
        method, member = model.twin.hidden_states, model.members[0]
        found = method.log_likelihood(member, member.effect_sd, env.world, model.fit_panel, model.fit_weight)
        return found.item(), model

    whole, first = fitted(40)
    cold, _ = fitted(2)
    warm, second = fitted(2, first.state_dict() | {"iteration": 1})
    assert warm > cold + 1e-3 and warm > whole - 0.01
    assert torch.equal(second.members[0].standardize.mean, first.members[0].standardize.mean)
    with pytest.raises(ValueError, match="expected a twin with at least one fitted member"):
        twin(env).start_from(first.state_dict() | {"iteration": 0})


@pytest.mark.slow
@pytest.mark.parametrize(("passes", "is_warned_of"), [(1, True), (30, False)])
def test_a_fit_that_ran_out_of_passes_is_warned_of(passes, is_warned_of, capsys):
    env, log = unseen_log(60)
    model = twin(env, twin={"hidden_states": {"steps": 2, "passes": passes, **CLOSED}})
    model.set_dataset(log)
    model.setup(None, lambda: False)
    metrics = model.iterate(0.0)
    assert (metrics["twin/gain"] >= TOLERATED_GAIN) == is_warned_of
    warning = f"warning: algo.twin.hidden_states.passes={passes} ended a fit below its maximum"
    assert (warning in capsys.readouterr().err) == is_warned_of


@pytest.mark.slow
def test_alpha_may_be_left_to_the_priors_where_a_fit_goes_on_from_another():
    env, log = unseen_log(60)
    small = {"hidden_states": {"steps": 2, "passes": 2, "nodes": [2, 2]}}
    first = twin(env, twin=small)
    first.members[0].effect_sd.copy_(sds(first, alpha=0.3))
    model = twin(env, twin=small | {"fixed_parameters": ["alpha"]})
    model.start_from(first.state_dict() | {"iteration": 1})
    model.set_dataset(log)
    model.setup(None, lambda: False)
    assert model.iterate(0.0)["twin/held_out"].isfinite()
    effect_sd = {name: model.members[0].effect_sd[columns] for name, columns in model.twin.columns.items()}
    assert (effect_sd["alpha"] == 0).all() and (effect_sd["omega"] > 0).all()
    assert all(p.isfinite().all() for member in model.members for p in member.parameters())


def test_whom_an_earlier_twin_was_fitted_to_is_not_held_out():
    """With another salt, nor over two steps of a lineage, does a customer judge whom an earlier fit has seen."""
    env, log = unseen_log(300)

    def started(start, **holdout):
        model = twin(env, holdout={"customers": 0.3, "stopping": 0.2, **holdout})
        if start:
            model.start_from(start.state_dict() | {"iteration": 1})
        model.set_dataset(log)
        return model

    first = started(None)
    other = started(None, salt=5, weeks=0)
    second = started(first, salt=5, weeks=0)
    third = started(second, salt=7)
    assert torch.equal(second.held_out, other.held_out & first.held_out)  # who stopped the first fit judges no second
    assert torch.equal(second.fitted, other.fitted | first.fitted)
    assert not (third.held_out & (first.fitted | other.fitted)).any() and third.held_out.any()
    assert first.first_held_out_week == 10 and third.first_held_out_week == second.first_held_out_week == 12
    same = started(first)
    assert torch.equal(same.held_out, first.held_out) and len(same.holdouts) == 1


def test_all_members_together_have_each_customer_equally_often():
    """A customer's count in one member of four is hypergeometric: 5,000 of 20,000 rows, 4 of them the customer's."""
    env, _ = unseen_log(2)

    def drawn(members):
        model = twin(env, members=members)
        counts = []
        for model.iteration in range(members):
            counts.append(model.draw_customers(5000))
        return torch.stack(counts)

    four = drawn(4)
    assert (four.sum(0) == 4).all() and (four.sum(1) == 5000).all() and torch.equal(four, drawn(4))
    share = four.flatten().bincount(minlength=5) / 20000
    wanted = torch.from_numpy(hypergeom(20000, 4, 5000).pmf(range(5)))
    torch.testing.assert_close(share.double(), wanted, rtol=0, atol=0.015)
    assert (drawn(1) == 1).all()


@pytest.mark.parametrize(("before", "now"), [(1, 3), (3, 1)])
def test_a_fit_goes_on_with_as_many_members_as_it_began_with(before, now):
    """Or no longer would all members together have each customer equally often."""
    env, _ = unseen_log(2)
    state = twin(env, members=before).state_dict()
    with pytest.raises(ValueError, match=f"algo.members: expected {before}, .*, got {now}"):
        twin(env, members=now).load_state_dict(state)
    twin(env, members=before).load_state_dict(state)
    twin(env, members=now).start_from(state | {"iteration": 1})  # another fit, which divides the customers anew


def test_a_log_with_states_is_fitted_with_them():
    env, log = random_log(60)
    model = twin(env)
    model.set_dataset(log)
    assert not model.twin.hides_state and model.make_evaluator().parameters(model) is None


def test_no_coefficient_is_without_a_prior():
    """What the log says nothing of, as a channel that was never used, must not make the information singular."""
    env, _ = unseen_log(2)
    model = twin(env)
    assert (model.twin.hidden_states.prior_precision(model.members[0], 1e-3) > 0).all()


def test_a_fit_does_not_forget_the_random_effects_that_it_starts_from():
    env, _ = unseen_log(2)
    first = twin(env)
    first.members[0].effect_sd.copy_(sds(first, alpha=0.3, omega=0.2))
    model = twin(env, twin={"hidden_states": {"random_effects": ["alpha"], "nodes": [5]}})
    with pytest.raises(ValueError, match="random_effects: expected those of the twin .*; omega is not among them"):
        model.start_from(first.state_dict() | {"iteration": 1})
    twin(env).start_from(first.state_dict() | {"iteration": 1})


@pytest.mark.long
def test_the_likelihood_is_highest_at_the_random_effects_of_the_log():
    """Customers whose α and whose ω of all channels differ from G(x) by normal effects."""
    config = OmegaConf.merge(node("offers_full_information", "env/observation=history"), {"num_agents": 10})
    env = instantiate(config, _convert_="all")(CPU, 0)
    model, generator = twin(env), torch.Generator().manual_seed(0)
    method, columns = model.twin.hidden_states, model.twin.columns
    sample = env.population.draw(3000, generator, "train")
    theta = theta_to_matrix(sample.customers).double()
    moved = theta.clone()
    for name, sd in (("alpha", 0.7), ("omega", 0.8)):
        moved[:, columns[name]] += sd * torch.randn(3000, 1, generator=generator, dtype=torch.float64)
    world = env.world.to(CPU, torch.float64)
    seen, _ = simulate(world, world.inhabit(theta_from_matrix(moved)), sample.state, generator, 12)
    everyone = torch.ones(12, 3000, dtype=torch.bool)
    panel = model.twin.to_panel(log_of_lives(env, sample.features, seen, everyone), env)

    def height(**of_parameters):
        sd = sds(model, **of_parameters)
        with torch.no_grad():
            return method.response_log_likelihoods(world, theta, sd, panel, panel.logged.double()).sum().item()

    true = height(alpha=0.7, omega=0.8)
    for alpha, omega in ((0.45, 0.8), (1.0, 0.8), (0.7, 0.4), (0.7, 1.3), (0.7, 0.0), (0.0, 0.8)):
        assert height(alpha=alpha, omega=omega) < true - 3, (alpha, omega)


@pytest.mark.slow
def test_without_random_effects_features_determine_all_parameters():
    env, log = unseen_log(60)
    model = twin(env, twin={"hidden_states": {**CLOSED, "steps": 2, "passes": 2}})
    model.set_dataset(log)
    model.setup(None, lambda: False)
    model.iterate(0.0)
    assert not model.members[0].effect_sd.any()


def test_a_customers_seasons_are_held_out_and_drawn_together():
    env, log = unseen_log(200)
    twice = replace(log, unit=log.unit // 2, episode=log.unit % 2)
    model = twin(env)
    model.set_dataset(twice)
    panel, held_out = model.panel, model.held_out
    for unit in panel.customer.unique():
        assert len(held_out[panel.customer == unit].unique()) == 1
