"""Meta-learners of causal effects (S, T, X and DR) of several actions, on the models of rlcore/ope/outcome_models.py.

All are fitted and called like those models: fitted to outcomes [N, K] of actions [N] taken on observations [N, D], they
predict the outcomes [B, A, K] of all actions. The first action is the control (nothing); an action's effect is its outcome
less the control's. `cluster` int64 [N], numbered from 0, says which rows are of the same unit; `propensity` [N] is of the
action taken.
"""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlcore.ope.cross_fitting import folds
from rlcore.ope.outcome_models import CHUNK

MIN_SHARE = 1e-3  # the least share of an action that the X-learner divides by


class S:
    """S-learner: one model of all actions' outcomes (Künzel et al. 2019); the action picks a network's head or ridge slopes."""

    def __init__(self, *, model: Callable):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> nn.Module:
        """Build an unfitted model, for a state to be loaded into."""
        return self.model.empty(inputs, actions, kinds)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> nn.Module:
        """Fit; propensities and clusters are not used."""
        return self.model(obs, action, outcome, actions, generator)


class T:
    """T-learner: a model of its own for each action's outcomes (Künzel et al. 2019)."""

    def __init__(self, *, model: Callable):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> PerArm:
        """Build an unfitted model, for a state to be loaded into."""
        return PerArm([self.model.empty(inputs, 1, kinds) for _ in range(actions)])

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> PerArm:
        """Fit; propensities and clusters are not used. Raises ValueError where an action was never taken."""
        return fit_per_arm(self.model, obs, action, outcome, range(actions), generator)


class X:
    """X-learner: effects on the treated and on the untreated, each imputed by the other's model, averaged by propensity (Künzel
    et al. 2019). model: of outcomes, as the T-learner has it. effect: of imputed effects, and of the actions' shares."""

    def __init__(self, *, model: Callable, effect: Callable):
        self.model, self.effect = model, effect

    def empty(self, inputs: int, actions: int, kinds: int) -> XLearnerModel:
        """Build an unfitted model, for a state to be loaded into."""
        return XLearnerModel(self.model.empty(inputs, 1, kinds),
                             PerArm([self.effect.empty(inputs, 1, kinds) for _ in range(actions - 1)]),
                             self.effect.empty(inputs, 1, (actions - 1) * kinds), self.effect.empty(inputs, 1, actions))

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> XLearnerModel:
        """Fit. The average is by estimated propensities: new units have no others, and any are consistent.

        Raises ValueError where an action was never taken.
        """
        means = fit_per_arm(self.model, obs, action, outcome, range(actions), generator)
        table, control = predict_chunked(means, obs), action == 0
        treated = fit_per_arm(self.effect, obs, action, outcome - table[:, 0], range(1, actions), generator)
        imputed = (table[control, 1:] - outcome[control, None]).flatten(1)
        untreated = fit_one(self.effect, obs[control], imputed, generator)
        share = fit_one(self.effect, obs, one_hot(action, actions).to(outcome), generator)
        return XLearnerModel(means.arms[0], treated, untreated, share)


class DR:
    """DR-learner: pseudo-effects of cross-fitted outcomes and propensities, regressed on observations (Kennedy 2020).

    model: of outcomes. effect: of pseudo-effects, and of propensities where there are none. folds: of clusters. floor: of a
    propensity.
    """

    def __init__(self, *, model: Callable, effect: Callable, folds: int, floor: float):
        self.model, self.effect, self.folds, self.floor = model, effect, folds, floor

    def empty(self, inputs: int, actions: int, kinds: int) -> DRLearnerModel:
        """Build an unfitted model, for a state to be loaded into."""
        return DRLearnerModel([self.model.empty(inputs, actions, kinds) for _ in range(self.folds)],
                              self.effect.empty(inputs, 1, (actions - 1) * kinds))

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> DRLearnerModel:
        """Fit; without propensities [N] they are estimated."""
        cluster = torch.arange(len(obs), device=obs.device) if cluster is None else cluster
        fold, models = folds(cluster, self.folds, generator), []
        pseudo = outcome.new_zeros(len(obs), actions, outcome.shape[1])
        for k in range(self.folds):
            others, own = fold != k, fold == k
            models.append(self.model(obs[others], action[others], outcome[others], actions, generator))
            taken = one_hot(action[own], actions).to(outcome)
            if propensity is None:
                shares = fit_one(self.effect, obs[others], one_hot(action[others], actions).to(outcome), generator)
                p = (predict_chunked(shares, obs[own])[:, 0] * taken).sum(1)
            else:
                p = propensity[own].to(outcome)
            table = predict_chunked(models[-1], obs[own])
            pseudo[own] = pseudo_outcomes(table, taken, outcome[own], p.clamp_min(self.floor))
        effects = (pseudo[:, 1:] - pseudo[:, :1]).flatten(1)
        return DRLearnerModel(models, fit_one(self.effect, obs, effects, generator))


