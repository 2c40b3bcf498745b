"""Time and memory of the filter of the hidden state, forward and with gradients.

Usage:

    python scripts/bench.py speed/filtering
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from envs.offers.env import OffersEnv
from envs.offers.world.filtering import CHUNK
from envs.offers.world.life_likelihood import life_log_likelihood
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.seasons import SeenSeason, random_season
from scripts.benchmarks.common.timing import cpu_seconds, peak_memory


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    customers: list[int],
    precision: str,
    repeats: int,
) -> dict:
    """Filter a season of each number of `customers`, best of `repeats`; print and return seconds and peak memory.

    Numbers should rise, because memory is the peak so far.
    """
    if precision not in ("float32", "float64"):
        raise ValueError(f"benchmark.precision: expected float32 or float64, got '{precision}'")
    offers = env(device, seed)
    world = offers.world.to(device, getattr(torch, precision))
    rows = []
    for n in customers:
        season = random_season(offers.population, world, n, torch.Generator(device).manual_seed(seed))
        row = {"customers": n, "before_mib": peak_memory(device)}
        for name, gradient in (("forward", False), ("gradient", True)):
            row[f"{name}_seconds"] = min(
                cpu_seconds(partial(filter_season, season, world, gradient)) for _ in range(repeats)
            )
            row[f"{name}_mib"] = peak_memory(device) - row["before_mib"]
        rows.append(row)
    show(
        text_table(
            f"The filter over 79 states, {world.weeks} weeks, {precision}, {CHUNK:,} customers at once",
            ["customers", "forward, s", "with gradients, s", "added to the peak, MiB"],
            [
                [f"{r['customers']:,}", f"{r['forward_seconds']:.2f}", f"{r['gradient_seconds']:.2f}"]
                + [f"{r['gradient_mib']:.0f}"]
                for r in rows
            ],
        )
    )
    return {"filter": rows}


def filter_season(season: SeenSeason, world, gradient: bool) -> None:
    """Compute the log-likelihood of a season a chunk at a time; with `gradient`, its gradient in θ too."""
    for first in range(0, len(season.customers), CHUNK):
        rows = slice(first, first + CHUNK)
        some, weeks = season.customers[rows], [week.take(rows) for week in season.seen]
        if not gradient:
            with torch.no_grad():
                life_log_likelihood(some, world, weeks)
            continue
        some = some.map(lambda x: x.clone().requires_grad_())
        life_log_likelihood(some, world, weeks).sum().backward()
