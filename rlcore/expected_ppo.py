"""PPO with expected advantages: an expectation over the outcomes of every action, in place of a sampled outcome.

Expected policy gradients (Ciosek and Whiteson 2018), or the mean actor-critic (Allen et al. 2017), under PPO's clipped
surrogate. A LookaheadEnv (envs/base.py) gives each action's expected reward and next states, and a critic values these
states. In training the critic may observe what the policy does not (asymmetric actor-critic: Pinto et al. 2018).
Shapes: T steps of an episode, N agents, P = Π nvec actions of an agent (combinations of its heads), S states of an
agent, D and C columns that policy and critic observe, B rows of a batch or a minibatch. A future is one version of what
a critic may observe next; there are K. K = 1 where an action affects the next state alone. K = 2 under a contact cap
(without and with a contact), where an action affects the critic's next observation too.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from rlcore import losses, returns
from rlcore.backends import distributed
from rlcore.expected_batches import CriticBatch, PolicyBatch, at_states
from rlcore.network_algorithm import LearningRateSchedule, MakeAuxiliaryModel, MakeNetwork, MakeOptimizer
from rlcore.networks import Actor, StateCritic
from rlcore.on_policy import OnPolicyAlgorithm
from rlcore.rollout import BatchT, Rollout, shuffled
from rlcore.schedules import restore_optimizer

MakeCritic = Callable[[int, int], StateCritic]  # arguments: the length C of a critic's observation, and S


class ExpectedPPO(OnPolicyAlgorithm):
    """PPO on expected advantages, in a LookaheadEnv whose episodes all have the same length.

    `epochs` passes train the policy and `critic_epochs` the critic, each in `minibatches` and by an optimiser of its
    own. `ent_coef` is in units of reward, because advantages are not normalised. The deployed policy has the
    exponential moving average of the weights. The average decays by the factor `average_decay` per minibatch, and is
    corrected for its bias towards the initial weights.

    The critic learns the value of the state that each step visits, and of `drawn_states` further states of each step.
    The target there is the one-step backup. A policy that contacts an agent at nearly every step never visits the
    agent's rested states, so that without drawn states the critic would not learn what rest is worth. What can be
    rewritten in an observation is drawn uniformly, and the policy acts as if it observed this. The rest stays as
    visited.

    Where observations hide the state, the policy can't tell apart the states that an agent may be in. Its advantages
    are then expected over these states, given the observations so far, if the environment knows their distribution.
    Given the critic, the gradient has no noise from the state that happened to be the true one.

    Raises ValueError if the environment has no lookahead, if its rewards are not shaped, if its episodes differ in
    length, or if the network is no actor.
    """

    graph_regions: tuple[str, ...] = ("compute_policy_gradients", "compute_critic_gradients")

    def __init__(
        self,
        env: Any,
        seed: int,
        *,
        network: MakeNetwork,
        critic: MakeCritic,
        optimizer: MakeOptimizer,
        critic_optimizer: MakeOptimizer,
        lr_schedule: LearningRateSchedule | None,
        auxiliary: MakeAuxiliaryModel | None,
        total_steps: int,
        num_steps: int,
        epochs: int,
        critic_epochs: int,
        minibatches: int,
        gamma: float,
        td_lambda: float,
        clip: float,
        ent_coef: float,
        ent_coef_final: float,
        max_grad_norm: float,
        average_decay: float,
        privileged: bool,
        drawn_states: int,
        eval_every: int,
        checkpoint_every: int,
    ):
        lookahead = env.as_lookahead(privileged)
        if lookahead is None:
            raise ValueError(
                "algo=ppo_expected: this environment can't give the mean reward and the next states of every action; "
                "use algo=ppo, which learns from sampled actions"
            )
        if not env.episode_length:
            raise ValueError(
                "algo=ppo_expected: expected episodes of one length, got an environment without `episode_length`; "
                "algo=ppo needs none"
            )
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
        if not isinstance(self.network, Actor):
            raise ValueError("algo.network: expected a policy, as algo/network=actor")
        self.learned_from = ("a simulator", "its one-step model")
        if privileged:
            self.learned_from += ("true parameters for the critic",)
        self.lookahead = lookahead
        self.critic = critic(lookahead.critic_dim, lookahead.num_states).to(env.device)
        self.critic_optimizer = critic_optimizer(self.critic.parameters())
        self.initial_critic_lr = self.critic_optimizer.param_groups[0]["lr"]
        self.critic_lr = torch.tensor(float(self.initial_critic_lr), device=env.device)
        self.critic_optimizer.param_groups[0]["lr"] = self.critic_lr
        self.epochs, self.critic_epochs = epochs, critic_epochs
        self.gamma, self.td_lambda, self.clip = gamma, td_lambda, clip
        self.drawn_states = drawn_states if lookahead.draws_states else 0
        # `policy`, which is deployed, has the average of the weights that `network` goes through
        self.policy = deepcopy(self.network)
        self.policy.normalize = self.network.normalize
        self.average_decay = average_decay
        self.average_mass = torch.zeros((), device=env.device)  # on the device: recorded CUDA graphs change it
        self.weights = list(self.network.parameters())
        self.average_weights = list(self.policy.parameters())

    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect a rollout, compute expected advantages, update critic, policy and auxiliary model."""
        self.anneal(progress)
        rollout = self.collect()
        policy_batch, critic_batch = self.compute_advantages(rollout)
        metrics = self.update(policy_batch, critic_batch)
        return self.conclude(rollout, metrics)

    def anneal(self, progress: float) -> None:
        """Set the learning rates of an iteration, and the entropy's coefficient, which goes geometrically to its last
        value.
        """
        super().anneal(progress)
        if self.lr_schedule:
            self.lr_schedule(self.critic_lr, self.initial_critic_lr, progress, self.kl)
        self.entropy_coef.fill_(self.ent_coef * (self.ent_coef_final / self.ent_coef) ** progress)

    @torch.no_grad()
    def compute_advantages(self, rollout: Rollout) -> tuple[PolicyBatch, CriticBatch]:
        """Compute the expected advantages of all actions of every step, and the critic's targets."""
        lookahead = self.lookahead
        # 1. `visited` are the states that agents are in, [T, N]. `values` are the critic's values of all states,
        #    [T, N, S], and `next_values` those of the next step's states in each of K futures, [K, T − 1, N, S]. With
        #    K = 1 these are a part of `values`.
        critic_obs = lookahead.critic_obs(rollout.obs)
        visited = lookahead.visited_states()
        values = self.critic(critic_obs)
        next_values = values[None, 1:]
        if lookahead.num_futures > 1:
            next_values = self.critic(lookahead.future_critic_obs(critic_obs))
        # 2. Advantages of the policy that acted, and the critic's targets for visited and for drawn states.
        log_prob, action_value = self.evaluate_actions(rollout.obs, rollout.action_mask, visited, next_values)
        prob = log_prob.exp()
        advantage, mean = returns.expected_advantages(action_value, prob)
        if lookahead.filters_states:
            advantage, _ = returns.expected_advantages(lookahead.expected_backup(self.gamma * next_values), prob)
        advantage = torch.where(rollout.action_mask.flatten(2), advantage, 0.0)
        drawn, drawn_targets = self.targets_in_drawn_states(rollout, visited, next_values)
        state = torch.stack((visited, *drawn), -1)
        value = at_states(values, state)
        target = returns.lambda_targets(mean, value[..., 0], self.gamma * self.td_lambda)
        # 3. The policy learns from steps with a choice. The critic learns from agents that had a choice in some step,
        #    from all steps until the agent leaves. The policy decides nothing for other agents, such as those held out.
        has_choice = rollout.action_mask.flatten(2).sum(-1) > 1
        counts = (visited < lookahead.num_states) & has_choice.any(0)
        policy_batch = PolicyBatch(
            obs=rollout.obs,
            action_mask=rollout.action_mask,
            log_prob=log_prob,
            advantage=advantage,
            has_choice=has_choice,
        )
        critic_batch = CriticBatch(
            critic_obs=critic_obs,
            state=state,
            value=value,
            target=torch.stack((target, *drawn_targets), -1),
            counts=counts[..., None].expand_as(state),
        )
        return (
            PolicyBatch(*(column.flatten(0, 1) for column in policy_batch)),  # [T, N, ...] → [T·N, ...]
            CriticBatch(*(column.flatten(0, 1) for column in critic_batch)),
        )

    def targets_in_drawn_states(
        self, rollout: Rollout, visited: Tensor, next_values: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Draw `drawn_states` states for every step; return them and the one-step backup of each, [T, N] each.

        No trajectory begins in a drawn state, so the critic's target is the one-step backup.
        """
        states = [self.lookahead.draw_states(visited, self.generator) for _ in range(self.drawn_states)]
        targets = []
        for state in states:
            obs, action_mask = self.lookahead.as_if_in(state, rollout.obs, rollout.action_mask)
            log_prob, action_value = self.evaluate_actions(obs, action_mask, state, next_values)
            _, mean = returns.expected_advantages(action_value, log_prob.exp())
            targets.append(mean)
        return states, targets

    def evaluate_actions(
        self, obs: Tensor, action_mask: Tensor, state: Tensor, next_values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evaluate all actions of agents that observe [T, N, D] in the states [T, N].

        Returns their log-probabilities under the network, and their one-step backups, [T, N, P] each, which are finite
        for masked actions too.
        """
        pi = self.network.distribution(obs.flatten(0, 1), action_mask.flatten(0, 1))
        log_prob = pi.log_probs.unflatten(0, state.shape)
        return log_prob, self.lookahead.backup(state, self.gamma * next_values)

    def update(self, policy_batch: PolicyBatch, critic_batch: CriticBatch) -> dict[str, Tensor]:
        """Train critic and policy, each for some epochs; return each metric's mean over minibatches.

        The explained variance is that of the visited states' values before the update.
        """
        metrics = self.train_epochs(self.train_critic, critic_batch, self.critic_epochs)
        metrics |= self.train_epochs(self.train_policy, policy_batch, self.epochs)
        self.kl.copy_(distributed.all_reduce_mean(metrics["losses/approx_kl"]))  # a learning rate can adapt to it
        metrics["losses/explained_variance"] = losses.explained_variance(
            critic_batch.value[:, 0],
            critic_batch.target[:, 0],
            critic_batch.counts[:, 0],
            all_reduce=distributed.all_reduce_sum,
        )
        return metrics

    def train_epochs(
        self, train: Callable[[BatchT], dict[str, Tensor]], batch: BatchT, epochs: int
    ) -> dict[str, Tensor]:
        """Take a gradient step on every minibatch of some epochs; return the means of the metrics."""
        totals: dict[str, Tensor] = {}
        for _ in range(epochs):
            for minibatch in shuffled(batch, self.minibatches, self.generator):
                totals = {name: totals.get(name, 0) + x for name, x in train(minibatch).items()}
        return {f"losses/{name}": total / (epochs * self.minibatches) for name, total in totals.items()}

    def train_policy(self, batch: PolicyBatch) -> dict[str, Tensor]:
        """Take one gradient step on the policy, and move the average of its weights."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.compute_policy_gradients(batch)
        self.optimizer.step()
        with torch.no_grad():
            # average_mass is Σ_{i=1..t} decay^(t−i): 1 at the first step, so nothing of the initial weights stays
            self.average_mass.mul_(self.average_decay).add_(1.0)
            for average, weight in zip(self.average_weights, self.weights):
                average.lerp_(weight, 1 / self.average_mass)
        return metrics

    def train_critic(self, batch: CriticBatch) -> dict[str, Tensor]:
        """Take one gradient step on the critic."""
        self.critic_optimizer.zero_grad(set_to_none=True)
        metrics = self.compute_critic_gradients(batch)
        self.critic_optimizer.step()
        return metrics

    def compute_policy_gradients(self, batch: PolicyBatch) -> dict[str, Tensor]:
        """Back-propagate the clipped surrogate of all actions and the entropy; return diagnostics."""
        pi = self.network.distribution(batch.obs, batch.action_mask)
        log_ratio = torch.where(batch.action_mask.flatten(1), pi.log_probs - batch.log_prob, 0.0)
        old_prob = batch.log_prob.exp()
        weight = distributed.mean_weight(batch.has_choice)
        policy_term = weight * losses.expected_policy_loss(
            log_ratio, old_prob, batch.advantage, self.clip, batch.has_choice
        )
        entropy_term = weight * losses.masked_mean(pi.entropy(), batch.has_choice)
        (policy_term - self.entropy_coef * entropy_term).backward()
        with torch.no_grad():
            kl = losses.masked_mean(-(old_prob * log_ratio).sum(-1), batch.has_choice)
            outside = ((log_ratio.exp() - 1).abs() > self.clip).to(old_prob.dtype)
            clipfrac = losses.masked_mean((old_prob * outside).sum(-1), batch.has_choice)
        return {
            "policy_loss": policy_term.detach(),
            "entropy": entropy_term.detach(),
            "approx_kl": weight * kl,
            "clipfrac": weight * clipfrac,
            "grad_norm": self.clip_gradients(self.network),
        }

    def compute_critic_gradients(self, batch: CriticBatch) -> dict[str, Tensor]:
        """Back-propagate half the mean squared error of the states' values, in units of `critic.scale`."""
        value = at_states(self.critic(batch.critic_obs), batch.state)
        unit = self.critic.scale
        weight = distributed.mean_weight(batch.counts)
        loss = weight * losses.value_loss(value / unit, batch.value / unit, batch.target / unit, None, batch.counts)
        loss.backward()
        return {"value_loss": loss.detach(), "critic_grad_norm": self.clip_gradients(self.critic)}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to continue exactly."""
        return super().state_dict() | {
            "policy": self.policy.state_dict(),
            "average_mass": self.average_mass,
            "critic": self.critic.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_policy(self, state: dict[str, Any]) -> None:
        """Restore the part that acting needs, on any device."""
        super().load_policy(state)
        self.policy.load_state_dict(state["policy"])

    def start_from(self, state: dict[str, Any]) -> None:
        """Begin with another training's averaged policy and with its critic."""
        self.load_policy(state)
        self.network.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything."""
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.average_mass.copy_(state["average_mass"])
        fixed_lr = None if self.lr_schedule else self.initial_critic_lr
        restore_optimizer(self.critic_optimizer, state["critic_optimizer"], self.critic_lr, fixed_lr)
