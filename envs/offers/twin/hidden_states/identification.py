"""What a log without states tells of each parameter: the covariance of G's coefficients, by Fisher information.

The fit draws the means of some parameters to the priors'. Errors assume that these means are the priors'. Intervals of
means are as wide as they would be without this pull.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from envs.offers.logs.panel import Panel
from envs.offers.populations.base import LOGARITHMIC
from envs.offers.twin.hidden_states.filter_fit import FilterFit
from envs.offers.twin.structural_model import ParameterNetwork
from envs.offers.world.customers import World
from rlcore.ope.intervals import LEVEL, normal_quantile
from rlcore.runs.report import Report

IDENTIFIED_BELOW = 0.9  # error of E[θ | features], in prior standard deviations, below which the log identifies θ


class ParameterRow(NamedTuple):
    """What is known of a parameter, in the units of θ's matrix: logarithms where the prior is lognormal."""

    prior: float  # mean over customers under the priors
    prior_sd: float  # over customers
    mean: float  # estimated mean over customers
    low: float  # about this mean, as wide as a 95 % interval without the fit's pull: the priors' where nothing is told
    high: float
    given_features: float  # expected root mean square error of E[θ | features], in prior sds; 1: the log tells nothing
    error: float  # of a customer's own: its random effect is in it; without one, what features leave open is not known
    effect_sd: float  # of the random effect, in prior sds; 0: none


class Covariance(NamedTuple):
    """Of G's linear coefficients, in prior sds; each parameter has D = 1 + F of them, the constant first."""

    fit: Tensor  # of the fit, with all that draws coefficients to the priors', [K, D, K, D]
    of_constants: Tensor  # variances where nothing but the priors' own width holds them, [K]


def coefficient_covariance(
    method: FilterFit,
    member: ParameterNetwork,
    world: World,
    panel: Panel,
    weight: Tensor,
    penalty: float,
    customers: int,
) -> Covariance:
    """Return the covariance of G's linear coefficients.

    ScoreSums are those of the panel; the information is scaled to `customers` lives like these.
    """
    k, d = len(member.middle), 1 + len(panel.features)
    found = method.scores(member, member.effect_sd, world, panel, (weight > 0).to(weight))
    information = found.information * (customers / len(panel))
    prior = method.prior_precision(member, penalty)
    constants = torch.arange(k, device=prior.device) * d
    fit = torch.linalg.inv(information + prior.diag())[: k * d, : k * d]
    own_width = prior.index_fill(0, constants, 1.0)
    of_constants = torch.linalg.inv(information + own_width.diag()).diagonal()[constants]
    return Covariance(fit.view(k, d, k, d), of_constants)


def parameter_names(columns: dict[str, list[int]], channels: list[str]) -> list[str]:
    """Name the columns of θ's matrix."""
    names = []
    for name, at in columns.items():
        title = f"log {name}" if name in LOGARITHMIC else name
        names += [title] if len(at) == 1 else [f"{title}, {channel}" for channel in channels]
    return names


def parameter_rows(members: list[ParameterNetwork], covariance: Covariance, panel: Panel) -> list[ParameterRow]:
    """Return a row for each column of θ: the members' mean over a panel's customers, beside the prior."""
    first = members[0]
    with torch.no_grad():
        mean = torch.stack([member(panel.features.T).mean(0) for member in members]).mean(0)
    at = torch.arange(len(mean), device=mean.device)
    own = covariance.fit[at, :, at]  # [K, D, D]
    half = normal_quantile(LEVEL) * covariance.of_constants.sqrt() * first.spread
    features = first.standardize(panel.features.T).to(own)
    design = torch.cat((torch.ones_like(features[:, :1]), features), 1)
    given_features = torch.einsum("kij,ji->k", own, design.T @ design / len(design)).sqrt()
    given_features = torch.where(first.spread > 0, given_features, 1.0)
    half = torch.where(first.spread > 0, half, 0.0)
    effect_sd = torch.stack([member.effect_sd for member in members]).mean(0).to(given_features)
    effect_sd = torch.where(first.spread > 0, effect_sd / first.spread, 0.0)
    error = torch.hypot(given_features, effect_sd)
    low, high = ((mean + side * half).clamp(*first.bounds) for side in (-1, 1))
    columns = (
        first.middle,
        first.spread,
        mean,
        low,
        high,
        given_features.clamp_max(1.0),
        error.clamp_max(1.0),
        effect_sd,
    )
    return [ParameterRow(*row) for row in torch.stack([x.double() for x in columns], 1).tolist()]


def parameter_report(names: list[str], rows: list[ParameterRow], pulled: set[str]) -> Report:
    """Lay the parameters out as a table, those that the log tells most of first."""
    known = {
        name: {**row._asdict(), "pulled": name in pulled}
        for name, row in sorted(zip(names, rows), key=lambda pair: pair[1].given_features)
    }
    hardly = [name for name, row in known.items() if row["given_features"] >= IDENTIFIED_BELOW]
    caption = (
        "mean: over customers, in the middle of an interval as wide as the 95 % interval without the fit's pull; error "
        "of E[θ|x]: of what features tell of a customer's parameter, in standard deviations of the prior, as Fisher "
        "information promises (1: the log tells nothing); own error: of the customer's own parameter, a random effect "
        "added; what features leave open of parameters without a random effect is not known, and in neither"
    )
    if effects := {name.split(",")[0]: row["effect_sd"] for name, row in known.items() if row["effect_sd"] > 0}:
        listed = ", ".join(f"{name} {sd:.2f}" for name, sd in effects.items())
        caption += f"\nrandom effects, sd in those of the prior (of channels what they have in common): {listed}"
    if hardly:
        caption += "\nthe log hardly identifies, so that these are the priors': " + ", ".join(hardly)
    return Report(
        title="what the log tells of each parameter",
        caption=caption,
        rows=known,
        columns={
            "prior": lambda row: f"{row['prior']:.3f}",
            "± sd": lambda row: f"{row['prior_sd']:.3f}",
            "mean": lambda row: f"{row['mean']:.3f}",
            "from": lambda row: f"{row['low']:.3f}",
            "to": lambda row: f"{row['high']:.3f}",
            "error of E[θ|x]": lambda row: f"{row['given_features']:.2f}",
            "own error": lambda row: f"{row['error']:.2f}",
            "source": lambda row: (
                "priors" if row["given_features"] >= IDENTIFIED_BELOW else "pulled" if row["pulled"] else "log"
            ),
        },
        last=None,
        extra={},
        plots={},
        judged="error",
        what="parameter",
    )
