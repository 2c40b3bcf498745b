"""Measure how time and memory grow with customers, weeks, worlds and processes.

Usage:

    python scripts/bench.py speed/scaling
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from rich.table import Table

from envs.offers.env import OffersEnv
from envs.offers.evaluation.simulation import EvaluationMarket
from envs.offers.planning.lagrangian_bound import dual
from envs.sequential.env import SequentialEnv
from rlcore.ppo import PPO
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.timing import cpu_seconds, ppo_stages, time_in_turns
from scripts.benchmarks.speed.customer_scaling import customers_table, of_customers

TRAIN = Path(__file__).parents[2] / "train.py"


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: partial[OffersEnv],
    algo: partial[PPO],
    sequential: Callable[..., SequentialEnv],
    sequential_algo: Callable[..., PPO],
    precision: str,
    bound: dict,
    customers: list,
    actions: int,
    weeks: dict,
    worlds: dict,
    processes: dict,
) -> dict:
    """Measure each axis alone; print and return the tables."""
    dtype = getattr(torch, precision)
    result: dict[str, list[dict]] = {}
    if customers:
        result["customers"] = []
        for size in customers:
            result["customers"].append(of_customers(env, device, seed, dtype, bound, actions, **size))
            print(f"{size['n']:,} customers measured", file=sys.stderr, flush=True)  # the largest take long
        show(customers_table(result["customers"], actions))
    if weeks["lengths"]:
        result["weeks"] = [
            of_weeks(env, algo, device, seed, dtype, length, weeks["customers"]) for length in weeks["lengths"]
        ]
        show(weeks_table(result["weeks"], weeks["customers"]))
    if worlds["numbers"]:
        result["worlds"] = [
            of_worlds(sequential, sequential_algo, device, seed, n, worlds["repeats"]) for n in worlds["numbers"]
        ]
        show(worlds_table(result["worlds"]))
    if processes["numbers"]:
        result["processes"] = [
            of_processes(directory, device, seed, n, processes["overrides"]) for n in processes["numbers"]
        ]
        show(processes_table(result["processes"]))
    return result


def of_weeks(
    env: partial[OffersEnv],
    algo: partial[PPO],
    device: torch.device,
    seed: int,
    dtype: torch.dtype,
    weeks: int,
    n: int,
) -> dict:
    """Time an evaluation of the dual and an iteration of PPO on seasons of some weeks."""
    make_world = env.keywords["world"]
    index = make_world.keywords["season"]
    season = list(islice(index * math.ceil(weeks / len(index)), weeks))
    offers = partial(env, world=partial(make_world, season=season), num_agents=n)(device, seed)
    world = offers.world.to(device, dtype)
    sample = offers.population.draw(n, torch.Generator(device).manual_seed(seed), "test")
    market = EvaluationMarket.from_sample(sample, world, offers.budget, offers.contact_rules)

    def once():
        dual(
            market.customers,
            world,
            market.no_contact_values,
            market.initial_state,
            market.budget,
            first_price=1.0,
            tolerance=0.0,
            max_evaluations=1,
        )

    ppo = partial(algo, num_steps=weeks)(offers, seed)
    return {"weeks": weeks, "evaluation_seconds": median(cpu_seconds(once) for _ in range(3)), **iteration(ppo, 3)}


def iteration(ppo: PPO, repeats: int) -> dict:
    """Time the stages of PPO after one iteration to warm up: medians, in seconds, and steps a second."""
    parts = ppo_stages(ppo)
    del parts["environment"]
    taken = time_in_turns(parts, repeats + 1)
    stages = {f"{name}_seconds": median(x[1:]) for name, x in taken.items()}
    return {
        "steps": ppo.steps_per_iteration,
        **stages,
        "steps_per_second": ppo.steps_per_iteration / sum(stages.values()),
    }


def weeks_table(rows: list[dict], n: int) -> Table:
    """Seconds by weeks."""
    table = text_table(
        f"weeks of a season, {n:,} customers",
        ["weeks", "dual evaluation, ms", "a week", "PPO iteration, ms", "a week", "steps/s"],
    )
    for row in rows:
        whole, dual_ms = 1e3 * row["steps"] / row["steps_per_second"], 1e3 * row["evaluation_seconds"]
        table.add_row(
            str(row["weeks"]),
            f"{dual_ms:.0f}",
            f"{dual_ms / row['weeks']:.1f}",
            f"{whole:.0f}",
            f"{whole / row['weeks']:.1f}",
            f"{row['steps_per_second']:,.0f}",
        )
    return table


def of_worlds(
    env: Callable[..., SequentialEnv], algo: Callable[..., PPO], device: torch.device, seed: int, n: int, repeats: int
) -> dict:
    """Time PPO on the sequential environment with n worlds."""
    return {"worlds": n, **iteration(algo(partial(env, num_agents=n)(device, seed), seed), repeats)}


def worlds_table(rows: list[dict]) -> Table:
    """Steps a second by worlds."""
    table = text_table(
        "parallel worlds of the sequential environment", ["worlds", "steps", "collect, ms", "update, ms", "steps/s"]
    )
    for row in rows:
        table.add_row(
            f"{row['worlds']:,}",
            f"{row['steps']:,}",
            f"{1e3 * row['collect_seconds']:.1f}",
            f"{1e3 * row['update_seconds']:.1f}",
            f"{row['steps_per_second']:,.0f}",
        )
    return table


def of_processes(directory: Path, device: torch.device, seed: int, n: int, overrides: list[str]) -> dict:
    """Train with scripts/train.py by n processes, which share the same agents; the script measures the speed."""
    folder = directory / f"processes-{n}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={n}",
        str(TRAIN),
        *overrides,
        f"seed={seed}",
        f"device={device.type}",
        f"hydra.run.dir={folder}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    found = json.loads((folder / "metrics.json").read_text())
    return {"processes": n, **{key: found[key] for key in ("steps", "steps_per_second", "seconds")}}


def processes_table(rows: list[dict]) -> Table:
    """Steps a second by processes."""
    table = text_table(
        f"processes, {rows[0]['steps']:,} steps, wall time", ["processes", "seconds", "steps/s", "times the first"]
    )
    for row in rows:
        table.add_row(
            str(row["processes"]),
            f"{row['seconds']:.1f}",
            f"{row['steps_per_second']:,.0f}",
            f"{row['steps_per_second'] / rows[0]['steps_per_second']:.2f}",
        )
    return table
