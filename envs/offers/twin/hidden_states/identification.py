"""What a log without states tells of each parameter: the covariance of G's coefficients, by Fisher information."""

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

KNOWN_BELOW = 0.9  # error of a customer's parameter, in prior standard deviations, below which the log identifies it


class ParameterRow(NamedTuple):
    """What is known of a parameter, in the units of θ's matrix: logarithms where the prior is lognormal."""

    prior: float  # mean over customers under the priors
    prior_sd: float  # over customers
    mean: float  # estimated mean over customers
    low: float  # 95 % interval of this mean
    high: float
    error: float  # expected root mean square error of what features tell of a customer's, in prior sds; 1: nothing


def coefficient_covariance(
    method: FilterFit,
    member: ParameterNetwork,
    world: World,
    panel: Panel,
    weight: Tensor,
    penalty: float,
    customers: int,
) -> Tensor:
    """Return the covariance of G's linear coefficients, in prior sds, [K, D, K, D], D = 1 + F, the constant first.

    Scores are those of the panel; the information is that of `customers` seasons like these.
    """
    k, d = len(member.middle), 1 + len(panel.features)
    found = method.scores(member, member.alpha_sd, world, panel, (weight > 0).to(weight))
    precision = found.information * (customers / len(panel)) + method.prior_precision(member, penalty).diag()
    return torch.linalg.inv(precision)[:-1, :-1].view(k, d, k, d)


def parameter_names(columns: dict[str, list[int]], channels: list[str]) -> list[str]:
    """Name the columns of θ's matrix."""
    names = []
    for name, at in columns.items():
        title = f"log {name}" if name in LOGARITHMIC else name
        names += [title] if len(at) == 1 else [f"{title}, {channel}" for channel in channels]
    return names


def parameter_rows(members: list[ParameterNetwork], covariance: Tensor, panel: Panel) -> list[ParameterRow]:
    """Return a row for each column of θ: the members' mean over a panel's customers, beside the prior."""
    first = members[0]
    with torch.no_grad():
        mean = torch.stack([member(panel.features.T).mean(0) for member in members]).mean(0)
    at = torch.arange(len(mean), device=mean.device)
    own = covariance[at, :, at]  # [K, D, D]
    half = normal_quantile(LEVEL) * own[:, 0, 0].sqrt() * first.spread
    features = first.standardize(panel.features.T).to(own)
    design = torch.cat((torch.ones_like(features[:, :1]), features), 1)
    error = torch.einsum("kij,ji->k", own, design.T @ design / len(design)).sqrt()
    error = torch.where(first.spread > 0, error, 1.0)
    half = torch.where(first.spread > 0, half, 0.0)
    columns = (first.middle, first.spread, mean, mean - half, mean + half, error.clamp_max(1.0))
    return [ParameterRow(*row) for row in torch.stack([x.double() for x in columns], 1).tolist()]


def parameter_report(names: list[str], rows: list[ParameterRow], pulled: set[str], alpha_sd: float) -> Report:
    """Lay the parameters out as a table, those that the log tells most of first."""
    known = {
        name: {**row._asdict(), "pulled": name in pulled}
        for name, row in sorted(zip(names, rows), key=lambda pair: pair[1].error)
    }
    hardly = [name for name, row in known.items() if row["error"] >= KNOWN_BELOW]
    caption = (
        "mean: over customers, with its 95 % interval; error: of what features tell of a customer's parameter, in "
        "standard deviations of the prior, as Fisher information promises (1: the log tells nothing)\n"
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
            "error": lambda row: f"{row['error']:.2f}",
            "source": lambda row: "priors" if row["error"] >= KNOWN_BELOW else "pulled" if row["pulled"] else "log",
        },
        last=None,
        extra={},
        plots={},
        judged="error",
        what="parameter",
    )
