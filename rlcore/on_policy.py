"""What PPO on sampled and on expected advantages have in common: rollouts of the present policy, then minibatches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlcore.algorithm import LearningRateSchedule, MakeAuxiliaryModel, MakeNetwork, MakeOptimizer, NetworkAlgorithm
from rlcore.backends import distributed
from rlcore.rollout import Rollout, collect_rollout


class OnPolicyAlgorithm(NetworkAlgorithm):
    """Base of the algorithms that act for a rollout with every agent, and learn from it in `minibatches`.

    `network` also observes the prices of constraints, where the environment has any. `ent_coef` is the entropy's
    weight at the beginning. Raises ValueError where the steps of a rollout do not fill the minibatches equally.
    """

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        network: MakeNetwork,
        optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule | None,
        auxiliary: MakeAuxiliaryModel | None,
        total_steps: int,
        num_steps: int,
        minibatches: int,
        ent_coef: float,
        max_grad_norm: float,
        eval_every: int,
        checkpoint_every: int,
    ):
        super().__init__(
            env,
            seed,
            observes_price=True,
            network=network,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            auxiliary=auxiliary,
            total_steps=total_steps,
            num_steps=num_steps,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
        )
        if env.num_agents * num_steps % minibatches:
            raise ValueError(
                f"algo.minibatches: {minibatches} does not divide {env.num_agents} agents × {num_steps} steps"
            )
        self.minibatches = minibatches
        self.max_grad_norm = max_grad_norm
        self.ent_coef = ent_coef
        # annealed in place: recorded graphs read it
        self.entropy_coef = torch.tensor(float(ent_coef), device=env.device)
        self.collect_rollout = collect_rollout  # a backend may put an equivalent, faster function here
        # one kernel for the norms of all gradients; a compiling backend fuses them itself, and sets False
        self.foreach = True

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Reset the environment and act for T = `num_steps` steps with every agent.

        Uniform random numbers are drawn up front, one per joint action. The rollout has the actions' log-probabilities;
        values are computed later, all at once.
        """
        shape = (self.num_steps, self.env.num_agents)
        uniforms = torch.rand(shape, generator=self.generator, device=self.env.device)
        return self.collect_rollout(self.env, self.network, uniforms)

    def backward(self, loss: Tensor, module: nn.Module) -> Tensor:
        """Back-propagate, average a module's gradients over processes, clip their global norm.

        Returns the norm before clipping.
        """
        loss.backward()
        distributed.average_gradients(module.parameters())
        return torch.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm, foreach=self.foreach)

    def finish_iteration(self, rollout: Rollout, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Train the auxiliary model, and return the metrics' means over processes, with those of the rollout."""
        if self.auxiliary:
            metrics |= self.auxiliary.fit(rollout.obs, rollout.action, rollout.info, self.minibatches, self.generator)
        # The observations' normalisation changes here alone: both log-probabilities of a ratio must see the same one.
        self.network.update_normalization(rollout.obs)
        metrics = distributed.mean_scalars(metrics | rollout.mean_info())
        return metrics | {"charts/learning_rate": self.lr}
