"""Compare our PPO with Stable-Baselines3's on the toy sequential world: speed, time to equal return, masks.

Usage:

    python scripts/bench.py speed/sb3
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from rich.table import Table

from envs.adapters.stable_baselines3 import OffersVecEnv
from envs.sequential.env import SequentialEnv
from rlcore.ppo import PPO
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.timing import Stage, time_in_turns
from scripts.benchmarks.speed.sb3_contestants import our_stages, peer_stages, scalars
from scripts.benchmarks.speed.sb3_learning import learning_curves, masked


def floor(env: SequentialEnv, algo: dict) -> Callable[[], None]:
    """Return an update's matrix products alone: forward, to the weights and, but for the first layer, to the inputs."""
    batch = env.num_agents * algo["num_steps"] // algo["minibatches"]
    products = []
    for last in (sum(env.nvec), 1):
        sizes = [env.obs_dim, *algo["net"].keywords["hidden"], last]
        for i, (n, m) in enumerate(pairwise(sizes)):
            x, weight, gradient = torch.randn(batch, n), torch.randn(m, n), torch.randn(batch, m)
            products += [(x, weight.T), (gradient.T, x)] + ([(gradient, weight)] if i else [])

    def run():
        for _ in range(algo["epochs"] * algo["minibatches"]):
            for a, b in products:
                a @ b

    return run


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., SequentialEnv],
    algo: partial[PPO],
    modes: list,
    repeats: int,
    learn: dict,
    maskable: dict,
) -> dict:
    """Time, then learn, then learn with masks; print the tables, save the curves, return everything."""
    if device.type != "cpu" or torch.get_num_threads() > 1:
        raise ValueError(
            f"device, threads: expected cpu and 1, where Stable-Baselines3 steps its environments, got {device} "
            f"and {torch.get_num_threads()}"
        )
    settings = algo.keywords
    make = partial(env, device, seed)
    example = make()
    makers: dict[str, Callable[[], dict[str, Stage]]] = {
        "SB3, DummyVecEnv": lambda: peer_stages(scalars(example), seed, settings),
        "SB3, our VecEnv": lambda: peer_stages(OffersVecEnv(make(), False), seed, settings),
        **{f"ours, {mode}": partial(our_stages, make(), seed, mode, algo) for mode in modes},
    }
    speed = time_contestants(
        {name: maker() for name, maker in makers.items()},
        floor(example, settings),
        repeats,
        example.num_agents * settings["num_steps"],
    )
    show(speed_table(speed))
    result: dict[str, dict] = {"speed": speed}
    if learn["steps"]:
        result["learning"] = learning_curves(directory, make, algo, seed, modes, example, **learn)
        show(learning_table(result["learning"]))
    if maskable["seeds"]:
        result["masks"] = masked(partial(env, penalty=None), device, algo, **maskable)
        show(mask_table(result["masks"]))
    return result


def time_contestants(contestants: dict[str, dict[str, Stage]], products: Stage, repeats: int, steps: int) -> dict:
    """Median seconds an iteration of all contestants, in turns; steps a second and ratios to the first."""
    calls = {
        ("floor", ""): products,
        **{(name, stage): call for name, stages in contestants.items() for stage, call in stages.items()},
    }
    taken = time_in_turns(calls, repeats)
    floor_seconds = median(taken["floor", ""])
    rows: dict[str, dict[str, float]] = {}
    for name in contestants:
        collect, update = taken[name, "collect"], taken[name, "update"]
        whole = median([c + u for c, u in zip(collect, update)])
        rows[name] = {
            "environment": steps / median(taken[name, "environment"]),
            "collect": steps / median(collect),
            "update_seconds": median(update),
            "end_to_end": steps / whole,
            "update_of_floor": median(update) / floor_seconds,
        }
    first = next(iter(rows.values()))
    with_ratios = {}
    for name, row in rows.items():
        ratio = {key: row[key] / first[key] for key in ("environment", "collect", "end_to_end")}
        ratio["update"] = first["update_seconds"] / row["update_seconds"]
        with_ratios[name] = {**row, "ratio": ratio}
    return {"steps": steps, "floor_seconds": floor_seconds, "rows": with_ratios}


def speed_table(speed: dict) -> Table:
    """Steps a second, and their ratio to the first row's."""
    table = text_table(
        f"steps per CPU second (× the first row's), {speed['steps']:,} steps an iteration",
        ["", "environment", "+ collect", "update, ms", "of its floor", "end to end"],
    )
    for name, row in speed["rows"].items():
        environment, collect, whole = (
            f"{row[key]:,.0f} ({row['ratio'][key]:.1f})" for key in ("environment", "collect", "end_to_end")
        )
        table.add_row(
            name,
            environment,
            collect,
            f"{1e3 * row['update_seconds']:.1f} ({row['ratio']['update']:.1f})",
            f"{row['update_of_floor']:.2f}",
            whole,
        )
    table.add_row("matrix products", "", "", f"{1e3 * speed['floor_seconds']:.1f}", "1.00", "")
    return table


def learning_table(learning: dict) -> Table:
    """Time to equal return."""
    table = text_table(
        f"{learning['steps']:,} steps; target: the best return of the first row, {learning['target']:.1f}",
        ["", "seconds to target", "seconds in all", "final return"],
    )
    for name, row in learning["rows"].items():
        to = row["seconds_to_target"]
        table.add_row(name, "never" if to is None else f"{to:.1f}", f"{row['seconds']:.1f}", f"{row['final']:.1f}")
    return table


def mask_table(masks: dict) -> Table:
    """Return at equal steps with masks."""
    table = text_table(
        f"masks, {masks['steps']:,} steps; optimum {masks['optimum']:.1f}", ["", "return", "95 % interval"]
    )
    for name, row in masks["rows"].items():
        table.add_row(name, f"{row['mean']:.2f}", f"{row['ci'][0]:.2f} to {row['ci'][1]:.2f}")
    return table
