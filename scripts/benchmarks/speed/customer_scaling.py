"""How time and memory of the bound, a season and clearing grow with customers: one axis of scaling.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

from envs.offers.env import OffersEnv
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, simulate_season
from envs.offers.planning.knapsack import Increments, clear
from envs.offers.planning.lagrangian_bound import dual
from envs.offers.policies.baselines import ResponseRanking
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.timing import cpu_seconds, peak_memory


def of_customers(
    env: Callable[..., OffersEnv],
    device: torch.device,
    seed: int,
    dtype: torch.dtype,
    bound: dict,
    actions: int,
    *,
    n: int,
    evaluations: int,
    season: bool,
) -> dict:
    """Time the bound, a season with its decomposition and clearing, for n customers; sizes should rise, like peaks."""
    row = {"customers": n, "before_mib": peak_memory(device)}
    row |= of_market(
        env(device, seed),
        torch.Generator(device).manual_seed(seed),
        dtype,
        n,
        season,
        max_evaluations=evaluations,
        **bound,
    )
    price, spend = (torch.rand(n, actions, device=device, dtype=dtype) for _ in range(2))
    steps = Increments(price.sort(1, descending=True).values, spend, torch.arange(actions, device=device).expand(n, -1))
    row["clear_seconds"] = cpu_seconds(lambda: clear(steps, spend.sum(dtype=torch.float64) / 1000))
    return row | {"peak_mib": peak_memory(device)}


def of_market(env: OffersEnv, generator: torch.Generator, dtype: torch.dtype, n: int, season: bool, **bound) -> dict:
    """Time the bound of n customers and, with `season`, one season of a policy with its profit decomposition."""
    world = env.world.to(env.device, dtype)
    kept: dict[str, Any] = {}
    opened = cpu_seconds(
        lambda: kept.update(
            market=EvaluationMarket.from_sample(
                env.population.draw(n, generator, "test"), world, env.budget, env.contact_rules
            )
        )
    )
    market = kept["market"]
    solved = cpu_seconds(
        lambda: kept.update(
            bound=dual(
                market.customers,
                world,
                market.no_contact_values,
                market.initial_state,
                market.budget,
                market.stock,
                market.rollover,
                contacts=market.contact_policy.contacts,
                **bound,
            )
        )
    )
    limit = kept["bound"]
    row = {
        "open_seconds": opened,
        "dual_seconds": solved,
        "tables_kept": limit.values is not None,
        "evaluations": limit.evaluations,
        "evaluation_seconds": solved / limit.evaluations,
        "certified": (limit.value - limit.certificate) / limit.gap,
        "dual_mib": peak_memory(env.device),
    }
    if season:
        policy = ResponseRanking(market.customers, world, uplift=True)
        row["season_seconds"] = cpu_seconds(
            lambda: kept.update(
                summary=summarise_seasons(
                    [simulate_season(policy, market, market.sample_uniforms(generator), limit)], market, limit
                )
            )
        )
        row |= {"score": kept["summary"]["score"], "season_mib": peak_memory(env.device)}
    return row


def customers_table(rows: list[dict], actions: int) -> Table:
    """Seconds and memory by customers."""
    table = text_table(
        f"customers; clearing of {actions} steps each",
        ["customers", "evaluation, s", "µs each", "dual, s", "left", "season, s", "µs each", "clear, s", "peak, MiB"],
    )
    for row in rows:
        n, season = row["customers"], row.get("season_seconds")
        table.add_row(
            f"{n:,}",
            f"{row['evaluation_seconds']:.3g}",
            f"{1e6 * row['evaluation_seconds'] / n:.3g}",
            f"{row['dual_seconds']:.3g}",
            f"{row['certified']:.1g}",
            *(("", "") if season is None else (f"{season:.3g}", f"{1e6 * season / n:.3g}")),
            f"{row['clear_seconds']:.3g}",
            f"{row['peak_mib']:,.0f}",
        )
    table.caption = (
        "evaluation: of the dual; dual: all of them; left: share of the gap above the certificate then; peak: of the "
        "process so far"
    )
    return table
