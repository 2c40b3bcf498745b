"""Uplift metrics: how well a score ranks units by the effect of a treatment, from a randomised test; pure functions.

outcome [N], score [N] (higher: treated sooner), treated bool [N]. weight [R, N] counts units, as a bootstrap's draws do; then
everything has R ahead. The treatment must be independent of all that is known of a unit.
"""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """Sums over the units from the best down to each of P distinct scores, and 0 first, [..., P + 1]."""

    units: Tensor
    treated: Tensor
    treated_outcome: Tensor
    control_outcome: Tensor


def sums(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> Sums:
    """Add up from the highest score down; equal scores count at once."""
    order = score.argsort(stable=True).flip(0)
    y, t, ranked = outcome[order].double(), treated[order].double(), score[order]
    last = torch.cat((ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)))
    columns = torch.stack((torch.ones_like(y), t, y * t, y * (1 - t)))
    if weight is not None:
        columns = columns[:, None] * weight[:, order].double()
    found = columns.cumsum(-1)[..., last]
    return Sums(*torch.nn.functional.pad(found, (1, 0)))


# ── curves and areas ────────────────────────────────────────────────────────────────────────────────────────────────
def qini_curve(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Units n, and incremental outcomes Y₁ − Y₀·N₁/N₀ among the best n (Radcliffe 2007), [..., P + 1] each."""
    s = sums(outcome, score, treated, weight)
    return s.units, s.treated_outcome - s.control_outcome * ratio(s.treated, s.units - s.treated)


def uplift_curve(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Units n, and (Y₁/N₁ − Y₀/N₀)·n among the best n (Gutierrez & Gérardy 2017; Devriendt et al. 2020)."""
    s = sums(outcome, score, treated, weight)
    return s.units, (ratio(s.treated_outcome, s.treated) - ratio(s.control_outcome, s.units - s.treated)) * s.units


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is."""
    return torch.where(b != 0, a / b.where(b != 0, torch.ones_like(b)), 0.0)


def area_above_random(x: Tensor, y: Tensor) -> Tensor:
    """Area between a curve and the line to its end, [...]."""
    return torch.trapezoid(y, x) - 0.5 * x[..., -1] * y[..., -1]


def perfect_qini(outcome: Tensor, treated: Tensor, weight: Tensor | None = None) -> Tensor:
    """Area above random of the best order in hindsight, harm included: treated outcomes first, control outcomes last."""
    best = torch.where(treated, outcome, -outcome)
    return area_above_random(*qini_curve(outcome, best, treated, weight))


def qini(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> Tensor:
    """Qini coefficient [...]: area above random as a share of hindsight's (Radcliffe & Surry 2011; sklift.qini_auc_score)."""
    return area_above_random(*qini_curve(outcome, score, treated, weight)) / perfect_qini(outcome, treated, weight)


def auuc(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> Tensor:
    """Area under the uplift curve above random as a share of hindsight's, [...] (Devriendt et al. 2020;
    sklift.uplift_auc_score). Raises ValueError where outcomes are not 0 or 1: hindsight's order is known of these alone."""
    if not ((outcome == 0) | (outcome == 1)).all():
        raise ValueError("auuc: expected outcomes 0 or 1; qini takes any")
    agree = 2.0 * (outcome.bool() == treated)
    count = torch.ones_like(agree)[None] if weight is None else weight
    control_ones = (count * (outcome.bool() & ~treated)).sum(-1)
    treated_zeros = (count * (~outcome.bool() & treated)).sum(-1)
    areas = [area_above_random(*uplift_curve(outcome, agree + first, treated, weight))
             for first in (outcome.double(), treated.double())]
    best = torch.where(control_ones > treated_zeros, *areas)
    found = area_above_random(*uplift_curve(outcome, score, treated, weight)) / best
    return found[0] if weight is None else found


def cost_curve(outcome: Tensor, cost: Tensor, score: Tensor, treated: Tensor,
               weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Incremental money spent and incremental outcomes among the best n (Du, Lee & Ghaffarizadeh 2019), [..., P + 1] each.

    cost [N] is what was spent on a unit, treated or not; the order is best by outcome per cost.
    """
    return tuple(uplift_curve(y, score, treated, weight)[1] for y in (cost, outcome))


def cost_area(spent: Tensor, gained: Tensor) -> Tensor:
    """Area under a cost curve as a share of its box, [...]: ½ at random."""
    return torch.trapezoid(gained, spent) / (spent[..., -1] * gained[..., -1])


# ── by decile ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Bins(NamedTuple):
    """Treated and control units in each part of the units by score, best first, [bins] each."""

    treated: Tensor  # units
    control: Tensor
    treated_mean: Tensor  # outcome
    control_mean: Tensor
    uplift: Tensor
    std: Tensor  # of the uplift, sampling alone
    score: Tensor  # mean

    @property
    def average(self) -> Tensor:
        """Uplift of the bins weighted by their treated (sklift.weighted_average_uplift)."""
        return (self.treated * self.uplift).sum() / self.treated.sum()


def by_bin(outcome: Tensor, score: Tensor, treated: Tensor, bins: int) -> Bins:
    """Uplift in equal parts by score, deciles with 10 (sklift.uplift_by_percentile, strategy overall)."""
    order = score.argsort(stable=True).flip(0)
    rows = []
    for part in torch.tensor_split(order, bins):
        y, t = outcome[part].double(), treated[part]
        groups = [y[t], y[~t]]
        means, variances = ([f(g) for g in groups] for f in (torch.mean, lambda g: g.var(correction=0) / len(g)))
        rows.append([t.sum(), (~t).sum(), *means, means[0] - means[1], sum(variances).sqrt(), score[part].double().mean()])
    return Bins(*torch.tensor(rows, dtype=torch.float64).T)


# ── comparison and importance ───────────────────────────────────────────────────────────────────────────────────────
class UpliftTestSet(NamedTuple):
    """Units that models were tested on: their numbers [N], outcomes, whether treated, and the models' scores [M, N]."""

    unit: Tensor
    outcome: Tensor
    treated: Tensor
    scores: Tensor


def bootstrap(tests: list[UpliftTestSet], units: int, replications: int, generator: torch.Generator, chunk: int = 5) -> Tensor:
    """Qini coefficients [tests, M, replications] of M models, all on the same resamples of `units`.

    Differences of two models are paired. A unit is drawn Poisson(1) times, the same in every test (Chamandy et al. 2012).
    """
    parts, device = [], tests[0].outcome.device
    for start in range(0, replications, chunk):
        ones = torch.ones(min(chunk, replications - start), units, device=device)
        drawn = torch.poisson(ones, generator=generator)
        found = []
        for test in tests:
            weight = drawn[:, test.unit]
            best = perfect_qini(test.outcome, test.treated, weight)
            found.append(torch.stack([area_above_random(*qini_curve(test.outcome, score, test.treated, weight)) / best
                                      for score in test.scores]))
        parts.append(torch.stack(found))
    return torch.cat(parts, -1)


def drivers(score: Callable[[Tensor], Tensor], obs: Tensor, outcome: Tensor, treated: Tensor, columns: dict[str, list[int]],
            repeats: int, generator: torch.Generator) -> dict[str, float]:
    """Loss of Qini when a group of columns is shuffled among units, mean over repeats (Breiman 2001), greatest first."""
    whole, lost = qini(outcome, score(obs), treated), {}
    for name, group in columns.items():
        drops = []
        for _ in range(repeats):
            shuffled = obs.clone()
            shuffled[:, group] = obs[torch.randperm(len(obs), generator=generator, device=obs.device)][:, group]
            drops.append(whole - qini(outcome, score(shuffled), treated))
        lost[name] = torch.stack(drops).mean().item()
    return dict(sorted(lost.items(), key=lambda item: -item[1]))
