"""Data-parallel training under torchrun: every process acts for an equal share of the agents.

All processes take the same gradient step.

In a single process every function returns its argument. The functions are collectives: every process must call them, in
the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(days=1)  # the other processes wait while one evaluates or trains the model that all start from
SEED_STRIDE = 1_000_003  # between the seeds of two processes; larger than the distance of two seeds in a sweep


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's processes for the duration of the context, by gloo, or by NCCL where `device` is a GPU."""
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process; process 0 alone logs and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def per_process(n: int, name: str) -> int:
    """Return each process's part of n. Raises ValueError, naming n by `name`, where the parts would not be equal."""
    if n % num_processes():
        raise ValueError(f"{name}: {n} can't be shared equally by {num_processes()} processes")
    return n // num_processes()


def rank_seed(seed: int) -> int:
    """Return the seed of this process; that of process 0 is `seed` itself."""
    return seed + SEED_STRIDE * rank()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, without gradient."""
    if num_processes() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Average a tensor over all processes, without gradient."""
    return all_reduce_sum(x) / num_processes() if num_processes() > 1 else x


def mean_weight(mask: Tensor) -> Tensor | float:
    """Return the weight of this process's masked mean that makes the processes' average the mean over all samples."""
    if num_processes() == 1:
        return 1.0
    count = mask.sum().float()
    return count / all_reduce_mean(count).clamp_min(1e-8)


def mean_scalars(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average scalar metrics over all processes, in one collective."""
    if num_processes() == 1:
        return metrics
    stacked = torch.stack([x.detach().float() for x in metrics.values()])
    return dict(zip(metrics, all_reduce_mean(stacked)))


def all_reduce_moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the number of rows [B, …] in all processes, their mean and their variance."""
    mean, variance = x.mean(0), x.var(0, correction=0)
    if num_processes() == 1:
        return len(x), mean, variance
    overall_mean = all_reduce_mean(mean)
    overall_variance = all_reduce_mean(variance + (mean - overall_mean).square())
    return len(x) * num_processes(), overall_mean, overall_variance


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters over all processes, in one collective."""
    if num_processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    averaged = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, averaged.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def all_reduce_any(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process."""
    if num_processes() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)))


def gather_objects(x: Any) -> list:
    """Return the objects of all processes by rank in process 0, and this process's own object alone in the others."""
    if num_processes() == 1:
        return [x]
    found = [None] * num_processes() if rank() == 0 else None
    dist.gather_object(x, found)
    return found or [x]


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let process 0 run the context first, then the others, which find what process 0 has made."""
    if num_processes() > 1 and rank() > 0:
        dist.barrier()
    yield
    if num_processes() > 1 and rank() == 0:
        dist.barrier()
