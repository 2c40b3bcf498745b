"""GAE by one Triton kernel in place of many PyTorch kernels; without Triton or a GPU, by the plain function."""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore import returns

try:  # comes with PyTorch's builds for GPUs
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

BLOCK = 128  # agents of a program

if triton:

    @triton.jit
    def _gae(reward, value, following, terminated, done, out, steps, agents, gamma, lam, BLOCK: tl.constexpr):
        agent = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        here = agent < agents
        trace = tl.full([BLOCK], 0.0, tl.float32)
        for k in range(steps):
            at = (steps - 1 - k) * agents + agent
            ends = tl.load(terminated + at, mask=here, other=1) != 0
            then = tl.where(ends, 0.0, tl.load(following + at, mask=here, other=0.0))
            delta = (
                tl.load(reward + at, mask=here, other=0.0) + gamma * then - tl.load(value + at, mask=here, other=0.0)
            )
            stops = tl.load(done + at, mask=here, other=1) != 0
            trace = (delta + tl.where(stops, 0.0, gamma * lam * trace)).to(tl.float32)  # a compiler can pass float64
            tl.store(out + at, trace, mask=here)


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Return generalised advantages [T, N], as rlcore/returns.py; on a GPU by one float32 kernel, an agent a lane."""
    if triton is None or not reward.is_cuda:
        return returns.gae(reward, value, next_value, terminated, done, gamma, lam)
    return one_kernel(reward, value, next_value, terminated, done, gamma, lam)


def one_kernel(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Compute the same by the Triton kernel, without a fallback."""
    out, (steps, agents) = torch.empty(reward.shape, device=reward.device), reward.shape
    floats = (x.float().contiguous() for x in (reward, value, next_value))
    ends = (x.to(torch.uint8).contiguous() for x in (terminated, done))
    _gae[(triton.cdiv(agents, BLOCK),)](*floats, *ends, out, steps, agents, gamma, lam, BLOCK=BLOCK)
    return out
