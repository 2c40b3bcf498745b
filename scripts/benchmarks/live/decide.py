"""One decision of an exported policy: how far onnxruntime is from PyTorch, and the CPU time of both in one process.

Usage:

    python scripts/bench.py live/decide benchmark.checkpoint=PATH
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from envs.live.decide import Decide, DecisionInputs
from envs.live.examples import draw_inputs, draw_table
from envs.live.export import export
from envs.live.exportable import columns_of
from envs.live.graph import make_decide
from envs.live.package import Package
from envs.offers.policies.scoring import grid_preferences
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.timing import time_in_turns
from scripts.benchmarks.common.trained import restore

CLEAR = 1e-3  # lead of a choice's logit above which both must agree on it
MICROSECONDS = 1e6
TODAY = "2000-01-01"  # of the dates of made-up customers


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    checkpoint: str | None,
    trusted_packages: list[str],
    customers: int,
    batch: int,
    calls: int,
    repeats: int,
) -> dict:
    """Export a checkpoint into the run's folder, score made-up customers by both, and print differences and times.

    `customers` are compared at the package's whole grid of prices. The times are of one customer at one price and on
    the grid, `calls` a measurement, and of a `batch` on the grid; both take turns, and the median of `repeats` counts.
    """
    if checkpoint is None:
        raise ValueError("benchmark.checkpoint: expected the path of a policy to export")
    training = restore(checkpoint, torch.device("cpu"), trusted_packages)
    env, agent = training.env, training.agent
    package = export(
        directory / "policy",
        env,
        agent,
        name="policy",
        config=training.config,
        metrics=directory / "none.json",
        drift=None,
        source=checkpoint,
    )
    decide = make_decide(env, agent, package.transform.to_module())
    inputs = made_up_customers(env, package, customers, seed)
    differences = compare(package, decide, inputs)
    grid, one = package.prices, package.prices[:1]
    settings = {
        "1 customer, 1 price": (inputs[0].take(slice(1)), one, calls),
        f"1 customer, {len(grid)} prices": (inputs[0].take(slice(1)), grid, calls),
        f"{batch:,} customers, {len(grid)} prices": (joined(inputs).take(slice(batch)), grid, 1),
    }
    drift = torch.tensor(package.drift)
    times = {}
    for name, (some, prices, times_called) in settings.items():
        with torch.no_grad():
            ways: dict[str, Callable[[], object]] = {
                "onnxruntime": partial(package.score, some, prices),
                "PyTorch": partial(decide, *some, prices, drift),
                "PyTorch, price by price": partial(price_by_price, decide, some, prices, drift),
            }
            measured = time_in_turns({way: repeated(call, times_called) for way, call in ways.items()}, repeats)
        times[name] = {way: MICROSECONDS * median(seconds) / times_called for way, seconds in measured.items()}
    show(
        text_table(
            "A decision, CPU µs a call",
            ["", "onnxruntime", "PyTorch", "PyTorch, price by price", "onnxruntime / PyTorch"],
            [
                [name, *(f"{x:,.0f}" for x in row.values()), f"{row['onnxruntime'] / row['PyTorch']:.2f}"]
                for name, row in times.items()
            ],
        )
    )
    print(", ".join(f"{name}: {x:.2g}" for name, x in differences.items()))
    return {"differences": differences, "microseconds": times}


def made_up_customers(env, package: Package, customers: int, seed: int) -> list[DecisionInputs]:
    """Return made-up customers by week of the season, with a past of random sends, as examples have."""
    columns, transform = columns_of(env.population, env)
    read = package.read(draw_table(columns, transform, TODAY, seed, customers), today=TODAY)
    return draw_inputs(read, package.features(read), env.codec, package.catalogue, package.num_cap_columns, seed)


def joined(inputs: list[DecisionInputs]) -> DecisionInputs:
    """Join the customers of all weeks, as if all decided in the first one."""
    parts = {name: torch.cat([getattr(x, name) for x in inputs]) for name in DecisionInputs._fields if name != "week"}
    return DecisionInputs(week=inputs[0].week, **parts)


def compare(package: Package, decide: Decide, inputs: list[DecisionInputs]) -> dict[str, float]:
    """Return the largest differences of logits and spend, and how many clear choices differ."""
    found = {"customers": 0.0, "largest Δlogit": 0.0, "largest Δspend": 0.0, "other choices": 0.0}
    for week in inputs:
        for first in range(0, week.num_customers, 1000):
            some = week.take(slice(first, first + 1000))
            ours = package.score(some)
            with torch.no_grad():
                theirs = decide(*some, package.prices, torch.tensor(package.drift))
            finite = theirs.logits.isfinite()
            assert torch.equal(finite, ours.logits.isfinite())
            logit = (ours.logits - theirs.logits)[finite].abs().max().item()
            found["largest Δlogit"] = max(found["largest Δlogit"], logit)
            found["largest Δspend"] = max(found["largest Δspend"], (ours.spend - theirs.spend).abs().max().item())
            best = theirs.logits.topk(2, -1).values
            clear = ~(best[..., 0] - best[..., 1] <= CLEAR)
            differs = ours.logits.argmax(-1) != theirs.logits.argmax(-1)
            found["other choices"] += (differs & clear).sum().item()
            found["customers"] += some.num_customers
    return found


def price_by_price(decide: Decide, inputs: DecisionInputs, prices: torch.Tensor, drift: torch.Tensor) -> torch.Tensor:
    """Return the preferences as the evaluation does: the same function of one price, in a loop."""
    context, spend = decide.context_and_spend(*inputs)
    mask = inputs.action_mask
    return grid_preferences(decide.policy, decide.codec, context, mask, spend, prices, drift.expand(len(prices)))


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that makes a call several times."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls
