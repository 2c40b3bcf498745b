"""Learners of what actions change: S, T, X and DR, of several actions, on the models of rlcore/ope/outcome_models.py.

All are fitted and asked like those models: to outcomes [N, K] of actions [N] taken on observations [N, D], for the outcomes
[B, A, K] of all actions. The first action is nothing; an action's effect is its outcome less nothing's. Where rows have
customers in common, `cluster` int64 [N], numbered from 0, says whose they are; `propensity` [N] is of the action taken.
"""
from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlcore.ope.outcome_models import CHUNK, folds


class S:
    """One model of all actions' outcomes (Künzel et al. 2019): the action picks a head of a network, or slopes of a ridge."""

    def __init__(self, *, model: Callable):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> nn.Module:
        """Lay out what a fit returns, for a state to be loaded into."""
        return self.model.empty(inputs, actions, kinds)

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> nn.Module:
        """Fit; propensities and clusters have no part in it."""
        return self.model(obs, action, outcome, actions, generator)


class T:
    """A model of each action's outcomes by itself (Künzel et al. 2019)."""

    def __init__(self, *, model: Callable):
        self.model = model

    def empty(self, inputs: int, actions: int, kinds: int) -> Apart:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Apart([self.model.empty(inputs, 1, kinds) for _ in range(actions)])

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> Apart:
        """Fit; propensities and clusters have no part in it. Raises ValueError where an action was never taken."""
        return apart(self.model, obs, action, outcome, range(actions), generator)


class X:
    """Effects on the treated and on the untreated, each imputed by the other's model, averaged by propensity (Künzel et al.
    2019). model: of outcomes, as T has it. effect: of imputed effects, and of the actions' shares."""

    def __init__(self, *, model: Callable, effect: Callable):
        self.model, self.effect = model, effect

    def empty(self, inputs: int, actions: int, kinds: int) -> Averaged:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Averaged(self.model.empty(inputs, 1, kinds),
                        Apart([self.effect.empty(inputs, 1, kinds) for _ in range(actions - 1)]),
                        self.effect.empty(inputs, 1, (actions - 1) * kinds), self.effect.empty(inputs, 1, actions))

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> Averaged:
        """Fit. The average is by estimated propensities: it is needed of customers to come, and any is consistent.

        Raises ValueError where an action was never taken.
        """
        means = apart(self.model, obs, action, outcome, range(actions), generator)
        table, none = ask(means, obs), action == 0
        treated = apart(self.effect, obs, action, outcome - table[:, 0], range(1, actions), generator)
        untreated = fit_one(self.effect, obs[none], (table[none, 1:] - outcome[none, None]).flatten(1), generator)
        share = fit_one(self.effect, obs, one_hot(action, actions).to(outcome), generator)
        return Averaged(means.arms[0], treated, untreated, share)


class DR:
    """Doubly robust: pseudo-effects of cross-fitted outcomes and propensities, regressed on observations (Kennedy 2020).

    model: of outcomes. effect: of pseudo-effects, and of propensities where there are none. folds: of clusters. floor: of a
    propensity.
    """

    def __init__(self, *, model: Callable, effect: Callable, folds: int, floor: float):
        self.model, self.effect, self.folds, self.floor = model, effect, folds, floor

    def empty(self, inputs: int, actions: int, kinds: int) -> Shifted:
        """Lay out what a fit returns, for a state to be loaded into."""
        return Shifted([self.model.empty(inputs, actions, kinds) for _ in range(self.folds)],
                       self.effect.empty(inputs, 1, (actions - 1) * kinds))

    def __call__(self, obs: Tensor, action: Tensor, outcome: Tensor, actions: int, generator: torch.Generator,
                 propensity: Tensor | None = None, cluster: Tensor | None = None) -> Shifted:
        """Fit; without propensities [N] they are estimated."""
        cluster = torch.arange(len(obs), device=obs.device) if cluster is None else cluster
        fold, models = folds(cluster, self.folds, generator), []
        pseudo = outcome.new_zeros(len(obs), actions, outcome.shape[1])
        for k in range(self.folds):
            seen, own = fold != k, fold == k
            models.append(self.model(obs[seen], action[seen], outcome[seen], actions, generator))
            taken = one_hot(action[own], actions).to(outcome)
            if propensity is None:
                shares = fit_one(self.effect, obs[seen], one_hot(action[seen], actions).to(outcome), generator)
                p = (ask(shares, obs[own])[:, 0] * taken).sum(1)
            else:
                p = propensity[own].to(outcome)
            pseudo[own] = pseudo_outcomes(ask(models[-1], obs[own]), taken, outcome[own], p.clamp_min(self.floor))
        effects = (pseudo[:, 1:] - pseudo[:, :1]).flatten(1)
        return Shifted(models, fit_one(self.effect, obs, effects, generator))


