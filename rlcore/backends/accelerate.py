"""The performance modes of training, applied to an algorithm from outside: `eager`, `compile`, `cudagraph`.

An algorithm names its `graph_regions` and knows no mode. All modes give the same results up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor

from rlcore.algorithm import Algorithm
from rlcore.backends import distributed, triton_gae
from rlcore.backends.compilation import CompiledActor, CompiledActorCritic, compile_function
from rlcore.backends.cuda_graphs import PinnedReset, record
from rlcore.backends.scan import FunctionalRollout, loop_scan, scan, scan_rollout
from rlcore.expected_ppo import ExpectedPPO
from rlcore.ppo import PPO, Batch
from rlcore.rollout import Rollout, continue_rollout

MODES = ("eager", "compile", "cudagraph")
# On a CPU thousands of small kernels cost less when called from C++, and a product and a sum may be fused into one
# rounding.
CPU_OPTIONS = {"options": {"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"}}


def accelerate(algorithm: Algorithm, mode: str) -> Algorithm:
    """Let an algorithm run in a mode, and return it. Raises ValueError where the mode is unknown or does not fit."""
    if mode not in MODES:
        raise ValueError(f"execution: expected 'eager', 'compile' or 'cudagraph', got '{mode}'")
    if mode == "cudagraph" and distributed.num_processes() > 1:
        raise ValueError("execution=cudagraph: expected a single process, several need eager or compile")
    apply_mode(algorithm, mode)
    replace_method(algorithm, "accelerate_inner", partial(accelerate, mode=mode))
    return algorithm


def replace_method(owner: object, name: str, function: Callable[..., Any]) -> None:
    """Let one object have a function in the place of a method of its class."""
    setattr(owner, name, function)


@singledispatch
def apply_mode(algorithm: Algorithm, mode: str) -> None:
    """Compile the graph regions of an algorithm. Algorithms that need more register a function of their own."""
    if mode == "compile":
        for name in algorithm.graph_regions:
            replace_method(algorithm, name, compile_function(getattr(algorithm, name)))


@apply_mode.register
def apply_mode_to_ppo(algorithm: PPO, mode: str) -> None:
    """Compile or record PPO's rollout, advantages and gradient step, and the step of its auxiliary model."""
    algorithm.gae = triton_gae.gae
    functional = algorithm.env.as_functional()
    if functional:  # the pure functions take fewer calls a step than `env.step`
        algorithm.collect_rollout = FunctionalRollout(partial(scan_rollout, functional, algorithm.network, loop_scan))
    if mode == "compile":
        compile_ppo(algorithm)
    if mode == "cudagraph":
        record_ppo(algorithm)


def compile_ppo(algorithm: PPO) -> None:
    """Compile PPO: the rollout of a FunctionalEnv as one graph, of other environments the policy and a step's work."""
    env = algorithm.env
    algorithm.network = CompiledActorCritic(algorithm.network)
    on_cpu = {} if env.device.type == "cuda" else CPU_OPTIONS
    functional = env.as_functional()
    if functional:
        run = partial(scan_rollout, functional, algorithm.network, scan)
        algorithm.collect_rollout = FunctionalRollout(compile_function(run, fullgraph=True, **on_cpu))
    else:
        compile_steps(algorithm)
    algorithm.foreach = False
    replace_method(algorithm, "compute_advantages", compile_function(algorithm.compute_advantages))
    for name in algorithm.graph_regions:
        if name != "compute_advantages":
            replace_method(algorithm, name, compile_function(getattr(algorithm, name), **on_cpu))


def compile_steps(algorithm: PPO | ExpectedPPO) -> None:
    """Compile the policy and the environment's work of a step."""
    replace_method(algorithm.network, "act", compile_function(algorithm.network.act))
    for name in algorithm.env.graph_regions:
        compiled = compile_function(getattr(algorithm.env, name), dynamic=None)  # histories grow
        replace_method(algorithm.env, name, compiled)


def record_ppo(algorithm: PPO) -> None:
    """Record PPO on a GPU. A rollout is recorded where the environment's steps can be (`graph_state`)."""
    env = algorithm.env
    functional = env.as_functional()
    if functional:
        run = partial(scan_rollout, functional, algorithm.network, loop_scan)
        algorithm.collect_rollout = FunctionalRollout(record(run, env.device))
    elif env.graph_state:
        algorithm.collect_rollout = RecordedRollout(algorithm)
    replace_method(algorithm, "compute_advantages", record(algorithm.compute_advantages, env.device))
    record_gradient_steps(algorithm)
    record_auxiliary(algorithm)


def record_auxiliary(algorithm: PPO | ExpectedPPO) -> None:
    """Record the gradient step of the auxiliary model, if there is one."""
    auxiliary = algorithm.auxiliary
    if auxiliary:
        replace_method(auxiliary, "train_minibatch", record(auxiliary.train_minibatch, algorithm.env.device))


@apply_mode.register
def apply_mode_to_expected_ppo(algorithm: ExpectedPPO, mode: str) -> None:
    """Compile the policy, a step's work and both gradients; or record rollouts and both training steps.

    Advantages run eagerly in all modes: they are a few operations on the large tables that every episode makes anew.
    """
    env = algorithm.env
    if mode == "compile":
        algorithm.network = CompiledActor(algorithm.network)
        algorithm.foreach = False
        compile_steps(algorithm)
        on_cpu = {} if env.device.type == "cuda" else CPU_OPTIONS
        for name in algorithm.graph_regions:
            replace_method(algorithm, name, compile_function(getattr(algorithm, name), **on_cpu))
    if mode == "cudagraph":
        if env.graph_state:
            algorithm.collect_rollout = RecordedRollout(algorithm)
        for name in ("train_policy", "train_critic"):
            replace_method(algorithm, name, record(getattr(algorithm, name), env.device))
        record_auxiliary(algorithm)


def record_gradient_steps(algorithm: PPO) -> None:
    """Record each loss's gradients together with the optimiser's step on them.

    The recorded step reads gradients at fixed addresses, so that gradients must be cleared and computed in the same
    recording.
    """
    optimizer = algorithm.optimizer
    zero_grad, step = optimizer.zero_grad, optimizer.step

    def whole_step(compute_gradients: Callable[[Batch], dict[str, Tensor]]) -> Callable[[Batch], dict[str, Tensor]]:
        def take(batch: Batch) -> dict[str, Tensor]:
            zero_grad(set_to_none=True)
            metrics = compute_gradients(batch)
            step()
            return metrics

        return take

    for name in algorithm.graph_regions:
        if name != "compute_advantages":
            gradient_step = record(whole_step(getattr(algorithm, name)), algorithm.env.device)
            replace_method(algorithm, name, gradient_step)
    replace_method(optimizer, "zero_grad", part_of_the_recording)
    replace_method(optimizer, "step", part_of_the_recording)


def part_of_the_recording(set_to_none: bool = True) -> None:
    """Replace the optimiser's methods, which the recorded function calls itself."""


class RecordedRollout:
    """`rlcore.rollout.collect_rollout` whose steps are recorded; the reset, which draws random numbers, is not."""

    def __init__(self, algorithm: PPO | ExpectedPPO):
        env = algorithm.env
        self.reset = PinnedReset(env)
        self.run = record(partial(continue_rollout, env, algorithm.network), env.device)

    @torch.no_grad()
    def __call__(self, env, policy, uniforms) -> Rollout:
        obs, action_mask = self.reset()
        return self.run(obs, action_mask, uniforms)
