"""One switch for how the hot functions run."""
from __future__ import annotations

from typing import Callable

import torch


def fast(function: Callable, mode: str) -> Callable:
    """Return the function as it is (`eager`) or compiled for its fixed shapes (`compile`)."""
    if mode not in ("eager", "compile"):
        raise ValueError(f"fast: expected 'eager' or 'compile', got '{mode}'")
    if mode == "eager":
        return function
    torch._dynamo.config.trace_autograd_ops = True  # a backward pass belongs to the graph of its loss
    return torch.compile(function, dynamic=False)
