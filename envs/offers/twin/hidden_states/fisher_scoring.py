"""Scores of customers' lives, the Fisher information that they make, and steps of Fisher scoring by both.

The information of coefficients is the sum of outer products of customers' scores (Berndt, Hall, Hall & Hausman 1974).
That of the margin is the expected one: where purchases of a customer bring much the same, their scores are no measure
of it, for the likelihood of money holds the mean alone (envs/offers/twin/likelihood.py). The coefficients are G's
linear ones, [K, 1 + F] in prior standard deviations, the constant first, and last the variances of the E random effects
in prior variances: near 0 the slope by a variance stays, where those by the sd and by its logarithm vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import nnls
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.twin.structural_model import ParameterNetwork

# log-likelihood [N] of a panel under θ [N, K], the random effects' sds [N, K] by θ's columns, and weights [T, N]
ResponseLikelihood = Callable[[Tensor, Tensor, Panel, Tensor], Tensor]


LEAST_VARIANCE = 1e-4  # of a random effect, in prior variances of its parameter
LEAST_SHARE = 0.2  # a step corrects the curvature where step'·fall is more than this share of step'·curvature·step
# gain of the log-posterior below which a climb ends; at this gain the step is √2 posterior sds long, over all
# coefficients together, which may be one coefficient's
TOLERATED_GAIN = 1.0


class ScoreSums(NamedTuple):
    """Weighted sums over customers, P = K·(1 + F) + E coefficients."""

    log_likelihood: Tensor  # float64 []
    gradient: Tensor  # float64 [P]
    information: Tensor  # float64 [P, P]


def in_order(member: ParameterNetwork, variance: Tensor) -> Tensor:
    """Return the coefficients of a member and its effects' variances [E] in order, differentiable, [P]."""
    linear = torch.cat((member.linear.bias[:, None], member.linear.weight), 1)
    return torch.cat((linear.flatten(), variance))


def coefficients(member: ParameterNetwork, variance: Tensor) -> Tensor:
    """Return the values of the same coefficients, float64 [P]."""
    return in_order(member, variance).detach().double()


@torch.no_grad()
def set_coefficients(member: ParameterNetwork, variance: Tensor, values: Tensor) -> None:
    """Give a member and its effects' variances [E] the coefficients [P]."""
    linear, of_effects = values.split([len(values) - len(variance), len(variance)])
    linear = linear.view(len(member.middle), -1)
    member.linear.bias.copy_(linear[:, 0])
    member.linear.weight.copy_(linear[:, 1:])
    variance.copy_(of_effects)


def scores(
    likelihood: ResponseLikelihood,
    member: ParameterNetwork,
    effect_sd: Tensor,
    of_columns: Tensor,
    panel: Panel,
    weight: Tensor,
    chunk: int,
) -> ScoreSums:
    """Sum the scores of a panel's customers and their outer products, each customer as often as it was drawn.

    The likelihood is that of responses, without margins. `effect_sd` [K] are the random effects' by θ's columns, and
    `of_columns`, bool [E, K], are the columns of each effect.
    """
    size = len(member.middle) * (1 + len(panel.features)) + len(of_columns)
    low, high = member.bounds
    sd_by_variance = torch.where(effect_sd > 0, member.spread.square() / (2 * effect_sd), 0.0)  # of spread·√variance
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    gradient = torch.zeros(size, dtype=torch.float64, device=weight.device)
    information = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    for rows in torch.arange(len(panel), device=weight.device).split(chunk):
        part, counts = panel[rows], weight[:, rows]
        with torch.no_grad():
            theta = member(part.features.T)
        theta.requires_grad_()
        of_each = effect_sd.detach().to(theta).expand(len(rows), -1).clone().requires_grad_()
        found = likelihood(theta, of_each, part, counts)
        of_theta, of_sd = torch.autograd.grad(found.sum(), (theta, of_each))
        of_theta = of_theta * ((theta > low) & (theta < high))  # G is flat where it is held within bounds
        design = torch.cat((torch.ones_like(of_sd[:, :1]), member.standardize(part.features.T)), 1)
        by_coefficient = ((of_theta * member.spread)[:, :, None] * design[:, None]).flatten(1)
        of_variances = (of_sd * sd_by_variance) @ of_columns.T.to(of_sd)
        score = torch.cat((by_coefficient, of_variances), 1).detach()
        times = counts.amax(0)
        weighted = score * times[:, None]
        total += (found.detach() * times).sum(dtype=torch.float64)
        gradient += weighted.sum(0)
        information += score.T @ weighted
    return ScoreSums(total, gradient, information)


def with_margins(found: ScoreSums, member: ParameterNetwork, panel: Panel, weight: Tensor, column: int) -> ScoreSums:
    """Add likelihood, scores and expected information of log g, θ's `column`, from purchases in weeks that count."""
    bought = panel.bought & (weight > 0)
    times, count = weight.amax(0), bought.sum(0)
    brought = torch.where(bought, panel.margin, 0.0).sum(0)
    with torch.no_grad():
        log_margin = member(panel.features.T)[:, column]
        design = torch.cat((torch.ones_like(log_margin[:, None]), member.standardize(panel.features.T)), 1).double()
    total = (times * (-log_margin * count - brought / log_margin.exp())).sum(dtype=torch.float64)
    score = times * (brought / log_margin.exp() - count) * member.spread[column]
    width = design.shape[1]
    at = slice(column * width, (column + 1) * width)
    gradient, information = found.gradient.clone(), found.information.clone()
    gradient[at] = design.T @ score.double()
    information[at] = 0.0
    information[:, at] = 0.0
    information[at, at] = design.T @ (design * (times * count * member.spread[column].square())[:, None].double())
    return ScoreSums(found.log_likelihood + total, gradient, information)


