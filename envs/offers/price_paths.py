"""The prices of money: a path for each season of training, and the grid at which policies are evaluated."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_price_ranges(price_range: list[float], drift_range: list[float]) -> None:
    """Raise ValueError where a range is empty or prices are not above 0."""
    low, high = price_range
    if not 0 < low < high or not drift_range[0] < drift_range[1]:
        raise ValueError(
            "env.price_range, env.drift_range: expected 0 < low < high and low < high, got "
            f"{price_range}, {drift_range}"
        )


def draw_price_paths(
    week: Tensor,
    n: int,
    generator: torch.Generator,
    *,
    weeks: int,
    price_range: list[float],
    drift_range: list[float],
    noise: float,
) -> tuple[Tensor, Tensor]:
    """Draw n seasons' prices in weeks [T, 1 or n], and their drifts [n].

    The logarithm of a price is a level plus a weekly drift plus normal noise. The level, that of the middle of the
    season of `weeks`, is uniform between the logarithms of `price_range`. The drift is uniform in `drift_range`.
    """
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    low, high = map(math.log, price_range)
    level = uniform(low, high)
    drift = uniform(*drift_range)
    deviation = noise * torch.randn(len(week), n, generator=generator, device=device)
    return (level + drift * (week - (weeks - 1) / 2) + deviation).exp(), drift


def price_grid_of(options: dict, device: torch.device) -> Tensor:
    """Return falling prices [points], log-spaced from `high` to `low`, at which a policy is evaluated.

    Raises ValueError where the grid is empty.
    """
    low, high, points = options["low"], options["high"], options["points"]
    if low >= high:
        raise ValueError(
            f"env.evaluation.price_grid.low: expected less than env.evaluation.price_grid.high, {high}, got {low}"
        )
    return torch.logspace(math.log10(high), math.log10(low), points, device=device)
