"""What a call takes: seconds, memory, and the stages of an iteration of PPO."""

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
    """Time a call, in wall time or by another clock, a GPU's work done; return the seconds, and what it returns."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    started = clock()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock() - started, result


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Time a call, in CPU time of this process: what it takes on an idle machine, also where the machine is not idle.

    Where there is a GPU that has work, in wall time.
    """
    return timed(function, time.perf_counter if torch.cuda.is_initialized() else time.process_time)[0]


def time_in_turns(calls: dict[Name, Stage], repeats: int) -> dict[Name, list[float]]:
    """Time every call `repeats` times, one after the other and not one alone, so that a slow moment slows all alike."""
    taken: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(cpu_seconds(call))
    return taken


def ppo_stages(ppo) -> dict[str, Stage]:
    """The stages of an iteration of PPO, in their order; `environment` steps it alone, with actions drawn before."""
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
    """Return the most memory that this process has had so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
