"""Fit uplift learners to a randomised experiment, and choose one by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.uplift.fitted_models import predict_chunked
from rlcore.uplift.meta_learners import MetaLearner
from rlcore.uplift.metrics import qini, tells_orders_apart

Effects = Callable[[Tensor], Tensor]  # observations [B, D] → effects of all actions over the control, [B, A]


class Experiment(NamedTuple):
    """Units of a randomised experiment; action 0 is the control."""

    unit: Tensor  #: number of the unit, int64 [N]; a learner's own folds never split one
    obs: Tensor  #: [N, D]
    action: Tensor  #: int64 [N]
    outcome: Tensor  #: [N]
    propensity: Tensor  #: probability of the unit's action, [N]

    def part(self, rows: Tensor) -> Experiment:
        """Take some of the rows, by number or by a mask."""
        return Experiment(*(x[rows] for x in self))


class Choice(NamedTuple):
    """The learner that cross-validation chose, fitted to all units."""

    name: str
    validated: dict[str, float]  #: Qini coefficient by learner
    effects: Effects


def fit_effects(learner: MetaLearner, experiment: Experiment, actions: int, seed: int) -> Effects:
    """Fit a learner to an experiment; its effects are predicted outcomes less the control's."""
    generator = torch.Generator(experiment.obs.device).manual_seed(seed)
    model = learner(
        experiment.obs,
        experiment.action,
        experiment.outcome[:, None],
        actions,
        generator,
        experiment.propensity,
        numbered(experiment.unit),
    )

    def effects(obs: Tensor) -> Tensor:
        outcomes = predict_chunked(model, obs)[:, :, 0].double()
        return outcomes - outcomes[:, :1]

    return effects


def mean_qini(experiment: Experiment, effects: Tensor) -> float:
    """Mean Qini coefficient over the treatments, each against the control, of predicted effects [N, A].

    It is 0, that of a random order, where the units of a treatment and the control can't tell orders apart: nobody has
    an outcome, or one of the two is missing.
    """
    coefficients = []
    for action in range(1, effects.shape[1]):
        rows = (experiment.action == 0) | (experiment.action == action)
        treated = experiment.action[rows] == action
        outcome = experiment.outcome[rows]
        tells = tells_orders_apart(outcome, treated)
        coefficients.append(qini(outcome, effects[rows, action], treated) if tells else outcome.new_zeros(()))
    return torch.stack(coefficients).mean().item()


def cross_validate(learner: MetaLearner, experiment: Experiment, actions: int, fold: Tensor, seed: int) -> list[float]:
    """Mean Qini coefficient of a learner in each fold [N] of the units, by a model of the other folds."""
    values = []
    for k in range(int(fold.amax()) + 1):
        held_out = fold == k
        effects = fit_effects(learner, experiment.part(~held_out), actions, seed)
        left = experiment.part(held_out)
        values.append(mean_qini(left, effects(left.obs)))
    return values


def choose(
    learners: dict[str, MetaLearner],
    experiment: Experiment,
    actions: int,
    fold: Tensor,
    seed: int,
    standard_errors: float,
) -> Choice:
    """Choose a learner by its cross-validated Qini coefficient, and fit it to all units; see `first_level`.

    Where an action is in one fold alone, nothing can be validated: the first learner is chosen.
    """
    if any(len(experiment.action[fold != k].unique()) < actions for k in range(int(fold.amax()) + 1)):
        name = next(iter(learners))
        return Choice(name, dict.fromkeys(learners, math.nan), fit_effects(learners[name], experiment, actions, seed))
    by_fold = {name: cross_validate(learner, experiment, actions, fold, seed) for name, learner in learners.items()}
    name = first_level(by_fold, standard_errors)
    validated = {learner: sum(values) / len(values) for learner, values in by_fold.items()}
    return Choice(name, validated, fit_effects(learners[name], experiment, actions, seed))


def numbered(unit: Tensor) -> Tensor:
    """Number the units of rows [N] from 0 without a gap, in the order in which they first come."""
    distinct, number = unit.unique(return_inverse=True)
    first = torch.full((len(distinct),), len(unit)).scatter_reduce(0, number, torch.arange(len(unit)), "amin")
    return first.argsort().argsort()[number]


def first_level(by_fold: dict[str, list[float]], standard_errors: float) -> str:
    """Name the first learner that is within so many standard errors of the best one; values are by fold.

    The standard error is that of the mean difference to the best over folds (the rule of Breiman et al. 1984, paired).
    Where outcomes are rare, the best of many is the luckiest; learners are therefore listed by how well they are
    expected to do. At 0 the best is chosen.
    """
    values = torch.tensor(list(by_fold.values()), dtype=torch.float64)  # [L, folds]
    lost = values[values.mean(1).argmax()] - values
    error = lost.std(1) / lost.shape[1] ** 0.5
    is_level = lost.mean(1) <= standard_errors * error
    return list(by_fold)[int(is_level.int().argmax())]
