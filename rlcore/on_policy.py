"""The base of the algorithms that learn from rollouts of their own policy: what PPO's forms have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlcore.backends import distributed
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.rollout import EpisodicReturn, Rollout, check_minibatches, collect_rollout


class OnPolicyAlgorithm(NetworkAlgorithm):
    """Base of the algorithms that act for T = `num_steps` steps with every agent, learn from that, and forget it.

    The optional `auxiliary` model learns from `Step.info` of the same rollouts. Raises ValueError where a rollout can't
    be split into `minibatches` of equal size. Under torchrun every process acts for its own agents; gradients are
    averaged so that an update equals that of one process on the concatenated minibatches.
    """

    measures_kl = True
    sharded: tuple[str, ...] = ("generator", "env", "episodic_return")

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        num_steps: int,
        minibatches: int,
        ent_coef: float,
        ent_coef_final: float,
        max_grad_norm: float,
        **options: Any,
    ):
        # observes_price: the network sees the whole observation, in which a constrained environment has the prices
        # (Lagrange multipliers) of its constraints.
        super().__init__(env, seed, observes_price=True, num_steps=num_steps, **options)
        check_minibatches(env.num_agents, num_steps, minibatches)
        self.minibatches = minibatches
        self.ent_coef, self.ent_coef_final = ent_coef, ent_coef_final
        # changed in place, because recorded CUDA graphs read this tensor
        self.entropy_coef = torch.tensor(float(ent_coef), device=env.device)
        self.max_grad_norm = max_grad_norm
        self.foreach = True  # one kernel for all gradients' norms; a compiling backend sets False and fuses the norms
        self.collect_rollout = collect_rollout  # a backend may put an equivalent, faster function here
        self.episodic_return = EpisodicReturn(env.num_agents, env.device)

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Begin a rollout, and act for T = `num_steps` steps with every agent.

        If the environment's episodes all have the same length, every rollout begins new episodes. In other
        environments running episodes go on (`VectorEnv.reset`).

        One uniform number per agent and step is drawn up front. All heads of the action are sampled from it. The
        rollout has the actions' log-probabilities. Values are computed later, all at once.
        """
        shape = (self.num_steps, self.env.num_agents)
        uniforms = torch.rand(shape, generator=self.generator, device=self.env.device)
        return self.collect_rollout(self.env, self.network, uniforms)

    def conclude(self, rollout: Rollout, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fit the auxiliary model, update the normalisation; return the metrics, averaged over all processes."""
        if self.auxiliary:
            metrics |= self.auxiliary.fit(rollout.obs, rollout.action, rollout.info, self.minibatches, self.generator)
        # Normalisation changes only here: old and new log-probabilities of a ratio must use the same statistics.
        self.network.update_normalization(rollout.obs)
        metrics = distributed.mean_scalars(metrics | rollout.mean_info())
        metrics["charts/episodic_return"] = self.episodic_return.update(rollout.reward, rollout.done)
        return metrics | {"charts/learning_rate": self.lr}

    def clip_gradients(self, module: nn.Module) -> Tensor:
        """Average gradients over processes, clip their global norm; return the norm before clipping."""
        distributed.average_gradients(module.parameters())
        return torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm, foreach=self.foreach)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue exactly."""
        return super().state_dict() | {"episodic_return": self.episodic_return.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything. Call this before a backend records methods: the optimiser's state is replaced."""
        super().load_state_dict(state)
        self.episodic_return.running.copy_(state["episodic_return"])
