"""Fisher scoring climbs to the maximum of a posterior density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, root

from envs.offers.twin.hidden_states.fisher_scoring import (
    LEAST_VARIANCE,
    TOLERATED_GAIN,
    QuadraticModel,
    ScoreSums,
    Secant,
    bounded_step,
    climb,
    quadratic_model,
    with_secants,
)


def poisson(of_rates: float, information: float = 1.0):
    """Log-likelihood of counts whose rates are exp(x'b), by hand, its maximum under a prior, and what tells of both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((torch.ones(500, 1), torch.randn(500, 3, generator=generator)), 1).double()
    y = torch.poisson((x @ torch.tensor([of_rates, 0.5, -0.4, 0.2]).double()).exp(), generator)
    prior, center = torch.tensor([1.0, 24.0, 24.0, 1.0]).double(), torch.tensor([0.0, 0.0, 0.0, -0.5]).double()

    def scores_at(b):
        rate = (x @ b).exp()
        score = x * (y - rate)[:, None]
        return ScoreSums((y * (x @ b) - rate).sum(), score.sum(0), information * score.T @ score)

    def slope(b):
        b = torch.from_numpy(b)
        return (scores_at(b).gradient - prior * (b - center)).numpy()

    return scores_at, prior, center, torch.from_numpy(root(slope, np.zeros(4), tol=1e-10).x)


@pytest.mark.parametrize("information", [1.0, 0.2])  # 0.2: steps that are five times too long are shortened
def test_fisher_scoring_climbs_to_the_maximum_that_a_root_finder_finds(information):
    scores_at, prior, center, wanted = poisson(1.0, information)
    start = torch.tensor([-1.0, 0.0, 0.0, 1.5]).double()
    found, passes, gain = climb(scores_at, start, prior, center, num_effects=1, passes=60)
    curvature = poisson(1.0)[0](wanted).information + prior.diag()
    left = found - wanted
    assert left @ curvature @ left < 2 * 1.5 * TOLERATED_GAIN and 3 < passes < 60
    assert gain < TOLERATED_GAIN
    cut_short = climb(scores_at, start, prior, center, num_effects=1, passes=1)
    slope = scores_at(start).gradient - prior * (start - center)
    assert torch.equal(cut_short.at, start) and cut_short.passes == 1
    unbounded = 0.5 * (slope @ torch.linalg.solve(scores_at(start).information + prior.diag(), slope)).item()
    assert TOLERATED_GAIN < cut_short.gain <= 1.000001 * unbounded


@pytest.mark.parametrize("height", [torch.nan, -torch.inf])
def test_a_climb_begins_where_the_likelihood_is_a_number(height):
    scores_at, prior, center, _ = poisson(1.0)
    with pytest.raises(ValueError, match="log: the likelihood is no number"):
        nowhere = lambda at: scores_at(at)._replace(log_likelihood=torch.tensor(height))  # noqa: E731
        climb(nowhere, center, prior, center, num_effects=1, passes=12)


@pytest.mark.parametrize(
    ("slopes", "held"),
    [((40.0, 30.0), [False, False]), ((-40.0, 30.0), [True, False]), ((-40.0, -60.0), [True, True])],
)
def test_a_step_goes_to_the_maximum_where_no_variance_falls_below_the_least(slopes, held):
    """Of a quadratic with correlated coefficients, the last two variances: the maximum by a bounded optimiser."""
    generator = torch.Generator().manual_seed(0)
    root_of_curvature = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    information = 10 * root_of_curvature @ root_of_curvature.T + torch.eye(5, dtype=torch.float64)
    gradient = torch.tensor([3.0, -2.0, 5.0, *slopes], dtype=torch.float64)
    prior, center = torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0]).double(), torch.tensor([0.1, 0.0, -0.1, 0.2, 0.2]).double()
    at = torch.tensor([0.0, 0.5, -0.5, 0.3, 0.2], dtype=torch.float64)

    def depth(b):
        step = torch.from_numpy(b) - at
        gained = gradient @ step - 0.5 * step @ information @ step
        return -(gained - 0.5 * (prior * (at + step - center).square()).sum()).item()

    bounds = [(None, None)] * 3 + [(LEAST_VARIANCE, None)] * 2
    wanted = minimize(depth, at.numpy(), bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    model = quadratic_model(ScoreSums(torch.zeros(()), gradient, information), at, prior, center)
    step, gain = bounded_step(model, at, 2)
    np.testing.assert_allclose((at + step).numpy(), wanted.x, atol=1e-5)
    assert ((at + step)[-2:] < 1.01 * LEAST_VARIANCE).tolist() == held
    assert gain == pytest.approx(depth(at.numpy()) - wanted.fun, rel=1e-6)


def test_a_variance_that_another_would_have_held_is_let_go():
    """Both would fall below the least alone; with the first held the second rises (by enumeration)."""
    curvature = torch.tensor([[100.0, -60.0], [-60.0, 100.0]], dtype=torch.float64)
    at = torch.tensor([0.5, 0.5], dtype=torch.float64)
    unbounded = torch.tensor([-0.5, -0.02], dtype=torch.float64)
    step, _ = bounded_step(QuadraticModel(torch.zeros(()), curvature @ (unbounded - at), curvature), at, 2)
    second = -0.02 + 0.6 * (LEAST_VARIANCE + 0.5)  # the maximum along the edge
    torch.testing.assert_close(at + step, torch.tensor([LEAST_VARIANCE, second], dtype=torch.float64))


def test_secants_give_a_quadratics_own_curvature():
    """Four steps in independent directions show all of it, whatever curvature was expected."""
    generator = torch.Generator().manual_seed(0)
    root_of_curvature = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    true = root_of_curvature @ root_of_curvature.T + torch.eye(4, dtype=torch.float64)
    directions = list(torch.linalg.eigh(true).eigenvectors.T)
    secants = [Secant(step, true @ step) for step in directions]
    expected = torch.eye(4, dtype=torch.float64) * 3.0
    torch.testing.assert_close(with_secants(expected, secants), true)
    for fall in (-directions[0], 1e-6 * directions[0], torch.inf * directions[0]):  # rose, hardly fell, is no number
        torch.testing.assert_close(with_secants(expected, [Secant(directions[0], fall)]), expected)
