"""Tests of a twin's predictions by groups of decisions: residuals of one group, and of all groups of a kind."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.twin.predictions import OutcomePrediction
from rlcore.ope.propensity_checks import least_significant

MAX_NAMED = 5  # largest number of misfits that are named
MIN_VARIANCE = 10.0  # of a group's count, for its excess to be normal: groups with less are not tested


class Groups(NamedTuple):
    """Groups of decisions."""

    of: Tensor  # the group of each decision, -1: none, int8 or int64 [T, N]
    names: list[str]


def residuals(outcomes: OutcomePrediction, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return by how many standard errors what happened exceeds its prediction, and the variance, by group [count]."""
    excess, variance = torch.zeros(2, count, dtype=torch.float64, device=group.device)
    counted = outcomes.known & (group >= 0)
    p, at = outcomes.probability[counted].double(), group[counted].long()
    excess.index_add_(0, at, outcomes.happened[counted].double() - p)
    variance.index_add_(0, at, p * (1 - p))
    return excess / variance.sqrt().clamp_min(1e-9), variance


class Comparison(NamedTuple):
    """An outcome in the groups of one kind that have enough variance to be tested."""

    outcome: str
    groups: Groups
    places: list[int]  # the tested groups
    z: Tensor  # by how many standard errors what happened exceeds its prediction, float64 [places]

    @property
    def p_value(self) -> float:
        """The probability of as large a sum of squared z under true equations: χ², as groups share no decisions."""
        degrees = torch.full((), len(self.z) / 2, dtype=torch.float64)
        return torch.special.gammaincc(degrees, self.z.square().sum().cpu() / 2).item()


def tested_groups(predicted: dict[str, OutcomePrediction], grouped: dict[str, Groups]) -> list[Comparison]:
    """Compare each outcome with its prediction in each kind of groups; opt-outs, which are rare, by pairs alone."""
    found = []
    for kind, (group, labels) in grouped.items():
        for outcome, outcomes in predicted.items():
            if kind == "pair" or outcome != "opt_out":
                z, variance = residuals(outcomes, group, len(labels))
                enough = (variance >= MIN_VARIANCE).nonzero()[:, 0].tolist()
                if enough:
                    found.append(Comparison(outcome, grouped[kind], enough, z[enough]))
    return found


def significant_groups(
    predicted: dict[str, OutcomePrediction], grouped: dict[str, Groups], time: Tensor, level: float
) -> list[str]:
    """Name the groups in which an outcome differs from its prediction, at a level over all groups, worst first.

    Half of the level is for groups alone; the other half is for all groups of a kind together, of which the worst is
    named. With each group comes the week of the log, by `time` [T, N], in which it is worst. Under the true θ of
    every customer, and the true start, the residuals have mean 0 and variance 1, whatever policy made the decisions;
    they are normal where many outcomes are expected, and other groups are not tested. What features leave open of θ is
    no part of the equations, random effects aside, and may be named in a long log.
    """
    tested = tested_groups(predicted, grouped)
    if not tested:
        return []
    least = least_significant(torch.cat([kind.z for kind in tested]), level / 2)
    wrong = []
    for kind in tested:
        size, together = kind.z.abs(), ""
        alone = (size > least).nonzero()[:, 0].tolist()
        if not alone and kind.p_value < level / 2 / len(tested):
            alone, together = [int(size.argmax())], f", p = {kind.p_value:.0e} over its kind"
        for k in alone:
            place = kind.places[k]
            worst = worst_week(predicted[kind.outcome], kind.groups.of == place, time)
            text = (
                f"{kind.outcome}, {kind.groups.names[place]} (z = {kind.z[k]:+.1f}{together}; most in week {worst + 1})"
            )
            wrong.append((size[k].item(), text))
    return [text for _, text in sorted(wrong, key=lambda found: -found[0])[:MAX_NAMED]]


def worst_week(outcomes: OutcomePrediction, chosen: Tensor, time: Tensor) -> int:
    """Return the week of the log (from 0) in which the chosen decisions, bool [T, N], differ most from prediction."""
    z, _ = residuals(outcomes._replace(known=outcomes.known & chosen), time, int(time.amax()) + 1)
    return int(z.abs().argmax())
