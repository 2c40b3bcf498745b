"""One switch for how the hot functions run."""
from __future__ import annotations

from functools import cache
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM = 3  # calls before one is recorded


def fast(function: Callable, mode: str, **how: Any) -> Callable:
    """Return the function as it is (`eager`) or compiled (`compile`), for fixed shapes unless `how`, which torch.compile takes,
    says otherwise."""
    if mode not in ("eager", "compile", "cudagraph"):
        raise ValueError(f"fast: expected 'eager', 'compile' or 'cudagraph', got '{mode}'")
    if mode != "compile":
        return function
    torch._dynamo.config.trace_autograd_ops = True  # a backward pass belongs to the graph of its loss
    return torch.compile(function, **({"dynamic": False} | how))


class Captured:
    """Calls of fixed shapes, replayed as one CUDA graph: its kernels start without asking the host for each.

    The first calls run as they are, so that what is made lazily, such as an optimiser's state, is there. Then the function
    is recorded, once for each set of shapes and of arguments that are no tensors. Arguments are copied to where the recorded
    kernels read; results lie where they write, until the next call, for all recordings share their memory. Whatever else it
    reads must stay where it is, and it can't ask the host a question or draw random numbers. After PyTorch's notes on CUDA
    graphs, "whole-network capture".
    """

    def __init__(self, function: Callable):
        self.function, self.calls, self.recorded = function, {}, {}
        self.pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def __call__(self, *given: Any) -> Any:
        leaves, form = pytree.tree_flatten(given)
        key = (form, *(x.shape if isinstance(x, Tensor) else x for x in leaves))
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= WARM:
            return aside(lambda: self.function(*given))
        if key not in self.recorded:
            static = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
            self.recorded[key] = static, *record(lambda: self.function(*pytree.tree_unflatten(static, form)), self.pool)
        static, replay, out = self.recorded[key]
        for kept, x in zip(static, leaves):
            if isinstance(x, Tensor):
                kept.copy_(x)
        replay()
        return out


def capture(function: Callable, mode: str, device: torch.device) -> Callable:
    """Return the function captured, where `mode` is `cudagraph` and the device a GPU; else as it is."""
    return Captured(function) if mode == "cudagraph" and device.type == "cuda" else function


def aside(function: Callable[[], Any]) -> Any:
    """Run on a stream of its own, as what is recorded later."""
    stream = beside(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = function()
    torch.cuda.current_stream().wait_stream(stream)
    return out


@cache
def beside(device: int) -> torch.cuda.Stream:
    """Return the one stream beside the current: each has memory of its own, which another can't take."""
    return torch.cuda.Stream(device)


def record(function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """Record a function's kernels without running them; return what runs them, and the function's result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = function()
    return graph.replay, out


def scan(body: Callable[[Tensor, Any], tuple[Tensor, Any]], carry: Tensor, rows: Any) -> tuple[Tensor, Any]:
    """Run carry, out = body(carry, row) along the first dimension of all tensors in `rows`; return carry and stacked outs.

    Compiled, it is a loop inside the graph: the body is compiled once, however many rows there are.
    """
    if torch.compiler.is_compiling():
        from torch._higher_order_ops import scan as loop

        def own(carry, row):
            carry, out = body(carry, row)
            return carry, pytree.tree_map(torch.clone, out)  # may not share memory with what came in
        return loop(own, carry, rows)
    leaves, form = pytree.tree_flatten(rows)
    outs = []
    for row in zip(*leaves):
        carry, out = body(carry, pytree.tree_unflatten(list(row), form))
        outs.append(out)
    return carry, pytree.tree_map(lambda *x: torch.stack(x), *outs)
