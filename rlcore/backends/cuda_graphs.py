"""CUDA graphs: a function is recorded once for each set of shapes, and its kernels are then replayed in one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UP_CALLS = 3  # calls before one is recorded


class CUDAGraphCallable:
    """A function of fixed shapes that is replayed as one CUDA graph, so that its kernels start without the host.

    The first calls run as they are, so that lazily made state, such as an optimiser's, exists. Then the function is
    recorded, once for each set of shapes, types and arguments that are no tensors. Arguments are copied into static
    buffers, which the recorded kernels read. Results are views of static buffers too: the next call overwrites them, so
    clone what you keep. All other tensors that the function reads must stay in place. The function must not wait for
    the device or draw random numbers. Python attributes that the function sets are set only until it is recorded. After
    PyTorch's notes on CUDA graphs, "whole-network capture".
    """

    def __init__(self, function: Callable):
        self.function = function
        self.calls: dict[Any, int] = {}
        self.static_arguments: dict[Any, list] = {}
        self.recorded: dict[Any, tuple[Callable[[], None], Any]] = {}
        self.memory: dict | None = None  # shared by all recordings of this function

    def __call__(self, *arguments: Any) -> Any:
        leaves, form = pytree.tree_flatten(arguments)
        key = (form, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        if key not in self.static_arguments:  # from the first call on: Triton compiles for the alignment of addresses
            self.static_arguments[key] = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        static = self.static_arguments[key]
        for buffer, x in zip(static, leaves):
            if isinstance(x, Tensor):
                buffer.copy_(x)

        def call() -> Any:
            return self.function(*pytree.tree_unflatten(static, form))

        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= WARM_UP_CALLS:
            return run_on_side_stream(call)
        if key not in self.recorded:
            self.memory = self.memory or graph_memory()
            self.recorded[key] = record_graph(call, self.memory)
        replay, out = self.recorded[key]
        replay()
        return out


def record(function: Callable, device: torch.device) -> Callable:
    """Return a form of the function that is recorded on a GPU; on other devices return the function itself."""
    return CUDAGraphCallable(function) if device.type == "cuda" else function


@cache
def side_stream(device: int) -> torch.cuda.Stream:
    """Return the one stream of all warm-up calls, so that a call can reuse the memory of the last one."""
    return torch.cuda.Stream(device)


def run_on_side_stream(function: Callable[[], Any]) -> Any:
    """Run a function on the stream of warm-up calls, which CUDA graphs need.

    Each stream waits for the other, so that neither reuses memory that the other still works on.
    """
    stream = side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = function()
    torch.cuda.current_stream().wait_stream(stream)
    return out


def graph_memory() -> dict:
    """Return a memory pool and a stream for recordings that may overwrite each other's results.

    No other code uses the stream, because a deleted graph frees cuBLAS's workspace of its stream.
    """
    return {"pool": torch.cuda.graph_pool_handle(), "stream": torch.cuda.Stream()}


def record_graph(function: Callable[[], Any], memory: dict) -> tuple[Callable[[], None], Any]:
    """Record a function's kernels without running them; return a function that replays them, and the result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **memory):
        out = function()
    return graph.replay, out


class PinnedReset:
    """`env.reset`, with the tensors of `env.graph_state` always at the addresses of the first reset.

    A recorded rollout reads these addresses; the environment itself makes new tensors for every episode.
    """

    def __init__(self, env: Any):
        self.env = env
        self.reset = env.reset
        self.pinned: dict[str, Any] = {}

    def __call__(self) -> tuple[Tensor, Tensor]:
        out = self.reset()
        for name in self.env.graph_state:
            fresh = getattr(self.env, name)
            pinned = self.pinned.setdefault(name, fresh)
            for buffer, x in zip(tensors_in(pinned), tensors_in(fresh), strict=True):
                if x is not buffer:
                    buffer.copy_(x)
            setattr(self.env, name, pinned)
        return out


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
