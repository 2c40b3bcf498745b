"""CUDA graphs without a GPU: what would be recorded is written down, undone and replayed where it was."""
from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rlcore.fast
from rlcore.fast import Captured

ASKS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal", "is_nonzero",
        "lift_fresh", "randperm", "rand", "randint", "randn"}  # of the host, or of a random stream


class Tape(TorchDispatchMode):
    """A CUDA graph for CPUs: kernels are written down with the tensors that they read and write, and undone."""

    def __init__(self):
        super().__init__()
        self.kernels, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func.overloadpacket.__name__ not in ASKS, f"{func} can't be recorded"
        if func.overloadpacket.__name__ == "index":
            assert not any(x.dtype == torch.bool for x in args[1] if x is not None), "a mask's length is asked of the host"
        if func._schema.is_mutable:
            written = [x for a, x in zip(func._schema.arguments, args) if a.alias_info and a.alias_info.is_write]
            written += [kwargs[a.name] for a in func._schema.arguments if a.alias_info and a.alias_info.is_write and a.name in kwargs]
            self.before += [(x, x.clone()) for x in tree_leaves(written) if isinstance(x, torch.Tensor)]
        out = func(*args, **kwargs)
        own = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in own]
        if made or func._schema.is_mutable:
            self.kernels.append((func, args, kwargs, out, bool(made)))
        return out

    def undo(self):
        """Give back what was there before: recording runs nothing."""
        with torch.no_grad():
            for x, was in reversed(self.before):
                x.copy_(was)

    def replay(self):
        """Run all kernels where they were written down."""
        with torch.no_grad():
            for func, args, kwargs, out, made in self.kernels:
                again = func(*args, **kwargs)
                if made:
                    for old, new in zip(tree_leaves(out), tree_leaves(again)):
                        if isinstance(old, torch.Tensor):
                            old.copy_(new)


@pytest.fixture
def tape(monkeypatch):
    """Recording and side streams without a GPU."""
    tapes = []

    def record(function, pool):
        tapes.append(Tape())
        with tapes[-1]:
            out = function()
        tapes[-1].undo()
        return tapes[-1].replay, out
    monkeypatch.setattr(rlcore.fast, "record", record)
    monkeypatch.setattr(rlcore.fast, "aside", lambda function: function())
    for module in ("rlcore.ppo", "email_rl.generate", "email_rl.ppo_kl"):
        monkeypatch.setattr(f"{module}.capture", lambda function, mode, device: Captured(function) if mode == "cudagraph" else function)
    return tapes
