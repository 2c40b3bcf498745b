"""Analyse a randomised test of a mailing: its arms, whom a treatment helps, and what treating them would have earned.

Customers are dealt into two halves at random, those of a unit together. Learners are chosen and fitted on one half and
judged on the other, and the reverse, so every customer is judged by models that it was no part of (cross-fitting).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.ab_test import values
from envs.ab_test.trial_table import Trial
from envs.ab_test.values import Valued
from rlcore.ope.cross_fitting import folds
from rlcore.ope.estimators import Terms
from rlcore.ope.outcome_models import OutcomeLearner
from rlcore.uplift.meta_learners import MetaLearner
from rlcore.uplift.selection import Choice, Experiment, choose, numbered

PROFIT = "profit"
BEST_ARM = "best single arm"
Learners = dict[str, MetaLearner]


class Half(NamedTuple):
    """Customers that are judged, and what the other half's models say of them."""

    rows: Tensor  #: their numbers [J]
    choices: dict[str, Choice]  #: of the learner, by outcome
    effects: dict[str, Tensor]  #: predicted effects of all arms, [J, A] by outcome
    targets: dict[str, Tensor]  #: policies, [J, A] by name
    best_arm: int  #: the single arm that earned most in the other half
    predicted: Tensor  #: profit of every arm, [J, A]
    worth: dict[str, float]  #: money that a unit of a predicted effect is worth, by outcome

    def pays(self, outcome: str, obs: Tensor, cost: Tensor) -> Tensor:
        """The policy [B, A] that treats customers [B, D] where the predicted effect is worth more than the cost [A]."""
        effects = self.choices[outcome].effects(obs)
        return values.best_for_each(self.worth[outcome] * effects - cost)


class Analysis(NamedTuple):
    """What a test says."""

    trial: Trial
    outcome: str  #: by which customers are ranked
    profit: Tensor  #: of each customer, [N]
    cost: Tensor  #: of every arm, [A]
    ranked_by: dict[str, Tensor]  #: what the learners' effects are effects on, [N] by name
    halves: list[Half]
    policies: dict[str, Valued]
    over_best: dict[str, list[float]]  #: difference to the best single arm, [value, low, high] by policy
    over_none: dict[str, list[float]]  #: difference to no treatment


