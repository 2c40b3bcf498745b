"""The cost of each budget rule.

Usage:

    python scripts/bench.py learning/budget_rules
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from envs.offers.env import OffersEnv
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, simulate_season
from envs.offers.planning.lagrangian_bound import dual
from envs.offers.policies.information import ORACLE
from envs.offers.policies.rollover import planning_policy
from scripts.benchmarks.common.timing import timed

KEPT = ("score", "score_ci", "incremental_profit", "spend_ratio", "weeks_breached", "worst_week", "contact_rate")


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    sizes: dict,
    precision: str,
    bound: dict,
    rules: dict,
) -> dict:
    """Simulate the planner under every rule on test customers; print and return each rule's cost against the first.

    `sizes` is {customers: {evaluations of the dual, seasons}}. A dual starts at the prices of the size before.
    """
    if precision not in ("float32", "float64"):
        raise ValueError(f"benchmark.precision: expected float32 or float64, got '{precision}'")
    offers = env(device, seed)
    rows = []
    world = offers.world.to(device, getattr(torch, precision))
    print(
        f"{'customers':>9}  {'rule':28}  {'score':>6}  {'price':>6}  {'spend':>6}  "
        f"{'breached':>8}  {'worst':>6}  {'s':>6}"
    )
    for n, size in sizes.items():
        generator = torch.Generator(device).manual_seed(seed)
        market = EvaluationMarket.from_sample(
            offers.population.draw(n, generator, "test"), world, offers.budget, offers.contact_rules
        )
        limit = dual(
            market.customers,
            world,
            market.no_contact_values,
            market.initial_state,
            market.budget,
            market.stock,
            market.rollover,
            **bound,
            max_evaluations=size["evaluations"],
        )
        bound = {**bound, "first_price": limit.prices.tolist()}
        policy = planning_policy(market, limit, ORACLE)
        luck, best = [market.sample_uniforms(generator) for _ in range(size["seasons"])], None
        for name, rule in rules.items():
            seconds, result = timed(partial(play_seasons, policy, market, rule, luck, limit))
            best = best or result["score"]
            rows.append(
                {
                    "customers": n,
                    "rule": name,
                    "price": best - result["score"],
                    "seconds": seconds,
                    **{key: result[key] for key in KEPT},
                }
            )
            print(
                f"{n:9,}  {name:28}  {result['score']:6.3f}  {best - result['score']:6.3f}  "
                f"{result['spend_ratio']:6.3f}  "
                f"{result['weeks_breached']:8.1%}  {result['worst_week']:6.3f}  {seconds:6.1f}",
                flush=True,
            )
    return {"rules": rows}


def play_seasons(policy, market: EvaluationMarket, rule, luck: list, limit) -> dict:
    """Simulate one season for each draw of random numbers under a rule; return their summary against the bound."""
    return summarise_seasons(
        [simulate_season(policy, replace(market, budget_rule=rule), u, limit) for u in luck], market, limit
    )
