"""Meta-learners of causal effects (S, T, X and DR) of several actions, on the models of rlcore/ope/outcome_models.py.

A meta-learner is called like the learners of that module: with outcomes [N, K] (K kinds) of actions [N] that were taken
on observations [N, D]. It returns a fitted model, which predicts the outcomes [B, A, K] of all A actions for
observations [B, D]. The first action is the control (nothing); an action's effect is its outcome minus the control's.
`cluster` int64 [N] says which unit, such as a person, a row belongs to; units are numbered from 0. `propensity` [N]
is the probability of the action taken.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlcore.ope.cross_fitting import folds
from rlcore.ope.outcome_models import OutcomeLearner, check_every_action
from rlcore.uplift.fitted_models import DRLearnerModel, PerArm, XLearnerModel, predict_chunked


class MetaLearner(Protocol):
    """A meta-learner: fits a model of several actions' outcomes, whose differences are the actions' effects."""

    def empty(self, inputs: int, actions: int, kinds: int) -> nn.Module:
        """Build an unfitted model, to load a `state_dict` into."""

    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        outcome: Tensor,
        actions: int,
        generator: torch.Generator,
        propensity: Tensor | None = None,
        cluster: Tensor | None = None,
    ) -> nn.Module:
        """Fit to outcomes [N, K] of actions [N] taken on observations [N, D]."""


class S:
    """S-learner: one model of all actions' outcomes, to which the action is an input (Künzel et al. 2019).

    A network has a head per action; a linear model has a constant per action, and slopes that all treatments share or
    that each action has of its own.
    """

    def __init__(self, *, model: OutcomeLearner):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> nn.Module:
        """Build an unfitted model, to load a `state_dict` into."""
        return self.model.empty(inputs, actions, kinds)

    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        outcome: Tensor,
        actions: int,
        generator: torch.Generator,
        propensity: Tensor | None = None,
        cluster: Tensor | None = None,
    ) -> nn.Module:
        """Fit; propensities and clusters are not used. Raises ValueError where an action was never taken."""
        check_every_action(action, actions)
        return self.model(obs, action, outcome, actions, generator)


class T:
    """T-learner: a model of its own for each action's outcomes (Künzel et al. 2019)."""

    def __init__(self, *, model: OutcomeLearner):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> PerArm:
        """Build an unfitted model, to load a `state_dict` into."""
        arms = [self.model.empty(inputs, 1, kinds) for _ in range(actions)]
        return PerArm(arms)

    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        outcome: Tensor,
        actions: int,
        generator: torch.Generator,
        propensity: Tensor | None = None,
        cluster: Tensor | None = None,
    ) -> PerArm:
        """Fit; propensities and clusters are not used. Raises ValueError where an action was never taken."""
        check_every_action(action, actions)
        return fit_per_arm(self.model, obs, action, outcome, range(actions), generator)


class X:
    """X-learner: effects on treated and on untreated units, each imputed by the other's model, averaged by propensity.

    Künzel et al. 2019. `model` fits outcomes, one model an action as in T. `effect` fits imputed effects and
    propensities.
    """

    def __init__(self, *, model: OutcomeLearner, effect: OutcomeLearner):
        self.model = model
        self.effect = effect

    def empty(self, inputs: int, actions: int, kinds: int) -> XLearnerModel:
        """Build an unfitted model, to load a `state_dict` into."""
        treatments = actions - 1
        control = self.model.empty(inputs, 1, kinds)
        treated = PerArm([self.effect.empty(inputs, 1, kinds) for _ in range(treatments)])
        untreated = self.effect.empty(inputs, 1, treatments * kinds)
        share = self.effect.empty(inputs, 1, actions)
        return XLearnerModel(control, treated, untreated, share)

    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        outcome: Tensor,
        actions: int,
        generator: torch.Generator,
        propensity: Tensor | None = None,
        cluster: Tensor | None = None,
    ) -> XLearnerModel:
        """Fit. The two effects are averaged with estimated propensities as weights, because new units have no logged
        ones.

        Raises ValueError where an action was never taken.
        """
        check_every_action(action, actions)
        # 1. Outcomes of each action.
        outcome_models = fit_per_arm(self.model, obs, action, outcome, range(actions), generator)
        predicted = predict_chunked(outcome_models, obs)
        # 2. Effects on the treated: the observed outcome of the action, minus the predicted outcome of the control.
        effect_on_treated = outcome - predicted[:, 0]
        treated = fit_per_arm(self.effect, obs, action, effect_on_treated, range(1, actions), generator)
        # 3. Effects on the untreated: the predicted outcome of the action, minus the observed outcome of the control.
        is_control = action == 0
        effect_on_untreated = predicted[is_control, 1:] - outcome[is_control, None]
        untreated = fit_one(self.effect, obs[is_control], effect_on_untreated.flatten(1), generator)
        # 4. Propensities.
        taken = one_hot(action, actions).to(outcome)
        share = fit_one(self.effect, obs, taken, generator)
        return XLearnerModel(outcome_models.arms[0], treated, untreated, share)


class DR:
    """DR-learner: doubly robust pseudo-effects, cross-fitted and regressed on observations (Kennedy 2020).

    `model` fits outcomes. `effect` fits pseudo-effects, and propensities where none are logged. `folds` is the number
    of folds of clusters, `floor` the least propensity.
    """

    def __init__(self, *, model: OutcomeLearner, effect: OutcomeLearner, folds: int, floor: float):
        self.model = model
        self.effect = effect
        self.folds = folds
        self.floor = floor

    def empty(self, inputs: int, actions: int, kinds: int) -> DRLearnerModel:
        """Build an unfitted model, to load a `state_dict` into."""
        outcome_models = [self.model.empty(inputs, actions, kinds) for _ in range(self.folds)]
        effect = self.effect.empty(inputs, 1, (actions - 1) * kinds)
        return DRLearnerModel(outcome_models, effect)

    def __call__(
        self,
        obs: Tensor,
        action: Tensor,
        outcome: Tensor,
        actions: int,
        generator: torch.Generator,
        propensity: Tensor | None = None,
        cluster: Tensor | None = None,
    ) -> DRLearnerModel:
        """Fit; without propensities [N], propensities are estimated.

        Raises ValueError where an action was never taken, or was taken in one fold alone.
        """
        if cluster is None:
            cluster = torch.arange(len(obs), device=obs.device)
        fold = folds(cluster, self.folds, generator)
        taken = one_hot(action, actions).to(outcome)
        pseudo_outcome = outcome.new_zeros(len(obs), actions, outcome.shape[1])
        outcome_models = []
        for k in range(self.folds):
            held_out = fold == k
            rest = ~held_out
            check_every_action(action[rest], actions)
            model = self.model(obs[rest], action[rest], outcome[rest], actions, generator)
            outcome_models.append(model)
            if propensity is None:
                share_model = fit_one(self.effect, obs[rest], taken[rest], generator)
                shares = predict_chunked(share_model, obs[held_out])[:, 0]
                fold_propensity = (shares * taken[held_out]).sum(1)
            else:
                fold_propensity = propensity[held_out].to(outcome)
            fold_propensity = fold_propensity.clamp_min(self.floor)
            predicted = predict_chunked(model, obs[held_out])
            pseudo_outcome[held_out] = pseudo_outcomes(predicted, taken[held_out], outcome[held_out], fold_propensity)
        pseudo_effect = pseudo_outcome[:, 1:] - pseudo_outcome[:, :1]
        effect = fit_one(self.effect, obs, pseudo_effect.flatten(1), generator)
        return DRLearnerModel(outcome_models, effect)


def pseudo_outcomes(predicted: Tensor, taken: Tensor, outcome: Tensor, propensity: Tensor) -> Tensor:
    """Return μ̂_a + 1{taken}/p·(y − μ̂_a) [N, A, K] (Robins & Rotnitzky 1995), of mean μ_a if either μ̂ or p is right.

    predicted [N, A, K] is μ̂, taken [N, A] is one-hot, outcome y [N, K], propensity p [N] of the action taken.
    """
    inverse_propensity = taken / propensity[:, None]
    residual = outcome[:, None] - predicted
    return predicted + inverse_propensity[:, :, None] * residual


# ── parts of fits ───────────────────────────────────────────────────────────────────────────────────────────────────
def fit_one(model: OutcomeLearner, obs: Tensor, outcome: Tensor, generator: torch.Generator) -> nn.Module:
    """Regress outcomes [N, K] on observations [N, D], whatever the action."""
    only_action = torch.zeros(len(obs), dtype=torch.long, device=obs.device)
    return model(obs, only_action, outcome, 1, generator)


def fit_per_arm(
    model: OutcomeLearner, obs: Tensor, action: Tensor, outcome: Tensor, arms: range, generator: torch.Generator
) -> PerArm:
    """Regress each arm's outcomes separately; every arm has some."""
    fitted = []
    for arm in arms:
        taken = action == arm
        arm_model = fit_one(model, obs[taken], outcome[taken], generator)
        fitted.append(arm_model)
    return PerArm(fitted)
