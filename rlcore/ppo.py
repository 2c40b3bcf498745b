"""Proximal policy optimisation (Schulman et al. 2017): an iteration collects a rollout, computes advantages, and updates.

PPO here has joint action masks, generalised advantage estimation (GAE), and bootstraps through truncation. All shapes are fixed
and nothing waits for the device, so that `rlcore.backends` can compile or record the methods in `graph_regions`.
"""
from __future__ import annotations

from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from rlcore import losses, returns
from rlcore.algorithm import NetworkAlgorithm
from rlcore.backends import distributed
from rlcore.normalization import RewardNormalizer
from rlcore.returns import whiten
from rlcore.rollout import Rollout, collect_rollout


class Batch(NamedTuple):
    """T·N steps to learn from; `value`, `advantage` and `target` are on the scale of normalised rewards."""

    obs: Tensor  #: [T·N, D]
    action_mask: Tensor  #: bool [T·N, *nvec]
    action: Tensor  #: int64 [T·N, K]
    log_prob: Tensor  #: under the policy that acted
    value: Tensor  #: V(obs) before the update
    advantage: Tensor  #: GAE
    target: Tensor  #: of the value function: advantage + value
    has_choice: Tensor  #: more than one action was valid; a forced action says nothing about the policy

    def shuffled(self, minibatches: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the steps once, in minibatches of equal size and random order."""
        order = torch.randperm(len(self.obs), generator=generator, device=self.obs.device)
        columns = [column.index_select(0, order).chunk(minibatches) for column in self]
        for parts in zip(*columns):
            yield Batch(*parts)


class PPO(NetworkAlgorithm):
    """PPO over any VectorEnv, with an actor-critic `network` (rlcore/networks.py).

    The optional `auxiliary` model is trained on the info of the same rollouts. Raises ValueError where sizes do not fit.
    Under torchrun every process acts for its own agents, and all take the step that one process would on the joined minibatch.
    """

    graph_regions = ("compute_advantages", "compute_gradients")
    sharded = ("generator", "env", "reward_normalizer")

    def __init__(self, env: Any, seed: int, *, network: Callable, optimizer: Callable, lr_schedule: Callable | None,
                 auxiliary: Callable | None, total_steps: int, num_steps: int, epochs: int, minibatches: int, gamma: float,
                 gae_lambda: float, clip: float, clip_value: float | None, vf_coef: float, ent_coef: float,
                 ent_coef_final: float, norm_adv: str, norm_reward: bool, center_reward: bool, max_grad_norm: float,
                 target_kl: float | None, eval_every: int, checkpoint_every: int):
        super().__init__(env, seed, observes_price=True, network=network, optimizer=optimizer, lr_schedule=lr_schedule,
                         auxiliary=auxiliary, total_steps=total_steps, num_steps=num_steps, eval_every=eval_every,
                         checkpoint_every=checkpoint_every)
        if env.num_agents * num_steps % minibatches:
            raise ValueError(f"algo.minibatches: {minibatches} does not divide {env.num_agents} agents × {num_steps} steps")
        if center_reward and not norm_reward:
            raise ValueError("algo.center_reward: expected false where algo.norm_reward is false")
        if norm_adv not in ("minibatch", "batch", "none"):
            raise ValueError(f"algo.norm_adv: expected minibatch, batch or none, got '{norm_adv}'")
        self.epochs = epochs
        self.minibatches = minibatches
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip = clip
        self.clip_value = clip_value
        self.vf_coef = vf_coef
        self.ent_coef = ent_coef
        self.ent_coef_final = ent_coef_final
        self.norm_adv = norm_adv
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.policy = self.network  # for others; training itself uses `network`, which a backend may put an equal one in
        self.entropy_coef = torch.tensor(float(ent_coef), device=env.device)
        self.reward_normalizer = RewardNormalizer(env.num_agents, gamma, center_reward).to(env.device) if norm_reward else None
        self.collect_rollout = collect_rollout  # a backend may put an equal, faster function here
        self.gae = returns.gae  # likewise
        self.foreach = True  # one kernel for the norms of all gradients; a compiler makes its own

    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect a rollout, compute its advantages, and update policy, value and auxiliary model; return the metrics."""
        self.anneal(progress)
        self.entropy_coef.fill_(self.ent_coef + (self.ent_coef_final - self.ent_coef) * progress)
        rollout = self.collect()
        batch = self.compute_advantages(rollout)
        metrics = self.update(batch)
        if self.auxiliary:
            metrics |= self.auxiliary.fit(rollout.obs, rollout.action, rollout.info, self.minibatches, self.generator)
        self.network.update_normalization(rollout.obs)  # between updates only: a ratio compares two policies on equal inputs
        metrics = distributed.mean_scalars(metrics | rollout.mean_info())
        return metrics | {"charts/learning_rate": self.lr}

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Act for `num_steps` steps with every agent; the uniforms that draw all actions are drawn at once."""
        shape = (self.num_steps, self.env.num_agents)
        uniforms = torch.rand(shape, generator=self.generator, device=self.env.device)
        return self.collect_rollout(self.env, self.network, uniforms)

    @torch.no_grad()
    def compute_advantages(self, rollout: Rollout) -> Batch:
        """Estimate the advantage and the value target of every step."""
        # 1. Rewards on the scale of the return.
        reward = rollout.reward
        if self.reward_normalizer:
            self.reward_normalizer.update(reward, rollout.done)
            reward = self.reward_normalizer(reward)
        # 2. Values of each observation and of the next one; after a truncation the reset has replaced the next observation.
        values = self.network.value(torch.cat((rollout.obs, rollout.last_obs[None])))
        value = values[:-1]
        next_value = values[1:]
        if rollout.final_obs is not None:
            next_value = torch.where(rollout.truncated, self.network.value(rollout.final_obs), next_value)
        # 3. Advantages and targets.
        advantage = self.gae(reward, value, next_value, rollout.terminated, rollout.done, self.gamma, self.gae_lambda)
        target = advantage + value
        has_choice = rollout.action_mask.flatten(2).sum(-1) > 1
        if self.norm_adv == "batch":
            advantage = whiten(advantage, has_choice, distributed.all_reduce_sum)
        columns = Batch(obs=rollout.obs, action_mask=rollout.action_mask, action=rollout.action, log_prob=rollout.log_prob,
                        value=value, advantage=advantage, target=target, has_choice=has_choice)
        return Batch(*(column.flatten(0, 1) for column in columns))

    def update(self, batch: Batch, compute_gradients: Callable[[Batch], dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        """Train on the batch for some epochs; return the mean of each metric.

        An epoch is the last where its mean KL exceeds `target_kl`. A subclass can pass another loss's gradients than PPO's.
        """
        compute_gradients = compute_gradients or self.compute_gradients
        totals: dict[str, Tensor] = {}
        for epoch in range(1, self.epochs + 1):
            epoch_kl = torch.zeros_like(self.kl)
            for minibatch in batch.shuffled(self.minibatches, self.generator):
                self.optimizer.zero_grad(set_to_none=True)
                metrics = compute_gradients(minibatch)
                self.optimizer.step()
                totals = {name: totals.get(name, 0) + x for name, x in metrics.items()}
                epoch_kl = epoch_kl + metrics["approx_kl"] / self.minibatches
            epoch_kl = distributed.all_reduce_mean(epoch_kl)
            if self.target_kl is not None and epoch_kl.item() > self.target_kl:
                break
        self.kl.copy_(epoch_kl)
        metrics = {f"losses/{name}": total / (epoch * self.minibatches) for name, total in totals.items()}
        metrics["losses/explained_variance"] = losses.explained_variance(batch.value, batch.target, None,
                                                                         distributed.all_reduce_sum)
        return metrics

    def compute_gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Leave the clipped gradients of PPO's loss on a minibatch in the parameters; return the loss's diagnostics."""
        pi = self.network.distribution(batch.obs, batch.action_mask)
        advantage = batch.advantage
        if self.norm_adv == "minibatch":
            advantage = whiten(advantage, batch.has_choice, distributed.all_reduce_sum)
        loss, metrics = losses.ppo(
            pi.log_prob(batch.action), batch.log_prob, advantage, pi.entropy(), self.network.value(batch.obs), batch.value,
            batch.target, batch.has_choice, clip=self.clip, clip_value=self.clip_value, vf_coef=self.vf_coef,
            ent_coef=self.entropy_coef, weight=distributed.mean_weight(batch.has_choice))
        return metrics | {"grad_norm": self.backward(loss)}

    def backward(self, loss: Tensor) -> Tensor:
        """Back-propagate a loss, and clip the gradients by their norm over all parameters; return the norm before clipping."""
        loss.backward()
        distributed.average_gradients(self.network.parameters())
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm, foreach=self.foreach)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        normalizer = self.reward_normalizer and self.reward_normalizer.state_dict()
        return super().state_dict() | {"reward_normalizer": normalizer}

    def load_state_dict(self, state: dict) -> None:
        """Restore everything. Comes before a backend records a method, because it replaces the optimiser's state."""
        super().load_state_dict(state)
        if self.reward_normalizer:
            self.reward_normalizer.load_state_dict(state["reward_normalizer"])
