"""Uplift metrics: how well a score ranks units by the effect of a treatment, from a randomised test; pure functions.

outcome [N], score [N] (a higher score is treated sooner), treated bool [N]. The treatment must be independent of
everything known about a unit. Where a function takes a weight [R, N], which is how often a unit counts, as in a
bootstrap, results have a first dimension R.

Units whose scores are equal but for rounding form one group (`tie_groups`), whose order no result depends on. A test
that can't rank anybody is refused (`check_ranking`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rlcore.ope.intervals import sum_by_cluster

# Scores that differ by less than this share of the greatest score are equal: one computation rounded in several ways.
ROUNDING = {torch.float64: 1e-10}
COARSE_ROUNDING = 4.0  # of other types, in units of their precision


class CumulativeSums(NamedTuple):
    """Sums over the units from the best down to each of P distinct scores, after a first 0, [..., P + 1] each."""

    units: Tensor
    treated: Tensor
    treated_outcome: Tensor
    control_outcome: Tensor

    @property
    def control(self) -> Tensor:
        """Control units."""
        return self.units - self.treated


class Curve(NamedTuple):
    """Points of a curve, [..., P + 1] each."""

    x: Tensor  #: units, or money
    y: Tensor  #: incremental outcomes


def cumulative_sums(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> CumulativeSums:
    """Add up from the highest score down; units of equal score are added at once."""
    order = best_first(score)
    outcome = outcome[order].double()
    treated = treated[order].double()
    control = 1 - treated
    columns = torch.stack((torch.ones_like(outcome), treated, outcome * treated, outcome * control))
    if weight is not None:
        columns = columns[:, None] * weight[:, order].double()
    group = tie_groups(score[order])
    is_last = functional.pad(group[1:] != group[:-1], (0, 1), value=True)  # of its group
    sums = columns.cumsum(-1)[..., is_last]
    return CumulativeSums(*functional.pad(sums, (1, 0)))


def best_first(score: Tensor) -> Tensor:
    """Return the order of units [N] from the highest score down."""
    return score.argsort(stable=True).flip(0)


def tie_groups(ranked_score: Tensor) -> Tensor:
    """Number the groups of equal scores from 0, int64 [N], of scores in order from the highest down.

    Neighbours are equal where they differ by no more than rounding can make them differ.
    """
    rounding = ROUNDING.get(ranked_score.dtype)
    if rounding is None:
        rounding = COARSE_ROUNDING * torch.finfo(ranked_score.dtype).eps if ranked_score.is_floating_point() else 0.0
    tolerance = rounding * ranked_score.abs().amax()
    falls = (ranked_score[:-1] - ranked_score[1:]) > tolerance
    return functional.pad(falls.cumsum(0), (1, 0))


def tells_orders_apart(outcome: Tensor, treated: Tensor) -> bool:
    """Tell whether a test has treated units and others, and an outcome other than 0, [N] each."""
    return bool(outcome.any() and treated.any() and not treated.all())


def check_test(outcome: Tensor, score: Tensor, treated: Tensor) -> None:
    """Raise ValueError where scores or outcomes are no numbers, or units are all treated or all not."""
    if not score.isfinite().all():
        raise ValueError(f"score: expected numbers, got {int((~score.isfinite()).sum())} of {len(score)} that are not")
    if not outcome.isfinite().all():
        raise ValueError(f"outcome: expected numbers, got {int((~outcome.isfinite()).sum())} that are not")
    number_treated = int(treated.sum())
    if not 0 < number_treated < len(treated):
        raise ValueError(f"treated: expected treated units and others, got {number_treated} of {len(treated)} treated")


def check_ranking(outcome: Tensor, score: Tensor, treated: Tensor) -> None:
    """Raise ValueError where a test can't tell one order of its units from another."""
    check_test(outcome, score, treated)
    if not outcome.any():
        raise ValueError(f"outcome: expected some other than 0, got 0 of all {len(outcome)} units")