class Analyst:
    """How a test is analysed: customers are ranked by predicted effects on `outcome` (null: the first of the table).

    `worth` is the money that a unit of an outcome is worth, by outcome; empty: a unit of `outcome` is worth 1. `cost`
    is the money that a treatment costs, `costs` that of single arms. Profit is worth less cost. `learners` are chosen
    by cross-validation over `folds` folds of the customers that they learn from: the first that is within
    `standard_errors` of the best. `binary` names the learners that take outcomes of 0 and 1 only. `model` predicts
    profits for the doubly robust estimator.
    """

    def __init__(
        self,
        *,
        outcome: str | None,
        worth: dict,
        cost: float,
        costs: dict,
        learners: dict,
        binary: list,
        model: OutcomeLearner,
        folds: int,
        standard_errors: float,
        level: float,
        replications: int,
        bins: int,
    ):
        self.outcome = outcome
        self.worth = worth
        self.cost = cost
        self.costs = costs
        self.learners = learners
        self.binary = binary
        self.model = model
        self.folds = folds
        self.standard_errors = standard_errors
        self.level = level
        self.replications = replications
        self.bins = bins

    def __call__(self, trial: Trial, seed: int) -> Analysis:
        """Analyse a test; raise ValueError where the settings name what the test has not."""
        outcome = self.outcome or next(iter(trial.outcomes))
        worth = self.worth or {outcome: 1.0}
        if PROFIT in trial.outcomes:
            raise ValueError(f"table.outcomes: expected another name than '{PROFIT}', which is worth less cost")
        for key, names, known in (
            ("outcome", [outcome], trial.outcomes),
            ("worth", worth, trial.outcomes),
            ("costs", self.costs, trial.arms[1:]),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{key}: expected one of {', '.join(known)}, got '{name}'")
        gross = torch.stack([money * trial.outcomes[name] for name, money in worth.items()]).sum(0)
        cost = torch.tensor([0.0, *(self.costs.get(name, self.cost) for name in trial.arms[1:])], dtype=torch.float64)
        profit = gross - cost[trial.arm]
        ranked_by = {outcome: trial.outcomes[outcome]}
        if list(worth) != [outcome]:
            ranked_by[PROFIT] = gross
        first, second = halve(trial.unit, torch.Generator().manual_seed(seed))
        halves = [
            self._half(trial, ranked_by, gross, cost, learn, judge, seed)
            for learn, judge in ((first, second), (second, first))
        ]
        policies, terms = self._values(trial, profit, halves)
        none = next(iter(terms))
        unit = trial.unit[torch.cat([half.rows for half in halves])]
        return Analysis(
            trial=trial,
            outcome=outcome,
            profit=profit,
            cost=cost,
            ranked_by=ranked_by,
            halves=halves,
            policies=policies,
            over_best={name: values.difference(x, terms[BEST_ARM], unit, self.level) for name, x in terms.items()},
            over_none={name: values.difference(x, terms[none], unit, self.level) for name, x in terms.items()},
        )

    def _half(
        self,
        trial: Trial,
        ranked_by: dict[str, Tensor],
        gross: Tensor,
        cost: Tensor,
        learn: Tensor,
        judge: Tensor,
        seed: int,
    ) -> Half:
        """Choose and fit learners on customers `learn`; predict for customers `judge`."""
        arms = len(trial.arms)
        fold = folds(numbered(trial.unit[learn]), self.folds, torch.Generator().manual_seed(seed))
        arm, obs = trial.arm[learn], trial.features[judge]
        choices, effects, targets, worth = {}, {}, {}, {}
        mean_profit = arm_means(gross[learn], arm, trial.arms) - cost
        best_arm = int(mean_profit.argmax())
        for k, name in enumerate(trial.arms):
            targets[name] = values.everybody(k, arms, len(judge))
        targets[BEST_ARM] = values.everybody(best_arm, arms, len(judge))
        for name, outcome in ranked_by.items():
            experiment = Experiment(
                trial.unit[learn], trial.features[learn], arm, outcome[learn].float(), trial.propensity[learn]
            )
            choices[name] = choose(self.usable(outcome), experiment, arms, fold, seed, self.standard_errors)
            effects[name] = choices[name].effects(obs)
            # An outcome other than money is worth what a unit of it brought in the mean over the arms.
            worth[name] = 1.0 if name == PROFIT else (gross[learn].mean() / outcome[learn].mean()).item()
            targets[f"by {name}"] = values.best_for_each(worth[name] * effects[name] - cost)
        predicted = values.arm_profits(
            self.model, trial.features[learn], arm, (gross[learn] - cost[arm]).float(), arms, obs, seed
        )
        return Half(judge, choices, effects, targets, best_arm, predicted, worth)

    def usable(self, outcome: Tensor) -> Learners:
        """Return the learners that take such outcomes [N]."""
        return {
            name: learner for name, learner in self.learners.items() if name not in self.binary or is_binary(outcome)
        }

    def _values(self, trial: Trial, profit: Tensor, halves: list[Half]) -> tuple[dict[str, Valued], dict[str, Terms]]:
        rows = torch.cat([half.rows for half in halves])
        predicted = torch.cat([half.predicted for half in halves])
        valued, terms = {}, {}
        for name in halves[0].targets:
            target = torch.cat([half.targets[name] for half in halves])
            valued[name], terms[name] = values.value(
                target, trial.arm[rows], trial.propensity[rows], profit[rows], predicted, trial.unit[rows], self.level
            )
        return valued, terms


def is_binary(outcome: Tensor) -> bool:
    """Tell whether outcomes [N] are zeros and ones."""
    return bool(((outcome == 0) | (outcome == 1)).all())


def halve(unit: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Deal rows into two halves at random, those of a unit [N] together; return the rows of each, by unit as dealt."""
    units = int(unit.amax()) + 1
    place = torch.randperm(units, generator=generator).argsort()[unit]
    order = place.argsort(stable=True)
    in_first = int((place < (units + 1) // 2).sum())
    return order[:in_first], order[in_first:]


def arm_means(x: Tensor, arm: Tensor, arms: list[str]) -> Tensor:
    """Mean of x [N] in every arm, [A]; raises ValueError where an arm has no customer."""
    count = arm.bincount(minlength=len(arms))
    if not count.all():
        raise ValueError(
            f"arm '{arms[int(count.argmin())]}': expected customers in each half of the test, got none in one: "
            "the arm is too small; leave its customers out, or take another seed"
        )
    return torch.zeros(len(arms), dtype=x.dtype).index_add_(0, arm, x) / count
