"""Data-parallel training under torchrun: every process has an equal share of the agents, and all know the same sums.

In a single process every function gives back what it is given. Collectives: all processes must come by, in one order.
"""
from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=1)  # one process evaluates, or trains what all begin with, while the others wait
STRIDE = 1_000_003  # between the seeds of two processes; further apart than the seeds of a sweep


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of torchrun's processes inside, by gloo, or by NCCL where `device` is a GPU."""
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is; the first, 0, alone logs and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(n: int, name: str) -> int:
    """Return this process's part of n; raise ValueError, which calls n by its name, where it can't be shared equally."""
    if n % size():
        raise ValueError(f"{name}: {n} can't be shared equally by {size()} processes")
    return n // size()


def own(seed: int) -> int:
    """Return this process's own seed; the first one's is that of a single process."""
    return seed + STRIDE * rank()


def total(x: Tensor) -> Tensor:
    """Add up a tensor over all processes, without gradient."""
    if size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """Average a tensor over all processes, without gradient."""
    return total(x) / size() if size() > 1 else x


def weight(mask: Tensor) -> Tensor | float:
    """Return what this process's mean over a mask (bool or weights) counts for in the average of all processes' means."""
    if size() == 1:
        return 1.0
    here = mask.sum().float()
    return here / mean(here).clamp_min(1e-8)


def means(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average scalars over all processes, in one go."""
    if size() == 1:
        return metrics
    return dict(zip(metrics, mean(torch.stack([x.detach().float() for x in metrics.values()]))))


def moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return how many rows [B, …] all processes have, their mean and their variance."""
    here, var = x.mean(0), x.var(0, correction=0)
    centre = mean(here)
    return len(x) * size(), centre, mean(var + (here - centre).square()) if size() > 1 else var


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters over all processes, in one go."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = mean(torch.cat([g.flatten() for g in gradients]))
    for g, averaged in zip(gradients, flat.split([g.numel() for g in gradients])):
        g.copy_(averaged.view_as(g))


def any_of(said: bool, device: torch.device) -> bool:
    """Return whether any process says so."""
    return said if size() == 1 else bool(total(torch.tensor(float(said), device=device)))


def gathered(x: Any) -> list:
    """Return what every process has, by rank; only the first gets the others'."""
    if size() == 1:
        return [x]
    found = [None] * size() if rank() == 0 else None
    dist.gather_object(x, found)
    return found or [x]


@contextmanager
def first() -> Iterator[None]:
    """Let the first process through alone, then the others, who find what it has made."""
    if size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()
