"""Measure calls: seconds, memory, and the stages of an iteration of PPO."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
Stage = Callable[[], Any]


def timed(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Time a call with a GPU's work, in wall time or by another clock; return the seconds and the call's result."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    started = clock()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - started, result


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Time a call in CPU time of this process, which other work on the machine does not change.

    Where a GPU works, the time is wall time.
    """
    return timed(function, time.perf_counter if torch.cuda.is_initialized() else time.process_time)[0]


def time_in_turns(calls: dict[Name, Stage], repeats: int) -> dict[Name, list[float]]:
    """Time every call `repeats` times, the calls taking turns, so that a slow moment slows all calls alike."""
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(cpu_seconds(call))
    return taken


def ppo_stages(ppo) -> dict[str, Stage]:
    """The stages of an iteration of PPO, in order; `environment` steps the environment with actions drawn before."""
    env = ppo.env
    kept: dict[str, Any] = {}
    actions = [
        torch.stack([torch.randint(n, (env.num_agents,), device=env.device) for n in env.nvec], -1)
        for _ in range(ppo.num_steps)
    ]

    def environment() -> None:
        env.reset()
        for action in actions:
            env.step(action)

    def collect() -> None:
        kept["rollout"] = ppo.collect()

    def advantages() -> None:
        kept["batch"] = ppo.compute_advantages(kept["rollout"])

    def update() -> None:
        ppo.update(kept["batch"])

    return {"environment": environment, "collect": collect, "advantages": advantages, "update": update}


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
