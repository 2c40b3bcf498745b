"""Rollouts of an environment that is a pure function of its state: all T steps as one loop, compiled to one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops import scan as scan_operator
from torch.utils import _pytree as pytree

from rlcore.rollout import Rollout


def scan(body: Callable, carry: Tensor, rows: Any) -> tuple[Tensor, Any]:
    """Run carry, out = body(carry, row) along the first dimension of the tensors in `rows`.

    Returns the last carry and the stacked outs.

    The function is for a compiler, which keeps it a loop: the body is compiled once, however many rows there are. Bools
    come out as float32, because a compiler does not vectorise copies of bool.
    """

    def own_memory(x: Tensor) -> Tensor:  # results may not share memory with arguments
        return x.float() if x.dtype == torch.bool else x.clone()

    def unshared(carry: Tensor, row: Any) -> tuple[Tensor, Any]:
        carry, out = body(carry, row)
        return carry, pytree.tree_map(own_memory, out)

    return scan_operator(unshared, carry, rows)


def loop_scan(body: Callable, carry: Tensor, rows: Any) -> tuple[Tensor, Any]:
    """Do the same as `scan` by a loop in Python."""
    leaves, form = pytree.tree_flatten(rows)
    outs = []
    for row in zip(*leaves):
        carry, out = body(carry, pytree.tree_unflatten(list(row), form))
        outs.append(out)
    return carry, pytree.tree_map(lambda *x: torch.stack(x), *outs)


def scan_rollout(
    env: Any, policy: Any, scan: Callable, state: Tensor, inputs: Any, uniforms: Tensor
) -> tuple[Tensor, dict, dict]:
    """Act from a state through the inputs of T steps; return the last state, columns [T, N, ...] and infos [T, N]."""

    def body(state: Tensor, row: tuple[Any, Tensor]) -> tuple[Tensor, tuple[dict, dict]]:
        step_inputs, u = row
        obs, action_mask = env.observe(state, step_inputs)
        action, log_prob = policy.act(obs, action_mask, u)
        state, reward, info = env.transition(state, step_inputs, action)
        columns = {"obs": obs, "action_mask": action_mask, "action": action, "log_prob": log_prob, "reward": reward}
        return state, (columns, info)

    state, (columns, infos) = scan(body, state, (inputs, uniforms))
    return state, columns, infos


class FunctionalRollout:
    """`rlcore.rollout.collect_rollout` for a FunctionalEnv; `run` is `scan_rollout`, compiled or recorded."""

    def __init__(self, run: Callable):
        self.run = run

    @torch.no_grad()
    def __call__(self, env: Any, policy: Any, uniforms: Tensor) -> Rollout:
        inputs = env.sample_inputs(len(uniforms))
        state, columns, infos = self.run(env.state, inputs, uniforms)
        env.set_state(state)
        last_obs, _ = env.reset()
        columns["action_mask"] = columns["action_mask"].bool()
        return Rollout(
            **columns,
            terminated=inputs.ends,
            truncated=torch.zeros_like(inputs.ends),
            final_obs=None,
            last_obs=last_obs,
            info=infos,
        )