def pseudo_outcomes(table: Tensor, taken: Tensor, outcome: Tensor, propensity: Tensor) -> Tensor:
    """μ̂_a + 1{taken}/p·(y − μ̂_a), [N, A, K] (Robins & Rotnitzky 1995): of mean μ_a if either μ̂ or p is right.

    table [N, A, K] has the μ̂, taken [N, A] is one-hot, outcome [N, K], propensity [N] of what was taken.
    """
    return table + (taken / propensity[:, None])[:, :, None] * (outcome[:, None] - table)


def rearranged(table: Tensor, chains: list[list[int]], kinds: list[int]) -> Tensor:
    """Put outcomes `kinds` of a table [B, A, K] in order along chains of actions, in which they are known to grow.

    As effects do in face value. Sorting brings predictions nowhere further from any growing truth (Chernozhukov,
    Fernández-Val & Galichon 2009).
    """
    table = table.clone()
    for chain in chains:
        for kind in kinds:
            table[:, chain, kind] = table[:, chain, kind].sort(1).values
    return table


# ── what fits return ────────────────────────────────────────────────────────────────────────────────────────────────
class Apart(nn.Module):
    """Each action's outcomes by a model of its own."""

    def __init__(self, arms: list[nn.Module]):
        super().__init__()
        self.arms = nn.ModuleList(arms)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.cat([arm(obs) for arm in self.arms], 1)


class Averaged(nn.Module):
    """Nothing's outcomes, and effects averaged over how they were imputed: g·τ₀ + (1 − g)·τ₁, g an action's share beside
    nothing's."""

    def __init__(self, nothing: nn.Module, treated: nn.Module, untreated: nn.Module, share: nn.Module):
        super().__init__()
        self.nothing, self.treated, self.untreated, self.share = nothing, treated, untreated, share

    def forward(self, obs: Tensor) -> Tensor:
        nothing, treated = self.nothing(obs), self.treated(obs)
        share = self.share(obs)[:, 0].clamp(1e-3, 1.0)
        g = (share[:, 1:] / (share[:, 1:] + share[:, :1]))[:, :, None]
        return torch.cat((nothing, nothing + g * self.untreated(obs).view_as(treated) + (1 - g) * treated), 1)


class Shifted(nn.Module):
    """Nothing's outcomes as several models have it on average, and effects."""

    def __init__(self, models: list[nn.Module], effect: nn.Module):
        super().__init__()
        self.models, self.effect = nn.ModuleList(models), effect

    def forward(self, obs: Tensor) -> Tensor:
        nothing = torch.stack([model(obs)[:, :1] for model in self.models]).mean(0)
        return torch.cat((nothing, nothing + self.effect(obs).view(len(obs), -1, nothing.shape[2])), 1)


class Ordered(nn.Module):
    """A fit whose outcomes `kinds` grow along chains of actions, whatever it learned."""

    def __init__(self, inner: nn.Module, chains: list[list[int]], kinds: list[int]):
        super().__init__()
        self.inner, self.chains, self.kinds = inner, chains, kinds

    def forward(self, obs: Tensor) -> Tensor:
        return rearranged(self.inner(obs), self.chains, self.kinds)


# ── parts of fits ───────────────────────────────────────────────────────────────────────────────────────────────────
def fit_one(model: Callable, obs: Tensor, outcome: Tensor, generator: torch.Generator) -> nn.Module:
    """Regress outcomes [N, K] on observations, whatever was done."""
    return model(obs, torch.zeros(len(obs), dtype=torch.long, device=obs.device), outcome, 1, generator)


def apart(model: Callable, obs: Tensor, action: Tensor, outcome: Tensor, arms: range, generator: torch.Generator) -> Apart:
    """Regress each arm's outcomes by themselves; raise ValueError where one has none."""
    count = action.bincount(minlength=arms.stop)
    if not count[arms.start:].all():
        lacking = arms.start + int(count[arms.start:].argmin())
        raise ValueError(f"action {lacking}: expected decisions to learn from, got none; S and DR share a model among actions")
    return Apart([fit_one(model, obs[action == a], outcome[action == a], generator) for a in arms])


def ask(model: nn.Module, obs: Tensor) -> Tensor:
    """Outcomes [N, A, K] of many rows, some at once."""
    return torch.cat([model(part) for part in obs.split(CHUNK)])