# ── curves and areas ────────────────────────────────────────────────────────────────────────────────────────────────
def qini_curve(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> Curve:
    """Return incremental outcomes Y₁ − Y₀·N₁/N₀ among the best n units (Radcliffe 2007)."""
    sums = cumulative_sums(outcome, score, treated, weight)
    expected_without_treatment = sums.control_outcome * ratio(sums.treated, sums.control)
    gain = sums.treated_outcome - expected_without_treatment
    return Curve(sums.units, gain)


def uplift_curve(outcome: Tensor, score: Tensor, treated: Tensor) -> Curve:
    """Return (Y₁/N₁ − Y₀/N₀)·n among the best n units (Gutierrez & Gérardy 2017; Devriendt et al. 2020)."""
    sums = cumulative_sums(outcome, score, treated)
    treated_mean = ratio(sums.treated_outcome, sums.treated)
    control_mean = ratio(sums.control_outcome, sums.control)
    gain = (treated_mean - control_mean) * sums.units
    return Curve(sums.units, gain)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, and 0 where the denominator is 0."""
    nonzero = denominator != 0
    safe_denominator = denominator.where(nonzero, torch.ones_like(denominator))
    return torch.where(nonzero, numerator / safe_denominator, 0.0)


def area_above_random(x: Tensor, y: Tensor) -> Tensor:
    """Return the area [...] between a curve and the straight line to its end, which a random order has."""
    area = torch.trapezoid(y, x)
    random_area = 0.5 * x[..., -1] * y[..., -1]
    return area - random_area


def qini_area(outcome: Tensor, score: Tensor, treated: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the area of the Qini curve above random, [...]."""
    curve = qini_curve(outcome, score, treated, weight)
    return area_above_random(curve.x, curve.y)


def uplift_area(outcome: Tensor, score: Tensor, treated: Tensor) -> Tensor:
    """Return the area of the uplift curve above random, []."""
    curve = uplift_curve(outcome, score, treated)
    return area_above_random(curve.x, curve.y)


def perfect_qini(outcome: Tensor, treated: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the Qini area of the best order in hindsight, [...]: treated outcomes first, control outcomes last."""
    hindsight_score = torch.where(treated, outcome, -outcome)
    return qini_area(outcome, hindsight_score, treated, weight)


def qini(outcome: Tensor, score: Tensor, treated: Tensor) -> Tensor:
    """Return the Qini coefficient []: the Qini area as a share of the perfect one.

    Radcliffe & Surry 2011; equal to sklift.qini_auc_score. Raises ValueError where `check_ranking` does.
    """
    check_ranking(outcome, score, treated)
    return qini_area(outcome, score, treated) / perfect_qini(outcome, treated)


def auuc(outcome: Tensor, score: Tensor, treated: Tensor) -> Tensor:
    """Return the area of the uplift curve above random as a share of the best order's in hindsight, [].

    Devriendt et al. 2020; equal to sklift.uplift_auc_score. Raises ValueError where outcomes are not 0 or 1: the best
    order in hindsight is known for binary outcomes alone; and where `check_ranking` does.
    """
    check_ranking(outcome, score, treated)
    is_binary = (outcome == 0) | (outcome == 1)
    if not is_binary.all():
        raise ValueError("auuc: expected outcomes 0 or 1; qini takes any")
    is_one = outcome.bool()
    agreement = 2.0 * (is_one == treated)
    control_ones = (is_one & ~treated).sum()
    treated_zeros = (~is_one & treated).sum()
    # First come treated ones, then control zeros, then the more numerous of control ones and treated zeros.
    control_ones_first = uplift_area(outcome, agreement + outcome.double(), treated)
    treated_zeros_first = uplift_area(outcome, agreement + treated.double(), treated)
    perfect_area = torch.where(control_ones > treated_zeros, control_ones_first, treated_zeros_first)
    return uplift_area(outcome, score, treated) / perfect_area


def cost_curve(outcome: Tensor, cost: Tensor, score: Tensor, treated: Tensor) -> Curve:
    """Return incremental money spent (x) and incremental outcomes (y) among the best n (Du, Lee & Ghaffarizadeh 2019).

    cost [N] is the money spent on a unit, treated or not. The best score is the effect on the outcome per cost.
    """
    spent = uplift_curve(cost, score, treated).y
    gained = uplift_curve(outcome, score, treated).y
    return Curve(spent, gained)


def cost_area(spent: Tensor, gained: Tensor) -> Tensor:
    """Return the area under a cost curve as a share of its bounding box, [...]: ½ for a random order."""
    area = torch.trapezoid(gained, spent)
    box = spent[..., -1] * gained[..., -1]
    return area / box


# ── by decile ───────────────────────────────────────────────────────────────────────────────────────────────────────
class Bins(NamedTuple):
    """Treated and control units in each part of the units by score, best first, [bins] each.

    A group of equal scores that a boundary splits is in every part by a share, as on average over all orders of the
    group, so numbers of units need not be whole. A part without treated or without control units has an uplift of NaN.
    """

    treated: Tensor  #: number of treated units
    control: Tensor  #: number of control units
    treated_mean: Tensor  #: mean outcome of treated units
    control_mean: Tensor  #: mean outcome of control units
    uplift: Tensor  #: difference of the means
    std: Tensor  #: standard error of the uplift
    score: Tensor  #: mean score

    @property
    def average(self) -> Tensor:
        """Mean uplift of the bins that have one, weighted by treated units (sklift.weighted_average_uplift)."""
        has_uplift = ~self.uplift.isnan()
        treated = self.treated[has_uplift]
        return (treated * self.uplift[has_uplift]).sum() / treated.sum()


def by_bin(outcome: Tensor, score: Tensor, treated: Tensor, bins: int, cluster: Tensor | None = None) -> Bins:
    """Return the uplift in equal parts by score, deciles with 10.

    Standard errors are over independent clusters int64 [N], numbered from 0; None: each unit is its own. Without equal
    scores and clusters equal to sklift.uplift_by_percentile, strategy overall. Raises ValueError where `check_test`
    does.
    """
    check_test(outcome, score, treated)
    order = best_first(score)
    sizes = [len(part) for part in torch.tensor_split(order, bins)]
    share = bin_shares(tie_groups(score[order]), torch.tensor(sizes, device=score.device))
    outcome, score, treated = outcome[order].double(), score[order].double(), treated[order]
    treated_share = share * treated
    control_share = share * ~treated
    treated_mean, treated_moves = mean_and_moves(outcome, treated_share)
    control_mean, control_moves = mean_and_moves(outcome, control_share)
    moves = sum_by_cluster(treated_moves - control_moves, None if cluster is None else cluster[order])
    mean_score, _ = mean_and_moves(score, share)
    return Bins(
        treated=treated_share.sum(1),
        control=control_share.sum(1),
        treated_mean=treated_mean,
        control_mean=control_mean,
        uplift=treated_mean - control_mean,
        std=moves.square().sum(1).sqrt(),
        score=mean_score,
    )


def bin_shares(group: Tensor, sizes: Tensor) -> Tensor:
    """Return the share of each of N ranked units in bins of `sizes` [bins], [bins, N]; alike within a group [N]."""
    units_of_group = group.bincount()
    group_end = units_of_group.cumsum(0)
    group_start = group_end - units_of_group
    bin_end = sizes.cumsum(0)
    bin_start = bin_end - sizes
    first = torch.maximum(bin_start[:, None], group_start)
    last = torch.minimum(bin_end[:, None], group_end)
    share = (last - first).clamp_min(0).double() / units_of_group
    return share[:, group]


def mean_and_moves(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means [bins] of x [N] under weights [bins, N], NaN without weight, and x's influence on them."""
    total = weight.sum(1)
    mean = weight @ x / total
    moves = weight * (x - mean[:, None]) / total[:, None]
    return mean, moves
