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
    is recorded, once for each set of shapes, types and arguments that are no tensors. From the first call on arguments are
    copied to where the recorded kernels read; results lie where they write, until the next call, for all recordings share
    their memory. Whatever else it reads must stay where it is, and it can't ask the host a question or draw random numbers.
    What it sets in Python, it sets no more once recorded. After PyTorch's notes on CUDA graphs, "whole-network capture".
    """

    def __init__(self, function: Callable):
        self.function, self.calls, self.static, self.recorded = function, {}, {}, {}
        self.place: dict | None = None  # of all recordings

    def __call__(self, *given: Any) -> Any:
        leaves, form = pytree.tree_flatten(given)
        key = (form, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        if key not in self.static:  # Triton makes kernels for addresses' alignments: the first calls see what is recorded
            self.static[key] = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        static = self.static[key]
        for kept, x in zip(static, leaves):
            if isinstance(x, Tensor):
                kept.copy_(x)

        def call() -> Any:
            return self.function(*pytree.tree_unflatten(static, form))
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= WARM:
            return aside(call)
        if key not in self.recorded:
            self.place = self.place or place()
            self.recorded[key] = record(call, self.place)
        replay, out = self.recorded[key]
        replay()
        return out


def capture(function: Callable, mode: str, device: torch.device) -> Callable:
    """Return the function captured, where `mode` is `cudagraph` and the device a GPU; else as it is."""
    return Captured(function) if mode == "cudagraph" and device.type == "cuda" else function


@cache
def side(device: int) -> torch.cuda.Stream:
    """The stream of all first calls: memory that one leaves behind serves the next."""
    return torch.cuda.Stream(device)


def aside(function: Callable[[], Any]) -> Any:
    """Run on a stream of its own, as what is recorded later.

    Each stream waits for the other, so that neither gets memory back that the other still works on.
    """
    stream = side(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = function()
    torch.cuda.current_stream().wait_stream(stream)
    return out


def place() -> dict:
    """Memory and stream for recordings that may overwrite each other's results.

    No stream of others': a graph that is deleted takes cuBLAS's workspace of its stream with it.
    """
    return {"pool": torch.cuda.graph_pool_handle(), "stream": torch.cuda.Stream()}


def record(function: Callable[[], Any], place: dict) -> tuple[Callable[[], None], Any]:
    """Record a function's kernels without running them; return what runs them, and the function's result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **place):
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
