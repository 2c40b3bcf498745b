"""Learners of effects on halves of a randomised test's customers: who is chosen, and the scores of the other half."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.ope.cross_fitting import folds
from rlcore.uplift import comparison
from rlcore.uplift import metrics as uplift

Score = Callable[[Tensor], Tensor]  # observations [B, D] → effects [B]
OURS = "chosen of ours"


class Customers(NamedTuple):
    """Customers of a randomised test."""

    rows: Tensor  # their numbers [N]
    obs: Tensor
    treated: Tensor
    outcome: Tensor

    def part(self, rows: Tensor) -> Customers:
        """Some of them."""
        return Customers(*(x[rows] for x in self))


class Split(NamedTuple):
    """The learners fitted on one half of the customers, and their scores of the other half."""

    validated: dict[str, float]  # Qini of our learners in cross-validation
    chosen: str
    fit: Score  # the chosen learner's
    test: Customers
    scores: dict[str, Tensor]  # of all learners

    def tested(self) -> comparison.UpliftTestSet:
        """Lay out for the bootstrap."""
        return comparison.UpliftTestSet(
            self.test.rows, self.test.outcome, self.test.treated, torch.stack(list(self.scores.values()))
        )


def split(
    everyone: Customers, learners: dict[str, Callable], rivals: dict[str, Callable], seed: int, fold_count: int
) -> Split:
    """Choose among our learners and fit all on one half, score the other."""
    device = everyone.obs.device
    generator = torch.Generator(device).manual_seed(seed)
    learn, test = (
        everyone.part(rows) for rows in torch.randperm(len(everyone.rows), generator=generator, device=device).chunk(2)
    )
    fold = folds(torch.arange(len(learn.rows), device=device), fold_count, generator)
    validated = {name: cross_validated(learner, learn, fold, seed) for name, learner in learners.items()}
    fits = {name: fit_learner(learner, learn, seed) for name, learner in learners.items()}
    chosen = max(validated, key=lambda name: validated[name])
    scores = {name: fit(test.obs).double() for name, fit in fits.items()}
    x, t, y = (part.cpu().numpy() for part in (learn.obs, learn.treated.long(), learn.outcome))
    for name, rival in rivals.items():
        scores[name] = torch.as_tensor(rival(x, t, y)(test.obs.cpu().numpy()), device=device).double()
    print(f"split {seed}: {chosen} is chosen", flush=True)
    return Split(validated, chosen, fits[chosen], test, {**scores, OURS: scores[chosen]})


def fit_learner(learner: Callable, learn: Customers, seed: int) -> Score:
    """Fit one of our learners; return its score function."""
    share = learn.treated.float().mean()
    fit = learner(
        learn.obs,
        learn.treated.long(),
        learn.outcome[:, None],
        2,
        torch.Generator(share.device).manual_seed(seed),
        torch.where(learn.treated, share, 1 - share),
    )

    def score(obs: Tensor) -> Tensor:
        nothing, mail = fit(obs)[:, :, 0].unbind(1)
        return mail - nothing

    return score


def cross_validated(learner: Callable, learn: Customers, fold: Tensor, seed: int) -> float:
    """Mean Qini coefficient of a learner over folds of the customers it learns from."""
    values = []
    for k in range(int(fold.amax()) + 1):
        left = learn.part(fold == k)
        score = fit_learner(learner, learn.part(fold != k), seed)(left.obs)
        values.append(uplift.qini(left.outcome, score, left.treated).item())
    return sum(values) / len(values)
