"""What policies would have earned in a randomised test: every arm for everybody, and treating whom it pays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlcore.ope import estimators, intervals
from rlcore.ope.estimators import Terms
from rlcore.ope.outcome_models import OutcomeLearner
from rlcore.uplift.fitted_models import predict_chunked


class Valued(NamedTuple):
    """A policy's profit a customer, by three estimators, each [value, low, high]."""

    dr: list[float]
    ips: list[float]
    snips: list[float]


def arm_profits(
    model: OutcomeLearner, features: Tensor, arm: Tensor, profit: Tensor, arms: int, judged: Tensor, seed: int
) -> Tensor:
    """Predict the profit of every arm for the customers `judged` [J, D], [J, A], by a model of other customers [N, D].

    DR is unbiased whatever the model predicts; a better model makes its interval narrower.
    """
    generator = torch.Generator(features.device).manual_seed(seed)
    fitted = model(features, arm, profit[:, None], arms, generator)
    return predict_chunked(fitted, judged)[:, :, 0].double()


def policy_terms(
    target: Tensor, arm: Tensor, propensity: Tensor, profit: Tensor, predicted: Tensor
) -> tuple[Terms, Terms, Terms]:
    """Terms of the estimators DR, IPS and SNIPS of a policy [N, A], whose arms were drawn with `propensity` [N].

    predicted [N, A] is the profit of every arm, by models that the customer was no part of.
    """
    weight = estimators.select_actions(target, arm) / propensity
    q = estimators.select_actions(predicted, arm)
    v = (target * predicted).sum(1)
    return (
        estimators.dr(weight, profit, v, q),
        estimators.ips(weight, profit),
        estimators.snips(weight, profit),
    )


def value(
    target: Tensor, arm: Tensor, propensity: Tensor, profit: Tensor, predicted: Tensor, unit: Tensor, level: float
) -> tuple[Valued, Terms]:
    """Value a policy, with intervals over units [N]; also returns its DR terms, for paired differences."""
    several = policy_terms(target, arm, propensity, profit, predicted)
    return Valued(*(with_interval(terms, unit, level) for terms in several)), several[0]


def difference(one: Terms, other: Terms, unit: Tensor, level: float) -> list[float]:
    """Paired difference of two policies' DR values, with its interval over units [N]."""
    return with_interval(Terms(one.plain - other.plain), unit, level)


def with_interval(terms: Terms, unit: Tensor, level: float) -> list[float]:
    """Value of an estimator with its central limit interval, whose terms are independent between units [N] only."""
    low, high = intervals.normal(terms, unit, level)
    return [intervals.estimate(terms).item(), low.item(), high.item()]


def everybody(arm: int, arms: int, customers: int) -> Tensor:
    """The policy [N, A] that gives one arm to everybody."""
    return one_hot(torch.full((customers,), arm), arms).double()


def best_for_each(profit_effects: Tensor) -> Tensor:
    """The policy [N, A] that gives each customer the arm of the greatest predicted effect on profit [N, A]."""
    return one_hot(profit_effects.argmax(1), profit_effects.shape[1]).double()
