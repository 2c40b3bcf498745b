"""Learners of effects on halves of a randomised test's customers: who is chosen, and the scores of the other half."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.ope.cross_fitting import folds
from rlcore.uplift import comparison, metrics
from rlcore.uplift.meta_learners import MetaLearner
from rlcore.uplift.selection import Effects, Experiment, choose, fit_effects

OURS = "chosen of ours"
ACTIONS = 2  # no mail, and a mail


class Split(NamedTuple):
    """The learners fitted on one half of the customers, and their scores of the other half."""

    validated: dict[str, float]  # Qini of our learners in cross-validation
    chosen: str
    effects: Effects  # of the chosen learner
    test: Experiment
    scores: dict[str, Tensor]  # of all learners

    def tested(self) -> comparison.UpliftTestSet:
        """Lay out for the bootstrap."""
        return comparison.UpliftTestSet(
            self.test.unit, self.test.outcome, self.test.action > 0, torch.stack(list(self.scores.values()))
        )


def split(
    everyone: Experiment,
    learners: dict[str, MetaLearner],
    rivals: dict[str, Callable],
    seed: int,
    fold_count: int,
    standard_errors: float,
) -> Split:
    """Choose among our learners and fit all on one half, score the other; `standard_errors` is that of `choose`."""
    device = everyone.obs.device
    generator = torch.Generator(device).manual_seed(seed)
    learn, test = (
        everyone.part(rows) for rows in torch.randperm(len(everyone.unit), generator=generator, device=device).chunk(2)
    )
    share = learn.action.double().mean()
    learn = learn._replace(propensity=torch.where(learn.action > 0, share, 1 - share))
    fold = folds(torch.arange(len(learn.unit), device=device), fold_count, generator)
    choice = choose(learners, learn, ACTIONS, fold, seed, standard_errors)
    fitted = {
        name: choice.effects if name == choice.name else fit_effects(learner, learn, ACTIONS, seed)
        for name, learner in learners.items()
    }
    scores = {name: effects(test.obs)[:, 1] for name, effects in fitted.items()}
    x, t, y = (part.cpu().numpy() for part in (learn.obs, learn.action, learn.outcome))
    for name, rival in rivals.items():
        scores[name] = torch.as_tensor(rival(x, t, y)(test.obs.cpu().numpy()), device=device).double()
    print(f"split {seed}: {choice.name} is chosen", flush=True)
    return Split(choice.validated, choice.name, choice.effects, test, {**scores, OURS: scores[choice.name]})


def summarise_splits(made: list[Split], drawn: Tensor, rivals: list[str], level: float) -> dict[str, dict]:
    """Means over splits and intervals by learner; drawn [M, replications] are bootstrapped means over splits."""
    ends, names = drawn.new_tensor([(1 - level) / 2, (1 + level) / 2]), list(made[0].scores)
    ours = names.index(OURS)
    values, areas = (
        torch.stack(
            [
                torch.stack([measure(one.test.outcome, score, one.test.action > 0) for score in one.scores.values()])
                for one in made
            ]
        )
        for measure in (metrics.qini, metrics.auuc)
    )  # [splits, M]
    return {
        name: {
            "peer": name in rivals,
            "qini": [values[:, i].mean().item(), *torch.quantile(drawn[i], ends).tolist()],
            "auuc": areas[:, i].mean().item(),
            "splits": values[:, i].tolist(),
            "times_chosen": sum(one.chosen == name for one in made),
            "ours_less": [
                (values[:, ours] - values[:, i]).mean().item(),
                *torch.quantile(drawn[ours] - drawn[i], ends).tolist(),
            ],
        }
        for i, name in enumerate(names)
    }
