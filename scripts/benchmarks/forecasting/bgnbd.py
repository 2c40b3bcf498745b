"""BG/NBD's probability of future weeks: a household buys at a rate λ until it leaves after some purchase.

The model is fitted by PyPI's `Lifetimes` (Fader, Hardie & Lee 2005: x repeat purchases, the last at t_x, in a time T
since the first; λ is Gamma(r, α) among households, the probability of leaving after a purchase Beta(a, b)). Lifetimes
lacks the probability of several weeks' purchases; this module has it in closed form, in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fit(NamedTuple):
    """Parameters, numbers or 0-dimensional."""

    r: float
    alpha: float
    a: float
    b: float


class Bought(NamedTuple):
    """Histories of H households, [H] each, times in weeks."""

    repeats: Tensor
    last: Tensor  # time of the last purchase
    time: Tensor


def fit_bgnbd(bought: Bought):
    """Fit by Lifetimes; return its model and the parameters. Raises ValueError without the package."""
    try:
        from lifetimes import BetaGeoFitter
    except ImportError as error:
        raise ValueError(
            "benchmark=forecasting/journey: Lifetimes is not installed: pip install -e '.[bench]'"
        ) from error
    model = BetaGeoFitter().fit(*(x.cpu().numpy() for x in bought))
    return model, Fit(*(float(model.params_[name]) for name in ("r", "alpha", "a", "b")))


def log_beta(a, b) -> Tensor:
    """log B(a, b)."""
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def log_alive(fit: Fit, bought: Bought) -> tuple[Tensor, Tensor]:
    """Log-probability that a household still buys, and that it doesn't, [H] each (Fader, Hardie & Lee 2005)."""
    x = bought.repeats.double()
    odds = (
        (fit.r + x) * ((fit.alpha + bought.time.double()) / (fit.alpha + bought.last.double())).log()
        + torch.log(torch.as_tensor(fit.a))
        - torch.log(fit.b + x.clamp_min(1) - 1)
    )
    odds = torch.where(x > 0, odds, -torch.inf)  # without a repeat purchase nobody can have left
    return torch.nn.functional.logsigmoid(-odds), torch.nn.functional.logsigmoid(odds)


def log_prob(fit: Fit, bought: Bought, trips: Tensor, terms: int = 200) -> Tensor:
    """Log-probability [H] of the trips [H, W] of the W weeks after a history.

    For a household that still buys, λ is Gamma(A = r + x, B = α + T) and the probability p of leaving is Beta(a, b +
    x), independent. With n trips in total, the last in week L and m of them before it, two things can have happened.
    The household stayed: E[(1 − p)ⁿ]·E[Π Poisson(y_w; λ)]. Or it left after the last trip: E[p(1 − p)ⁿ⁻¹]·E[Π_{w<L}
    Poisson(y_w; λ)·P(Poisson(λ) ≥ y_L)], because in week L at least y_L purchases would have come. The sum over these
    purchases is cut off after `terms`.
    """
    y, x = trips.double(), bought.repeats.double()
    weeks, n = y.shape[1], y.sum(1)
    shape, time = fit.r + x, fit.alpha + bought.time.double()

    def gamma_mean(power: Tensor, span: Tensor) -> Tensor:
        """log E[λ^power · exp(−λ·span)]."""
        return (
            torch.lgamma(shape + power)
            - torch.lgamma(shape)
            + shape * time.log()
            - (shape + power) * (time + span).log()
        )

    factorials = torch.lgamma(y + 1)
    leaving = log_beta(torch.as_tensor(fit.a, dtype=torch.float64), fit.b + x)
    stayed = (
        log_beta(fit.a + 0 * x, fit.b + x + n) - leaving + gamma_mean(n, torch.full_like(n, weeks)) - factorials.sum(1)
    )
    at = torch.where(y > 0, torch.arange(1, weeks + 1, device=y.device), 0).amax(1).clamp_min(1)  # L
    final = y.gather(1, at[:, None] - 1)[:, 0]
    came = final + torch.arange(terms, device=y.device, dtype=torch.float64)[:, None]  # [terms, H]
    more = torch.logsumexp(gamma_mean(n - final + came, at.double()) - torch.lgamma(came + 1), 0)
    left = (
        log_beta(fit.a + 1 + 0 * x, fit.b + x + (n - 1).clamp_min(0))
        - leaving
        + more
        - factorials.sum(1)
        + torch.lgamma(final + 1)
    )
    alive, gone = log_alive(fit, bought)
    return torch.where(n > 0, alive + torch.logaddexp(stayed, left), torch.logaddexp(alive + stayed, gone))
