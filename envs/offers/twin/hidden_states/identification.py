"""What a log without states tells of each parameter: the covariance of G's coefficients, by Fisher information.

The fit draws the means of some parameters to the priors'. Errors are those of this fit, if these means are the priors';
intervals of means are what the log tells beside the prior alone, however strong the pull is.
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

KNOWN_BELOW = 0.9  # error of E[θ | features], in prior standard deviations, below which the log identifies θ


class ParameterRow(NamedTuple):
    """What is known of a parameter, in the units of θ's matrix: logarithms where the prior is lognormal."""

    prior: float  # mean over customers under the priors
    prior_sd: float  # over customers
    mean: float  # estimated mean over customers
    low: float  # 95 % interval of this mean, without the fit's pull: the priors' range where the log tells nothing
    high: float
    told: float  # expected root mean square error of E[θ | features], in prior sds; 1: the log tells nothing
    error: float  # of a customer's own: α's random effect is in it; of others, what features leave open is not known


class Covariance(NamedTuple):
    """Of G's linear coefficients, in prior sds; each parameter has D = 1 + F of them, the constant first."""

    fit: Tensor  # of the fit, with all that draws coefficients to the priors', [K, D, K, D]
    means: Tensor  # variances of the constants where nothing but the priors' own width holds them, [K]


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

    Scores are those of the panel; the information is that of `customers` seasons like these.
    """
    k, d = len(member.middle), 1 + len(panel.features)
    found = method.scores(member, member.alpha_sd, world, panel, (weight > 0).to(weight))
    information = found.information * (customers / len(panel))
    prior = method.prior_precision(member, penalty)
    constants = torch.arange(k, device=prior.device) * d
    fit = torch.linalg.inv(information + prior.diag())[:-1, :-1]
    own_width = prior.index_fill(0, constants, 1.0)
    means = torch.linalg.inv(information + own_width.diag()).diagonal()[constants]
    return Covariance(fit.view(k, d, k, d), means)


def parameter_names(columns: dict[str, list[int]], channels: list[str]) -> list[str]:
    """Name the columns of θ's matrix."""
    names = []
    for name, at in columns.items():
        title = f"log {name}" if name in LOGARITHMIC else name
        names += [title] if len(at) == 1 else [f"{title}, {channel}" for channel in channels]
    return names


def parameter_rows(
    members: list[ParameterNetwork], covariance: Covariance, panel: Panel, alpha: int
) -> list[ParameterRow]:
    """Return a row for each column of θ: the members' mean over a panel's customers, beside the prior.

    `alpha` is the column that has a random effect.
    """
    first = members[0]
    with torch.no_grad():
        mean = torch.stack([member(panel.features.T).mean(0) for member in members]).mean(0)
    at = torch.arange(len(mean), device=mean.device)
    own = covariance.fit[at, :, at]  # [K, D, D]
    half = normal_quantile(LEVEL) * covariance.means.sqrt() * first.spread
    features = first.standardize(panel.features.T).to(own)
    design = torch.cat((torch.ones_like(features[:, :1]), features), 1)
    told = torch.einsum("kij,ji->k", own, design.T @ design / len(design)).sqrt()
    told = torch.where(first.spread > 0, told, 1.0)
    half = torch.where(first.spread > 0, half, 0.0)
    error = told.clone()
    if first.spread[alpha] > 0:
        left_open = torch.stack([member.alpha_sd for member in members]).mean() / first.spread[alpha]
        error[alpha] = torch.hypot(told[alpha], left_open.to(told))
    low, high = ((mean + side * half).clamp(*first.bounds) for side in (-1, 1))
    columns = (first.middle, first.spread, mean, low, high, told.clamp_max(1.0), error.clamp_max(1.0))
    return [ParameterRow(*row) for row in torch.stack([x.double() for x in columns], 1).tolist()]


def parameter_report(names: list[str], rows: list[ParameterRow], pulled: set[str], alpha_sd: float) -> Report:
    """Lay the parameters out as a table, those that the log tells most of first."""
    known = {
        name: {**row._asdict(), "pulled": name in pulled}
        for name, row in sorted(zip(names, rows), key=lambda pair: pair[1].told)
    }
    hardly = [name for name, row in known.items() if row["told"] >= KNOWN_BELOW]
    caption = (
        "mean: over customers, with its 95 % interval by the log and the prior, without the fit's pull; told: error of "
        "what features tell of a customer's parameter, in standard deviations of the prior, as Fisher information "
        "promises (1: the log tells nothing); error: of the customer's own, alpha's random effect added; what features "
        "leave open of the others is not known, and in neither\n"
        f"what features leave open of alpha: sd {alpha_sd:.3f}"
    )
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
            "told": lambda row: f"{row['told']:.2f}",
            "error": lambda row: f"{row['error']:.2f}",
            "source": lambda row: "priors" if row["told"] >= KNOWN_BELOW else "pulled" if row["pulled"] else "log",
        },
        last=None,
        extra={},
        plots={},
        judged="error",
        what="parameter",
    )
