"""CPU seconds and memory of a week's plan, by step, as the number of customers grows."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from envs.live.package import Package
from envs.live.plan.deciding import allowed_now
from envs.live.plan.forecast import corrections
from envs.live.plan.inputs.exported import ExportedPolicy
from envs.live.plan.output.plan_file import write_plan, write_sends
from envs.live.plan.output.summary import summary
from envs.live.plan.python_api import default_keys
from envs.live.plan.run import Planned, PlanRequest, past_weeks, read_customers, setting_of
from envs.live.plan.weekly_plan import plan_week
from envs.offers.example_shop.customers import customer_rows
from scripts.benchmarks.common.timing import peak_memory

WEEK = 12
MOST = 150.0  # of a basket
ROWS = 20_000  # customers made up at once


class CountedPolicy(ExportedPolicy):
    """An exported policy that counts the CPU time of its scores."""

    seconds = 0.0

    def score(self, inputs, prices=None):
        started = time.process_time()
        scores = super().score(inputs, prices)
        self.seconds += time.process_time() - started
        return scores


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    package: str | None,
    sizes: list[int],
    money: float,
    capacity: dict[str, float],
) -> dict[str, Any]:
    """Plan a week of the made-up shop's customers at each size, without a log, and write it.

    `money` and the messages that each channel of `capacity` carries are those a customer.

    Raises ValueError without a package.
    """
    if package is None:
        raise ValueError(
            "benchmark.package: expected the folder of a policy of the made-up shop, as docs/live.md makes it"
        )
    rows = []
    for n in sorted(sizes):
        carries = {channel: round(x * n) for channel, x in capacity.items()}
        row = of_size(directory, package, seed, n, money * n, carries)
        rows.append(row)
        print("  ".join(f"{name} {x:,.2f}" if isinstance(x, float) else f"{name} {x:,}" for name, x in row.items()))
    return {"rows": rows}


def write_customers(path: Path, n: int, seed: int) -> None:
    """Write n made-up customers as a CSV file, a block at a time so that the rows don't count as the plan's memory."""
    with path.open("w", newline="", encoding="utf-8") as file:
        for first in range(0, n, ROWS):
            rows = customer_rows(first, min(ROWS, n - first), seed + first, younger=False)
            writer = csv.DictWriter(file, [*rows[0], "Joined", "Left"], delimiter=";", restval="")
            if not first:
                writer.writeheader()
            for row in rows:  # one basket of a million lies so far beyond training's that the package refuses the file
                writer.writerow(row | {"Basket": f"{min(float(row['Basket']), MOST):.2f}"})


def of_size(directory: Path, folder: str, seed: int, n: int, money: float, capacity: dict[str, int]) -> dict[str, Any]:
    """Plan and write a week of n customers; return CPU seconds by step, and the peak of memory in MiB."""
    table = directory / f"customers_{n}.csv"
    write_customers(table, n, seed)
    asked = {
        "customers": str(table),
        "separator": ";",
        "week": WEEK,
        "money": money,
        "capacity": capacity,
        "forecast": {"redemptions": None, "common": 25.0},
        "out": str(directory / f"plan_{n}" / f"week={WEEK}.parquet"),
        "replace": True,
    }
    request = PlanRequest(**{**default_keys(), **asked})
    result: dict[str, Any] = {"customers": n}

    def clocked(name: str, function: Callable[[], Any]) -> Any:
        started = time.process_time()
        value = function()
        result[name] = time.process_time() - started
        return value

    policy = clocked("load package", lambda: CountedPolicy(Package.load(folder)))
    given, _, _ = clocked("read table", lambda: read_customers(policy, request))
    past = past_weeks(policy, request, given.ids)
    customers = clocked("contact rules", partial(allowed_now, policy.catalogue, policy.contact_rules, given, past))
    del given  # as a plan does
    path = request.path(WEEK)
    forecast = corrections(path.parent, past, policy.catalogue, policy.version, **request.forecast)
    setting = setting_of(policy, request)
    plan = clocked("plan", lambda: plan_week(policy, customers, torch.from_numpy(forecast.factor), setting))
    result["plan: scores"] = policy.seconds
    result["plan: switch prices, clearing, lots, reasons"] = result.pop("plan") - policy.seconds
    planned = Planned(policy, customers, setting, forecast, plan, path, None, None, "", 1, True)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        write_plan(path, plan.columns, planned.facts)
        write_sends(path.with_suffix(".csv"), plan.columns, plan.sent, "")

    clocked("write", write)
    result["all, CPU seconds"] = sum(x for x in result.values() if isinstance(x, float))
    rl = plan.arms["rl"]
    result |= {f"{name} of {use.capacity:,}": use.messages for name, use in plan.channels.items()}
    result |= {"expected spend / money": rl.expected / rl.money, "peak MiB": float(peak_memory(torch.device("cpu")))}
    print("\n".join(summary(planned)))
    return result