def pseudo_outcomes(table: Tensor, taken: Tensor, outcome: Tensor, propensity: Tensor) -> Tensor:
    """μ̂_a + 1{taken}/p·(y − μ̂_a), [N, A, K] (Robins & Rotnitzky 1995): of mean μ_a if either μ̂ or p is right.

    table [N, A, K] has the μ̂, taken [N, A] is one-hot, outcome [N, K], propensity [N] of what was taken.
    """
    return table + (taken / propensity[:, None])[:, :, None] * (outcome[:, None] - table)


def rearranged(table: Tensor, chains: list[list[int]], kinds: list[int]) -> Tensor:
    """Sort outcomes `kinds` of a table [B, A, K] along chains of actions, in which the true outcomes are known to increase.

    Sorting moves no prediction further from any increasing truth (Chernozhukov, Fernández-Val & Galichon 2009).
    """
    table = table.clone()
    for chain in chains:
        for kind in kinds:
            table[:, chain, kind] = table[:, chain, kind].sort(1).values
    return table


# ── fitted models ───────────────────────────────────────────────────────────────────────────────────────────────────
class PerArm(nn.Module):
    """Each action's outcomes by a model of its own."""

    def __init__(self, arms: list[nn.Module]):
        super().__init__()
        self.arms = nn.ModuleList(arms)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.cat([arm(obs) for arm in self.arms], 1)


class XLearnerModel(nn.Module):
    """The control's outcomes, and effects g·τ₀ + (1 − g)·τ₁ of both imputations, g an action's share beside the control's."""

    def __init__(self, control: nn.Module, treated: nn.Module, untreated: nn.Module, share: nn.Module):
        super().__init__()
        self.control, self.treated, self.untreated, self.share = control, treated, untreated, share

    def forward(self, obs: Tensor) -> Tensor:
        control, treated = self.control(obs), self.treated(obs)
        share = self.share(obs)[:, 0].clamp(MIN_SHARE, 1.0)
        g = (share[:, 1:] / (share[:, 1:] + share[:, :1]))[:, :, None]
        return torch.cat((control, control + g * self.untreated(obs).view_as(treated) + (1 - g) * treated), 1)


class DRLearnerModel(nn.Module):
    """The control's outcomes as the mean of the folds' models, and effects."""

    def __init__(self, models: list[nn.Module], effect: nn.Module):
        super().__init__()
        self.models, self.effect = nn.ModuleList(models), effect

    def forward(self, obs: Tensor) -> Tensor:
        control = torch.stack([model(obs)[:, :1] for model in self.models]).mean(0)
        return torch.cat((control, control + self.effect(obs).view(len(obs), -1, control.shape[2])), 1)


class Monotone(nn.Module):
    """A model whose outcomes `kinds` are sorted to increase along chains of actions."""

    def __init__(self, inner: nn.Module, chains: list[list[int]], kinds: list[int]):
        super().__init__()
        self.inner, self.chains, self.kinds = inner, chains, kinds

    def forward(self, obs: Tensor) -> Tensor:
        return rearranged(self.inner(obs), self.chains, self.kinds)


# ── parts of fits ───────────────────────────────────────────────────────────────────────────────────────────────────
def fit_one(model: Callable, obs: Tensor, outcome: Tensor, generator: torch.Generator) -> nn.Module:
    """Regress outcomes [N, K] on observations, whatever the action."""
    return model(obs, torch.zeros(len(obs), dtype=torch.long, device=obs.device), outcome, 1, generator)


def fit_per_arm(model: Callable, obs: Tensor, action: Tensor, outcome: Tensor, arms: range,
                generator: torch.Generator) -> PerArm:
    """Regress each arm's outcomes separately; raise ValueError where an arm has none."""
    count = action.bincount(minlength=arms.stop)
    if not count[arms.start:].all():
        lacking = arms.start + int(count[arms.start:].argmin())
        raise ValueError(f"action {lacking}: expected decisions to learn from, got none; S and DR share a model among actions")
    return PerArm([fit_one(model, obs[action == a], outcome[action == a], generator) for a in arms])


def predict_chunked(model: nn.Module, obs: Tensor) -> Tensor:
    """Outcomes [N, A, K] of many rows, CHUNK at a time."""
    return torch.cat([model(part) for part in obs.split(CHUNK)])
