"""CUDA graphs without a GPU: kernels of a recording are noted, undone, and replayed in place."""

from __future__ import annotations

import gc
import sys
from typing import NamedTuple

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from rlcore.backends import cuda_graphs

# what asks the host, or a random stream
ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "lift_fresh",
    "randperm",
    "rand",
    "randint",
    "randn",
    "uniform_",
    "normal_",
    "random_",
    "bernoulli",
    "bernoulli_",
    "exponential_",
    "multinomial",
}


class Outside(NamedTuple):
    """A tensor from outside of the recording that a kernel reads or writes: an address, which keeps nothing alive."""

    storage: int
    dtype: torch.dtype
    place: tuple  # offset, size, strides


class Tape(TorchDispatchMode):
    """A CUDA graph for CPUs: kernels are written down with the tensors that they read and write, and undone.

    A graph owns the memory of tensors that were made in it. It knows all other tensors by address, and other code must
    keep them alive.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.before, self.made, self.outside = [], [], set(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func.overloadpacket.__name__ not in ASKS, f"{func} can't be recorded"
        if func.overloadpacket.__name__ == "index":
            assert not any(x.dtype == torch.bool for x in args[1] if x is not None), (
                "a mask's length is asked of the host"
            )
        if func._schema.is_mutable:
            named = [
                (a, args[k] if k < len(args) else kwargs.get(a.name)) for k, a in enumerate(func._schema.arguments)
            ]
            written = [x for a, x in named if a.alias_info and a.alias_info.is_write]
            self.before += [(x, x.clone()) for x in tree_leaves(written) if isinstance(x, torch.Tensor)]
        out = func(*args, **kwargs)
        own = {storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = [isinstance(x, torch.Tensor) and storage(x) not in own for x in tree_leaves(out)]
        if any(made) or func._schema.is_mutable:
            args, kwargs = tree_map_only(torch.Tensor, lambda x: self.placed(x, func), (args, kwargs))
            self.made |= {storage(x) for x, new in zip(tree_leaves(out), made) if new}
            # Without its graph, which keeps what backward would read.
            self.kernels.append(
                (func, args, kwargs, [x.detach() if new else None for x, new in zip(tree_leaves(out), made)])
            )
        return out

    def placed(self, x: torch.Tensor, func) -> torch.Tensor | Outside:
        """Return an argument itself if it was made in the recording, else its address."""
        if storage(x) in self.made:
            return x.detach()
        if storage(x) not in self.outside:
            self.outside[storage(x)] = (
                StorageWeakRef(x.untyped_storage()),
                f"{func} of {asked()} reads {x.dtype} {[*x.shape]}",
            )
        return Outside(storage(x), x.dtype, (x.storage_offset(), x.size(), x.stride()))

    def undo(self):
        """Restore the values from before, and free the copies: a recording runs nothing."""
        with torch.no_grad():
            for x, was in reversed(self.before):
                x.copy_(was)
        self.before.clear()
        gc.collect()  # what only a cycle holds is gone as well

    def replay(self):
        """Run all kernels in place; an AssertionError names the first whose memory nobody keeps alive."""
        held = {}
        for at, (known, reader) in self.outside.items():
            held[at] = torch.UntypedStorage._new_with_weak_ptr(known.cdata)
            assert held[at] is not None, f"{reader}, which nobody has kept since the recording"
        views = {}

        def found(x: Outside) -> torch.Tensor:
            if x not in views:
                views[x] = torch.empty(0, dtype=x.dtype).set_(held[x.storage], *x.place)
            return views[x]

        with torch.no_grad():
            for func, args, kwargs, out in self.kernels:
                args, kwargs = tree_map_only(Outside, found, (args, kwargs), is_leaf=lambda x: isinstance(x, Outside))
                for old, new in zip(out, tree_leaves(func(*args, **kwargs))):
                    if old is not None:
                        old.copy_(new)


def storage(x: torch.Tensor) -> int:
    """Tell memory apart, empty too."""
    return x.untyped_storage()._cdata


def asked() -> str:
    """File and line outside of PyTorch that a kernel was called from."""
    frame = sys._getframe(2)
    while frame and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "a backward pass"


@pytest.fixture
def tape(monkeypatch):
    """Recording and side streams without a GPU."""
    tapes = []

    def record_graph(function, memory):
        tapes.append(Tape())
        with tapes[-1]:
            out = function()
        tapes[-1].undo()
        return tapes[-1].replay, out

    monkeypatch.setattr(cuda_graphs, "record_graph", record_graph)
    monkeypatch.setattr(cuda_graphs, "graph_memory", dict)
    monkeypatch.setattr(cuda_graphs, "run_on_side_stream", lambda function: function())

    def record(function, device):
        return cuda_graphs.CUDAGraphCallable(function)

    for module in ("rlcore.backends.accelerate", "rlcore.backends.cuda_graphs"):
        monkeypatch.setattr(f"{module}.record", record)
    return tapes
