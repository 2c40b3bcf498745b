"""PPO that begins as the student of another policy, such as one learned from a log.

Kickstarting: Schmitt et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore import losses
from rlcore.action_values import GreedyPolicy
from rlcore.backends import distributed
from rlcore.ppo import PPO, Batch


class DistilledPPO(PPO):
    """For the first `distill_iterations` the policy is drawn towards softmax(teacher's net values / temperature).

    In these iterations the student acts and learns values as usual; plain PPO follows. `teacher(env)` returns the
    teacher, a greedy policy of action values, when training starts. Raises ValueError where the teacher does not fit.
    """

    graph_regions = (*PPO.graph_regions, "compute_distillation_gradients")

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        teacher: Callable[[Any], GreedyPolicy],
        distill_iterations: int,
        temperature: float,
        **ppo: Any,
    ):
        super().__init__(env, seed, **ppo)
        self.load_teacher = teacher
        self.distill_iterations = distill_iterations
        self.temperature = temperature

    def setup(self, logger, should_stop: Callable[[], bool]) -> None:
        """Restore the teacher."""
        self.teacher = self.load_teacher(self.env)

    def update(
        self, batch: Batch, compute_gradients: Callable[[Batch], dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Learn from the teacher in the first iterations, and as PPO does in the others."""
        if self.iteration < self.distill_iterations:
            compute_gradients = self.compute_distillation_gradients
        return super().update(batch, compute_gradients)

    def compute_distillation_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the clipped gradients of the teacher's cross-entropy and of the value loss; return diagnostics."""
        pi = self.network.distribution(batch.obs, batch.action_mask)
        net_values = self.teacher.net_values(batch.obs, batch.action_mask)
        preferences = (net_values / self.temperature).softmax(-1)
        finite = pi.log_probs.clamp_min(torch.finfo(pi.log_probs.dtype).min)
        cross_entropy = -(preferences * finite).sum(-1)
        weight = distributed.mean_weight(batch.has_choice)
        policy_loss = weight * losses.masked_mean(cross_entropy, batch.has_choice)
        value_loss = losses.value_loss(self.network.value(batch.obs), batch.value, batch.target, self.clip_value)
        (policy_loss + self.vf_coef * value_loss).backward()
        with torch.no_grad():
            kl = losses.kl_k3(pi.log_prob(batch.action) - batch.log_prob)
        return {
            "imitation": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "approx_kl": weight * losses.masked_mean(kl, batch.has_choice),
            "grad_norm": self.clip_gradients(self.network),
        }
