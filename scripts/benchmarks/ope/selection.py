"""Policy selection by a log: how often is the best of several policies found?

Usage:

    python scripts/bench.py ope/selection
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table

from envs.offers.env import OffersEnv
from rlcore.ope.evaluator import OffPolicyEvaluator
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import progress, show
from scripts.benchmarks.ope.customer_pool import replications, world_of


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    ope: OffPolicyEvaluator,
    pool: int,
    price: float,
    logging: dict,
    candidates: dict[str, dict],
    estimator: str,
    count: int,
    customers: int,
    at_once: int,
) -> dict:
    """Let an estimator choose among candidates on `count` logs, by profit less spend at the price; count right choices.

    A choice is right if it is the best policy, or if its interval contains the best policy's true value.
    """
    world, customer_pool = world_of(env, device, seed, pool)
    tables = [customer_pool.policy(**candidate) for candidate in candidates.values()]
    acts = customer_pool.policy(**logging)
    truth = [profit - price * spend for profit, spend in map(customer_pool.value, tables)]
    best, found = max(truth), []
    runs = replications(
        world, customer_pool, acts, tables, count=count, customers=customers, at_once=at_once, seed=seed
    )
    for log, targets in progress(runs, "selection", count):
        values = [ope(log, target) for target in targets]
        estimated = [value.rows[estimator] for value in values]
        chosen = max(range(len(estimated)), key=lambda k: estimated[k]["net"])
        low, high = estimated[chosen]["net_ci"]
        found.append(
            {
                "chosen": chosen,
                "best": truth[chosen] == best,
                "within": low <= best <= high,
                "regret": best - truth[chosen],
                "estimates": [row["net"] for row in estimated],
                "effective_shares": [value.diagnostics["effective_share"] for value in values],
            }
        )
    mean = {key: sum(row[key] for row in found) / count for key in ("best", "within", "regret")}
    right = sum(row["best"] or row["within"] for row in found) / count
    estimates, shares = (torch.tensor([row[key] for row in found]) for key in ("estimates", "effective_shares"))
    rows = {
        name: {
            "truth": truth[k],
            "mean": estimates[:, k].mean().item(),
            "deviation": estimates[:, k].std().item(),
            "effective_share": shares[:, k].mean().item(),
            "chosen": sum(row["chosen"] == k for row in found) / count,
        }
        for k, name in enumerate(candidates)
    }
    profit, spend = customer_pool.value(acts)
    result = {
        "candidates": rows,
        "right": right,
        **mean,
        "logging": profit - price * spend,
        "replications": count,
        "customers": customers,
    }
    show(selection_table(result, estimator))
    return result


def selection_table(result: dict, estimator: str) -> Table:
    """Lay the choice out for the console."""
    truths = [row["truth"] for row in result["candidates"].values()]
    rows = [
        [
            name,
            *(f"{row[key]:.2f}" for key in ("truth", "mean", "deviation")),
            *(f"{row[key]:.1%}" for key in ("effective_share", "chosen")),
        ]
        for name, row in sorted(result["candidates"].items(), key=lambda item: -item[1]["truth"])
    ]
    return text_table(
        f"{len(rows)} policies, {result['replications']} logs of {result['customers']:,} customers",
        ["policy", "true value", "estimate", "dev.", "effective", "chosen"],
        rows,
        f"profit less spend at its price, a season; the log's own policy {result['logging']:.2f}. "
        f"{estimator} chose the best in "
        f"{result['best']:.0%}, the best or one whose interval holds the best's value in {result['right']:.0%}; "
        f"it lost "
        f"{result['regret']:.2f} on average, where the worst would lose {max(truths) - min(truths):.2f}",
    )
