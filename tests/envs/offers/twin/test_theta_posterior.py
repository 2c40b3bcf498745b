"""The posterior of θ by weighted draws: exact weights, resampling that keeps moments, and what it learns."""

from __future__ import annotations

from dataclasses import fields
from math import log

import pytest
import torch

from configs import load
from envs.offers.populations.base import theta_from_matrix, theta_to_matrix
from envs.offers.populations.parameter_regression import ParameterRegression
from envs.offers.twin.theta_posterior import ThetaPosterior, chosen, prior_draws
from envs.offers.world.belief_observation import start_marginals
from envs.offers.world.customers import Customers
from envs.offers.world.filtering import start_belief
from hidden_markov import Observed, simulate, state_pass
from reference_world import references

OPTIONS = {"margin_shape": 3.0, "resample_below": 0.0, "kernel": 0.3}


def seeded(seed: int) -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shop():
    """300 customers whose features explain .6 of θ: their seasons as seen, their θ, and another sample."""
    env = load("offers_full_information", torch.device("cpu"), 0, num_agents=10, population={"r2": 0.6})
    sample, other = env.population.draw(300, seeded(1), "test"), env.population.draw(5000, seeded(2), "train")
    world = env.world.to("cpu", torch.float64)
    seen, _ = simulate(world, world.inhabit(sample.customers), sample.state, seeded(3), 12)
    return world, sample, other, seen


@pytest.mark.slow
def test_weights_are_likelihoods_of_the_season(shop):
    world, sample, other, seen = shop
    theta = prior_draws(other, sample.features[:6], 5, seeded(4), ridge=1e-4)
    posterior = ThetaPosterior(theta, world, start_belief(world.inhabit(sample.customers)).marginals()[:, 0], **OPTIONS)
    weeks = [week.take(slice(6)) for week in seen[:4]]
    for week in weeks:
        posterior.observe(week, seeded(0))
    of_draws = [references(world.inhabit(theta_from_matrix(theta[k])), world) for k in range(5)]
    for i in range(6):
        found = []
        for k in range(5):
            reference = of_draws[k][i]
            _, likelihood = state_pass(Observed(reference), weeks, i)
            margins = sum(
                -log(reference.margin) - week.margin[i].item() / reference.margin for week in weeks if week.bought[i]
            )
            found.append(likelihood + 3.0 * margins)
        wanted = torch.tensor(found, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(posterior.weight[:, i], wanted, rtol=1e-8, atol=1e-10)
        mean = (wanted[:, None] * theta[:, i]).sum(0)
        torch.testing.assert_close(theta_to_matrix(posterior.mean())[i], mean)
    torch.testing.assert_close(posterior.effective_size, 1 / posterior.weight.square().sum(0))


@pytest.mark.long
def test_resampling_keeps_mean_and_spread_and_filters_the_season_again(shop):
    world, sample, other, seen = shop
    theta = prior_draws(other, sample.features[:3], 4000, seeded(5), ridge=1e-4)
    start = start_marginals(other.state)
    kept, moved = (
        ThetaPosterior(theta, world, start, margin_shape=1.0, resample_below=below, kernel=0.3) for below in (0.0, 1.0)
    )
    for t, week in enumerate(seen[:3]):
        kept.observe(week.take(slice(3)), seeded(t))
        moved.resample_below = 1.0 if t == 2 else 0.0
        moved.observe(week.take(slice(3)), seeded(t))
    assert torch.allclose(moved.weight, torch.full_like(moved.weight, 1 / 4000)) and (kept.effective_size < 4000).all()
    mean = [(x.weight[..., None] * x.theta).sum(0) for x in (kept, moved)]
    spread = [(x.weight[..., None] * (x.theta - m).square()).sum(0).sqrt() for x, m in zip((kept, moved), mean)]
    assert ((mean[0] - mean[1]).abs() < 0.12 * spread[0]).all()
    assert ((spread[1] / spread[0] - 1).abs() < 0.1).all()
    again = moved._filtered(moved.theta, moved.weeks)
    for x, y in zip(moved.belief, again):
        torch.testing.assert_close(x, y)
    before, after = kept.state(), moved.state()
    assert (before.churned - after.churned).abs().max() < 0.02
    torch.testing.assert_close(sum(x.flatten(0, -2).sum(0) for x in after[:2]) + after.churned, torch.ones(3).double())


def test_draws_are_chosen_by_their_weights():
    weight = torch.rand(50, 4, generator=seeded(0), dtype=torch.float64)
    weight = weight / weight.sum(0)
    index = chosen(weight, seeded(1))
    for i in range(4):
        times = index[:, i].bincount(minlength=50)
        assert ((times - 50 * weight[:, i]).abs() < 1).all()  # systematic resampling
        assert not torch.equal(index[:, i], index[:, i].sort().values)


@pytest.mark.long
def test_a_season_teaches_what_features_leave_open(shop):
    """After 12 weeks the posterior mean is nearer to θ than θ̂: purchases tell α, margins g, messages attention."""
    world, sample, other, seen = shop
    theta = prior_draws(other, sample.features, 64, seeded(6), ridge=1e-4)
    posterior = ThetaPosterior(
        theta, world, start_marginals(other.state), margin_shape=5.0, resample_below=0.5, kernel=0.3
    )
    for t, week in enumerate(seen):
        posterior.observe(week, seeded(t))
    truth = theta_to_matrix(sample.customers)
    names = [f.name for f in fields(Customers)]

    def error(theta):
        return (theta - truth).square().mean(0).sqrt()

    ratio = error(theta_to_matrix(posterior.mean())) / error(
        ParameterRegression(other, ridge=1e-4).matrix(sample.features)
    )
    assert ratio[names.index("alpha")] < 0.85 and ratio[names.index("margin")] < 0.6
    assert ratio.mean() < 1.02 and ratio.max() < 1.15  # what the season does not tell stays as it was
    assert (posterior.effective_size > 10).all()
