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

from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.simulation import EvaluationMarket, simulate_season
from envs.offers.planning.knapsack import Increments, clear
from envs.offers.planning.lagrangian_bound import dual
from envs.offers.policies.baselines import ResponseRanking
from scripts.benchmarks.common.display import show, table_of
from scripts.benchmarks.common.timing import cpu_seconds, peak_memory, ppo_stages, time_in_turns

TRAIN = Path(__file__).parents[2] / "train.py"


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable,
    algo: Callable,
    sequential: Callable,
    sequential_algo: Callable,
    precision: str,
    bound: dict,
    customers: list,
    actions: int,
    weeks: dict,
    worlds: dict,
    processes: dict,
) -> dict:
    """Measure each axis alone; print and return the tables."""
    dtype, result = getattr(torch, precision), {}
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


def of_customers(
    env: Callable,
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


def of_market(env, generator: torch.Generator, dtype: torch.dtype, n: int, season: bool, **bound) -> dict:
    """Time the bound of n customers and, with `season`, one season of a policy with its profit decomposition."""
    world, kept = env.world.to(env.device, dtype), {}
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


def customers_table(rows: list[dict], actions: int):
    """Seconds and memory by customers."""
    table = table_of(
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


def of_weeks(
    env: Callable, algo: Callable, device: torch.device, seed: int, dtype: torch.dtype, weeks: int, n: int
) -> dict:
    """Time an evaluation of the dual and an iteration of PPO on seasons of some weeks."""
    world = env.keywords["world"]
    index = world.keywords["season"]
    season = list(islice(index * math.ceil(weeks / len(index)), weeks))
    env = partial(env, world=partial(world, season=season), num_agents=n)(device, seed)
    world = env.world.to(device, dtype)
    market = EvaluationMarket.from_sample(
        env.population.draw(n, torch.Generator(device).manual_seed(seed), "test"), world, env.budget, env.contact_rules
    )

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

    ppo = partial(algo, num_steps=weeks)(env, seed)
    return {"weeks": weeks, "evaluation_seconds": median(cpu_seconds(once) for _ in range(3)), **iteration(ppo, 3)}


def iteration(ppo, repeats: int) -> dict:
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


def weeks_table(rows: list[dict], n: int):
    """Seconds by weeks."""
    table = table_of(
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


def of_worlds(env: Callable, algo: Callable, device: torch.device, seed: int, n: int, repeats: int) -> dict:
    """Time PPO on the sequential environment with n worlds."""
    return {"worlds": n, **iteration(algo(partial(env, num_agents=n)(device, seed), seed), repeats)}


def worlds_table(rows: list[dict]):
    """Steps a second by worlds."""
    table = table_of(
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


def processes_table(rows: list[dict]):
    """Steps a second by processes."""
    table = table_of(
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
