"""One switch for how the hot functions run."""
from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def fast(function: Callable, mode: str, **how: Any) -> Callable:
    """Return the function as it is (`eager`) or compiled (`compile`), for fixed shapes unless `how`, which torch.compile takes,
    says otherwise."""
    if mode not in ("eager", "compile"):
        raise ValueError(f"fast: expected 'eager' or 'compile', got '{mode}'")
    if mode == "eager":
        return function
    torch._dynamo.config.trace_autograd_ops = True  # a backward pass belongs to the graph of its loss
    return torch.compile(function, **({"dynamic": False} | how))


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
