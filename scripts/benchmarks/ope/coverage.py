"""Coverage of 95 % intervals: how often do they contain the true value?

Usage:

    python scripts/bench.py ope/coverage
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table

from envs.offers.env import OffersEnv
from rlcore.ope.evaluator import LOGGED, OffPolicyEvaluator
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import progress, show
from scripts.benchmarks.ope.customer_pool import replications, world_of

INTERVALS = {"normal": "normal", "bootstrap": "ci", "Bernstein": "bernstein"}


def run(directory: Path, device: torch.device, seed: int, *, cases: dict[str, Callable]) -> dict:
    """Run every case (`measure`), print a table of each case, return the numbers."""
    results = {}
    for name, case in cases.items():
        results[name] = case(name, device, seed)
        show(coverage_table(name, results[name]))
    return {"cases": results}


def measure(
    name: str,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    ope: OffPolicyEvaluator,
    pool: int,
    logging: dict,
    target: dict,
    count: int,
    customers: int,
    at_once: int,
) -> dict:
    """Value a target on `count` logs of `customers` drawn from a pool; count how often intervals contain the truth."""
    world, customer_pool = world_of(env, device, seed, pool)
    acts, aims = customer_pool.policy(**logging), customer_pool.policy(**target)
    profit, spend = customer_pool.value(aims)
    truth = {"profit": profit, "spend": spend}
    estimates: dict[tuple[str, str], list[float]] = {}
    held: dict[tuple[str, str, str], list[bool]] = {}
    width: dict[tuple[str, str, str], list[float]] = {}
    shares = []
    runs = replications(
        world, customer_pool, acts, [aims], count=count, customers=customers, at_once=at_once, seed=seed
    )
    for log, (wanted,) in progress(runs, name, count):
        value = ope(log, wanted)
        shares.append(value.diagnostics["effective_share"])
        for estimator, row in value.rows.items():
            if estimator == LOGGED:
                continue
            for kind, true in truth.items():
                estimates.setdefault((estimator, kind), []).append(row[kind])
                for interval, key in INTERVALS.items():
                    low, high = row[f"{kind}_{key}"]
                    held.setdefault((estimator, kind, interval), []).append(low <= true <= high)
                    width.setdefault((estimator, kind, interval), []).append((high - low) / 2)
    rows: dict[str, dict[str, dict]] = {}
    for (estimator, kind), values in estimates.items():
        found = torch.tensor(values, dtype=torch.float64)
        rows.setdefault(estimator, {})[kind] = {
            "bias": (found.mean() - truth[kind]).item(),
            "bias_se": (found.std() / math.sqrt(count)).item(),
            "deviation": found.std().item(),
            **{
                interval: {
                    "covered": sum(held[estimator, kind, interval]) / count,
                    "half_width": sum(width[estimator, kind, interval]) / count,
                }
                for interval in INTERVALS
            },
        }
    return {
        "truth": truth,
        "logging": dict(zip(("profit", "spend"), customer_pool.value(acts))),
        "replications": count,
        "customers": customers,
        "weeks": world.episode_length,
        "effective_share": sum(shares) / count,
        "rows": rows,
    }


def coverage_table(name: str, result: dict) -> Table:
    """Lay a case out for the console."""
    rows = []
    for estimator, row in result["rows"].items():
        cells = [estimator]
        for kind in ("profit", "spend"):
            cells += [
                f"{row[kind]['bias']:.3f}",
                f"{row[kind]['deviation']:.3f}",
                *(f"{row[kind][interval]['covered']:.1%}" for interval in ("normal", "bootstrap")),
            ]
        rows.append(cells)
    truth = result["truth"]
    return text_table(
        f"{name}: {result['replications']:,} logs of {result['customers']:,} customers, effective sample size "
        f"{result['effective_share']:.1%}",
        [
            "estimator",
            *(
                f"{kind}: bias" if head == "bias" else head
                for kind in truth
                for head in ("bias", "dev.", "normal", "boot.")
            ),
        ],
        rows,
        "share of the logs whose nominal 95 % interval holds the true value; bias and deviation of the estimates, true "
        f"profit {truth['profit']:.2f}, spend {truth['spend']:.3f}; "
        "empirical Bernstein intervals are in benchmark.json",
    )
