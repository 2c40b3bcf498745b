"""Proximal policy optimisation (Schulman et al. 2017): an iteration collects a rollout, computes advantages, updates.

PPO here masks joint actions (one choice of every head) and estimates advantages by GAE (generalised advantage
estimation). It bootstraps through truncation. Shapes: T steps of a rollout, N agents, observations of length D, K
action heads of sizes `nvec`. All shapes are fixed, and the methods in `graph_regions` never wait for the device, so
that `rlcore.backends` can compile them or record them as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlcore import losses, returns
from rlcore.backends import distributed
from rlcore.network_algorithm import LearningRateSchedule, MakeAuxiliaryModel, MakeNetwork, MakeOptimizer
from rlcore.networks import ActorCritic
from rlcore.normalization import RewardNormalizer
from rlcore.on_policy import OnPolicyAlgorithm
from rlcore.returns import whiten
from rlcore.rollout import Rollout, shuffled


class Batch(NamedTuple):
    """B steps to learn from: a whole rollout (B = T·N) or a minibatch of it."""

    obs: Tensor  #: [B, D]
    action_mask: Tensor  #: bool [B, *nvec]
    action: Tensor  #: int64 [B, K]
    log_prob: Tensor  #: of the action under the policy that took it, [B]
    #: V(obs) before the update, [B], on the scale of the rewards given to GAE (normalised if norm_reward is set)
    value: Tensor
    advantage: Tensor  #: GAE, [B]: on the scale of `value`, or whitened if norm_adv is `batch`
    target: Tensor  #: target of the value function, [B]: GAE that is not whitened, plus `value`
    has_choice: Tensor  #: more than one action was valid, bool [B]; a forced action says nothing about the policy


class PPO(OnPolicyAlgorithm):
    """PPO over any VectorEnv (envs/base.py), with an actor-critic `network` (rlcore/networks.py).

    Raises ValueError for settings that contradict each other or the environment.
    """

    graph_regions: tuple[str, ...] = ("compute_advantages", "compute_gradients")
    sharded = (*OnPolicyAlgorithm.sharded, "reward_normalizer")

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
        epochs: int,
        minibatches: int,
        gamma: float,
        gae_lambda: float,
        clip: float,
        clip_value: float | None,
        vf_coef: float,
        ent_coef: float,
        ent_coef_final: float,
        norm_adv: str,
        norm_reward: bool,
        center_reward: bool,
        max_grad_norm: float,
        target_kl: float | None,
        eval_every: int,
        checkpoint_every: int,
    ):
        super().__init__(
            env,
            seed,
            network=network,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            auxiliary=auxiliary,
            total_steps=total_steps,
            num_steps=num_steps,
            minibatches=minibatches,
            ent_coef=ent_coef,
            ent_coef_final=ent_coef_final,
            max_grad_norm=max_grad_norm,
            eval_every=eval_every,
            checkpoint_every=checkpoint_every,
        )
        if not isinstance(self.network, ActorCritic):
            raise ValueError("algo.network: PPO needs a policy with a value network, as algo/network=actor_critic")
        if center_reward and not norm_reward:
            raise ValueError("algo.center_reward: expected false where algo.norm_reward is false")
        if center_reward and not env.has_fixed_lengths:
            raise ValueError(
                "algo.center_reward: expected false in this environment, where actions decide how long an episode "
                "lasts: subtracting the mean reward from every step would pay for shorter or longer episodes"
            )
        if norm_adv not in ("minibatch", "batch", "none"):
            raise ValueError(f"algo.norm_adv: expected minibatch, batch or none, got '{norm_adv}'")
        self.epochs = epochs
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip = clip
        self.clip_value = clip_value
        self.vf_coef = vf_coef
        self.norm_adv = norm_adv
        self.target_kl = target_kl
        # `policy` is for evaluation; for training a backend may replace `network` by a compiled equivalent
        self.policy = self.network
        self.reward_normalizer = (
            RewardNormalizer(env.num_agents, gamma, center_reward).to(env.device) if norm_reward else None
        )
        self.gae = returns.gae  # a backend may put an equivalent, faster function here

    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect a rollout, compute its advantages, update policy, value and auxiliary model; return the metrics."""
        self.anneal(progress)
        self.entropy_coef.fill_(self.ent_coef + (self.ent_coef_final - self.ent_coef) * progress)
        rollout = self.collect()
        batch = self.compute_advantages(rollout)
        metrics = self.update(batch)
        return self.conclude(rollout, metrics)

    @torch.no_grad()
    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Estimate the advantage and the value target of every step; first update the statistics of rewards."""
        # 1. Divide rewards by the running standard deviation of the discounted return of all processes' agents. With
        #    `center_reward`, first subtract the running mean of rewards.
        reward = rollout.reward
        if self.reward_normalizer:
            self.reward_normalizer.update(reward, rollout.done)
            reward = self.reward_normalizer(reward)
        # 2. Values of each observation and of the next one. At an episode's end the next value is that of the reset
        #    observation, which is wrong: after a termination GAE ignores it, and after a truncation V(final_obs)
        #    replaces it. `final_obs` is None where the environment never truncates.
        values = self.network.value(torch.cat((rollout.obs, rollout.last_obs[None])))
        value = values[:-1]
        next_value = values[1:]
        if rollout.final_obs is not None:
            next_value = torch.where(rollout.truncated, self.network.value(rollout.final_obs), next_value)
        # 3. Advantages and targets. A step is `done` where it is terminated or truncated; GAE's sum ends there.
        advantage = self.gae(
            reward, value, next_value, rollout.terminated, rollout.done, gamma=self.gamma, lam=self.gae_lambda
        )
        target = advantage + value
        has_choice = rollout.action_mask.flatten(2).sum(-1) > 1
        if self.norm_adv == "batch":  # mean 0 and standard deviation 1 over the steps with a choice, and 0 elsewhere
            advantage = whiten(advantage, mask=has_choice, all_reduce=distributed.all_reduce_sum)
        rollout_batch = Batch(
            obs=rollout.obs,
            action_mask=rollout.action_mask,
            action=rollout.action,
            log_prob=rollout.log_prob,
            value=value,
            advantage=advantage,
            target=target,
            has_choice=has_choice,
        )
        return Batch(*(column.flatten(0, 1) for column in rollout_batch))  # [T, N, ...] → [T·N, ...]

    def update(
        self, batch: Batch, compute_gradients: Callable[[Batch], dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Train on the batch for some epochs of shuffled minibatches; return each metric's mean over minibatches.

        If `target_kl` is set, the host reads the mean `approx_kl` after each epoch. Once this mean exceeds `target_kl`,
        the remaining epochs of the update are skipped. `explained_variance` compares the targets with the
        values from before the update. A subclass with another loss passes a `compute_gradients` of its own.
        """
        compute_gradients = compute_gradients or self.compute_gradients
        totals: dict[str, Tensor] = {}
        updates = 0
        for _ in range(self.epochs):
            epoch_kl = torch.zeros_like(self.kl)  # a scalar
            for minibatch in shuffled(batch, self.minibatches, self.generator):
                self.optimizer.zero_grad(set_to_none=True)
                metrics = compute_gradients(minibatch)
                self.optimizer.step()
                updates += 1
                totals = {name: totals.get(name, 0) + x for name, x in metrics.items()}
                epoch_kl = epoch_kl + metrics["approx_kl"] / self.minibatches
            epoch_kl = distributed.all_reduce_mean(epoch_kl)
            if self.target_kl is not None and epoch_kl.item() > self.target_kl:
                break
        self.kl.copy_(epoch_kl)  # for a learning rate that adapts to it
        metrics = {f"losses/{name}": total / updates for name, total in totals.items()}
        metrics["losses/explained_variance"] = losses.explained_variance(
            batch.value, batch.target, mask=None, all_reduce=distributed.all_reduce_sum
        )
        return metrics

    def compute_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Back-propagate policy loss + vf_coef · value loss − ent_coef · entropy on a minibatch; clip the gradients.

        Returns diagnostics and the gradients' norm. Diagnostics of the policy are weighted so that their mean over
        processes is the mean over all steps with a choice.
        """
        pi = self.network.distribution(batch.obs, batch.action_mask)
        advantage = batch.advantage
        if self.norm_adv == "minibatch":
            advantage = whiten(advantage, mask=batch.has_choice, all_reduce=distributed.all_reduce_sum)
        # Policy terms are means over the steps with a choice. The number of these steps differs between processes: each
        # process multiplies its means by n / n̄, where n is its number of such steps, and n̄ the mean of n over
        # processes. The average of the gradients is then the gradient of one mean over all processes.
        weight = distributed.mean_weight(batch.has_choice)
        loss, metrics = losses.ppo(
            log_prob=pi.log_prob(batch.action),
            old_log_prob=batch.log_prob,
            advantage=advantage,
            entropy=pi.entropy(),
            value=self.network.value(batch.obs),
            old_value=batch.value,
            target=batch.target,
            mask=batch.has_choice,
            clip=self.clip,
            clip_value=self.clip_value,
            vf_coef=self.vf_coef,
            ent_coef=self.entropy_coef,
            weight=weight,
        )
        loss.backward()
        return metrics | {"grad_norm": self.clip_gradients(self.network)}

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        normalizer = self.reward_normalizer and self.reward_normalizer.state_dict()
        return super().state_dict() | {"reward_normalizer": normalizer}

    def load_state_dict(self, state: dict) -> None:
        """Restore everything."""
        super().load_state_dict(state)
        if self.reward_normalizer:
            self.reward_normalizer.load_state_dict(state["reward_normalizer"])
