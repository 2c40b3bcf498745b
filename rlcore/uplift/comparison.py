"""Compare uplift models by Qini coefficients on the same resamples, and find the columns that a model depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlcore.uplift.metrics import perfect_qini, qini, qini_area


class UpliftTestSet(NamedTuple):
    """Units that M models were tested on."""

    unit: Tensor  #: number of the unit, [N]
    outcome: Tensor  #: [N]
    treated: Tensor  #: bool [N]
    scores: Tensor  #: of the models, [M, N]


def bootstrap_metrics(
    tests: list[UpliftTestSet], units: int, replications: int, generator: torch.Generator, chunk: int = 5
) -> Tensor:
    """Return Qini coefficients [tests, M, replications] of M models, all on the same resamples of `units`.

    Differences of two models are paired. A unit is drawn Poisson(1) times, alike in every test (Chamandy et al. 2012).
    """
    device = tests[0].outcome.device
    chunks = []
    for start in range(0, replications, chunk):
        size = min(chunk, replications - start)
        ones = torch.ones(size, units, device=device)
        times_drawn = torch.poisson(ones, generator=generator)
        coefficients = [resampled_qini(test, times_drawn[:, test.unit]) for test in tests]
        chunks.append(torch.stack(coefficients))
    return torch.cat(chunks, -1)


def resampled_qini(test: UpliftTestSet, weight: Tensor) -> Tensor:
    """Return the Qini coefficients [M, R] of a test's models on resamples with weights [R, N]."""
    areas = [qini_area(test.outcome, score, test.treated, weight) for score in test.scores]
    return torch.stack(areas) / perfect_qini(test.outcome, test.treated, weight)


def drivers(
    score: Callable[[Tensor], Tensor],
    obs: Tensor,
    outcome: Tensor,
    treated: Tensor,
    columns: dict[str, list[int]],
    repeats: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return the permutation importance of groups of columns, greatest first (Breiman 2001).

    The importance is the Qini coefficient lost when a group is shuffled among units, in the mean over repeats.
    """
    baseline = qini(outcome, score(obs), treated)
    importance = {}
    for name, group in columns.items():
        drops = []
        for _ in range(repeats):
            order = torch.randperm(len(obs), generator=generator, device=obs.device)
            shuffled = obs.clone()
            shuffled[:, group] = obs[order][:, group]
            drop = baseline - qini(outcome, score(shuffled), treated)
            drops.append(drop)
        importance[name] = torch.stack(drops).mean().item()
    greatest_first = sorted(importance.items(), key=lambda item: -item[1])
    return dict(greatest_first)