class QuadraticModel(NamedTuple):
    """Of the log-posterior density about some coefficients [P]."""

    height: Tensor  # there, float64 []
    slope: Tensor  # float64 [P]
    curvature: Tensor  # negative of the second derivatives, float64 [P, P]


def quadratic_model(found: ScoreSums, at: Tensor, prior: Tensor, center: Tensor) -> QuadraticModel:
    """Return the model about `at` [P], with the information for the likelihood's curvature.

    The prior of each coefficient is normal about `center` [P] with precision `prior` [P].
    """
    far = at - center
    height = found.log_likelihood - 0.5 * (prior * far.square()).sum()
    return QuadraticModel(height, found.gradient - prior * far, found.information + prior.diag())


class Secant(NamedTuple):
    """How the slope fell over a step."""

    step: Tensor  # float64 [P]
    fall: Tensor  # of the slope, float64 [P]


def with_secants(curvature: Tensor, secants: list[Secant]) -> Tensor:
    """Correct a curvature [P, P] by what steps have shown of it (BFGS: Nocedal and Wright 2006, equation 6.19).

    Steps along which the slope hardly fell, or rose, are left out: the corrected curvature stays positive definite.
    """
    for step, fall in secants:
        expected = curvature @ step
        if fall.isfinite().all() and step @ fall > LEAST_SHARE * (step @ expected):
            curvature = curvature - expected.outer(expected) / (step @ expected) + fall.outer(fall) / (step @ fall)
    return curvature


def bounded_step(model: QuadraticModel, at: Tensor, num_effects: int) -> tuple[Tensor, float]:
    """Return the step [P] from coefficients `at` to the maximum of a quadratic model, and the gain that it promises.

    No variance, of the last `num_effects` coefficients, falls below LEAST_VARIANCE. Where the other coefficients follow
    to their maximum, the model is quadratic in the variances, with the inverse of their block of the covariance for
    curvature. With R'R for this inverse the variances are a non-negative least-squares problem in R (Lawson and Hanson
    1974).
    """
    of_variances = slice(len(at) - num_effects, len(at))
    units = torch.eye(len(at)).to(at)[:, of_variances]
    solved = torch.linalg.solve(model.curvature, torch.cat((model.slope[:, None], units), 1))
    step, covariance = solved[:, 0], solved[:, 1:]  # without bounds; of all coefficients with the variances, [P, E]
    if num_effects:
        lowest = LEAST_VARIANCE - at[of_variances]  # step of each
        precision = torch.linalg.inv(covariance[of_variances])
        root = torch.linalg.cholesky(precision).T
        above, _ = nnls(root.cpu().numpy(), (root @ (step[of_variances] - lowest)).cpu().numpy())
        change = lowest + torch.from_numpy(above).to(step) - step[of_variances]
        step = step + covariance @ (precision @ change)
    return step, (model.slope @ step - 0.5 * step @ model.curvature @ step).item()


class Climb(NamedTuple):
    """Where a climb ended."""

    at: Tensor  # the highest coefficients, float64 [P]
    passes: int  # made
    gain: float  # of the log-posterior, which a whole step from there promises


def climb(
    scores_at: Callable[[Tensor], ScoreSums],
    start: Tensor,
    prior: Tensor,
    center: Tensor,
    *,
    num_effects: int,
    passes: int,
) -> Climb:
    """Climb to the greatest posterior density by Fisher scoring, from coefficients `start` [P].

    A pass takes the scores at some coefficients, the first at `start`, and there are at most `passes`. The next are a
    step away from the highest so far. A step that leads no higher is halved. The way ends where a step promises a gain
    of less than TOLERATED_GAIN, or with the last pass. Raises ValueError where the density at `start` is no number.
    """
    best, highest, gain, step, made = start, -torch.inf, torch.inf, torch.zeros_like(start), 0
    slope, secants = torch.zeros_like(start), []
    while made < passes and not gain < TOLERATED_GAIN:
        at, made = best + step, made + 1
        model = quadratic_model(scores_at(at), at, prior, center)
        height = model.height.item()
        if made == 1 and not math.isfinite(height):
            raise ValueError(
                "log: the likelihood is no number; expected outcomes that the world can bring, or a lower "
                "algo.twin.hidden_states.lr"
            )
        if made > 1:
            secants.append(Secant(step, slope - model.slope))
        if not height > highest:
            step = step / 2
            continue
        best, highest, slope = at, height, model.slope
        corrected = model._replace(curvature=with_secants(model.curvature, secants))
        step, gain = bounded_step(corrected, at, num_effects)
    return Climb(best, made, gain)
