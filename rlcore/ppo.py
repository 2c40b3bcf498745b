"""Proximal policy optimisation over any BatchedEnv: train = (collect, prepare, update) repeated.

The three stages have fixed shapes and never ask the host a question, so that they can be compiled or captured.
"""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from rlcore import losses
from rlcore.backends import distributed as parallel
from rlcore.distributions import barrier, flatten
from rlcore.backends.cuda_graphs import capture, fast, scan
from rlcore.backends.triton_gae import gae
from rlcore.algorithm import Learner
from rlcore.normalization import ReturnScale
from rlcore.returns import whiten


class Rollout(NamedTuple):
    """T steps of N agents, [T, N, ...]; `last_obs` [N, D] is what follows the last step."""

    obs: Tensor
    barrier: Tensor  # what masks add to logits
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor | None  # only where steps can be truncated
    redeemed: Tensor | None  # only where a spend head learns from it
    last_obs: Tensor


class Batch(NamedTuple):
    """The same, flattened to [T·N, ...] and ready to learn from."""

    obs: Tensor
    barrier: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    decides: Tensor  # more than one pair was valid: a forced decision is not the policy's


class PPO(Learner):
    """PPO (Schulman et al. 2017) with joint action masks, GAE, and bootstraps through truncation.

    With `init`, the checkpoint of a learner from a log, it takes that as its `teacher`: for the first `imitated` iterations
    it acts, learns values as ever, and draws its policy towards softmax(teacher's values / temperature) where it has been.
    Raises ValueError where sizes don't fit.

    Under torchrun every process acts for its own agents, and all take the step that one would on the joined minibatch.
    """

    valued, sees_price = False, True
    sharded = ("generator", "env", "scale")  # what of the state is a process's own

    def __init__(self, env, seed: int, mode: str, *, net: Callable, optim: Callable, schedule: Callable | None,
                 spend: Callable | None, total_steps: int, num_steps: int, epochs: int, minibatches: int, gamma: float,
                 gae_lambda: float, clip: float, clip_value: float | None, vf_coef: float, ent_coef: float,
                 ent_coef_final: float, norm_adv: str, norm_reward: bool, center_reward: bool, max_grad_norm: float,
                 target_kl: float | None, init: str | None, imitated: int, temperature: float, eval_every: int,
                 checkpoint_every: int):
        super().__init__(env, seed, net=net, optim=optim, schedule=schedule, spend=spend, total_steps=total_steps,
                         num_steps=num_steps, eval_every=eval_every, checkpoint_every=checkpoint_every)
        if env.num_agents * num_steps % minibatches:
            raise ValueError(f"algo.minibatches: {minibatches} does not divide {env.num_agents} agents × {num_steps} steps")
        if center_reward and not norm_reward:
            raise ValueError("algo.center_reward: expected false where algo.norm_reward is")
        if norm_adv not in ("minibatch", "batch", "none"):
            raise ValueError(f"algo.norm_adv: expected minibatch, batch or none, got '{norm_adv}'")
        self.epochs, self.minibatches = epochs, minibatches
        self.gamma, self.gae_lambda, self.clip, self.clip_value = gamma, gae_lambda, clip, clip_value
        self.vf_coef, self.max_grad_norm, self.target_kl, self.norm_adv = vf_coef, max_grad_norm, target_kl, norm_adv
        self.ent_coef, self.ent_coef_final = ent_coef, ent_coef_final
        self.init, self.imitated, self.temperature, self.teacher = init, imitated if init else 0, temperature, None
        self.scale = ReturnScale(env.num_agents, gamma, center_reward).to(env.device) if norm_reward else None
        self.entropy_weight = torch.tensor(float(ent_coef), device=env.device)
        self.prepare = fast(self.prepare, mode)
        # On a CPU calls of thousands of small kernels cost less from C++, and products may be added without rounding between.
        called = {} if env.device.type == "cuda" else {"options": {"cpp_wrapper": True,
                                                                   "cpp.enable_floating_point_contract_flag": "fast"}}
        self.act, self.backward = fast(self.act, mode, fullgraph=True, **called), fast(self.backward, mode, **called)
        if not env.pure:  # a step is no graph, but what does its work is
            self.policy = fast(self.policy, mode)
            for name in env.hot:
                plain = getattr(type(env), name).__get__(env)
                setattr(env, name, fast(plain, mode, dynamic=None))  # histories grow
        if mode == "cudagraph" and parallel.size() > 1:
            raise ValueError("fast=cudagraph: expected a single process, several need eager or compile")
        self.act, self.prepare, self.learn = (capture(x, mode, env.device) for x in (self.act, self.prepare, self.learn))
        if env.capturable:
            self.roll = capture(self.roll, mode, env.device)
        if self.spend:
            self.spend.learn = capture(self.spend.learn, mode, env.device)

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Run to the last iteration, or to the end of the one in which `stop` turns true."""
        if self.init and self.teacher is None:
            raise ValueError(f"algo.init={self.init}: expected its teacher, as scripts/train.py restores it")
        for progress, metrics in self.loop(logger, save, evaluate, stop):
            self.entropy_weight.fill_(self.ent_coef + (self.ent_coef_final - self.ent_coef) * progress)
            rollout, charts = self.collect()
            metrics |= parallel.means(self.update(rollout, self.prepare(rollout)) | charts)

    def logits(self, obs: Tensor) -> Tensor:
        """Logits of all actions [B, Πn]."""
        return self.net.logits(obs)

    @torch.no_grad()
    def collect(self) -> tuple[Rollout, dict[str, Tensor]]:
        """Act for num_steps in every world; the uniforms of all decisions are drawn at once."""
        env = self.env
        u = torch.rand(self.num_steps, env.num_agents, generator=self.generator, device=env.device)
        if env.pure:
            state, (columns, info) = self.act(env.left, env.moments(self.num_steps), u)
            columns = (*columns, None, None)
            env.arrive(state)
            obs, _ = env.begin()
        else:
            columns, info, obs = self.roll(*env.begin(), u)
        return Rollout(*columns, last_obs=obs), {f"rollout/{name}": x.float().mean() for name, x in info.items()}

    def roll(self, obs: Tensor, mask: Tensor, u: Tensor) -> tuple[list[Tensor | None], dict[str, Tensor], Tensor]:
        """Act step by step: a rollout's columns [T, N, ...], info, and the last observation."""
        env, rows, infos = self.env, [], []
        for t in range(self.num_steps):
            action, log_prob, walls = self.policy(obs, mask, u[t])
            step = env.step(action)
            rows.append((obs, walls, action, log_prob, step.reward, step.terminated, step.truncated,
                         step.final_obs if env.truncates else None, step.info["redeemed"] if self.spend else None))
            infos.append(step.info)
            obs, mask = step.obs, step.mask
        columns = [None if column[0] is None else torch.stack(column) for column in zip(*rows)]
        return columns, {name: torch.stack([info[name] for info in infos]) for name in infos[0]}, obs

    def act(self, state: Tensor, moments, u: Tensor) -> tuple[Tensor, tuple[tuple, dict[str, Tensor]]]:
        """Act through moments in pure functions: where they lead to, a rollout's columns [T, N, ...], and info."""
        def body(state, row):
            moment, u = row
            obs, mask = self.env.observe(state, moment)
            action, log_prob, walls = self.policy(obs, mask, u)
            state, reward, info = self.env.move(state, moment, action)
            return state, ((obs, walls, action, log_prob, reward), info)
        state, (columns, info) = scan(body, state, (moments, u))
        return state, ((*columns, moments.ends, torch.zeros_like(moments.ends)), info)

    def policy(self, obs: Tensor, mask: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample actions [N, K] and their log-probabilities [N], by uniforms [N] for observations [N, D] under masks; return the
        masks' barriers too."""
        walls = barrier(mask)
        return *self.net.policy(obs, walls).sample_with_log_prob(u), walls

    @torch.no_grad()
    def probs(self, obs: Tensor, mask: Tensor, price: Tensor) -> Tensor:
        """Probabilities [N, Πn] under masks bool [N, Πn]; the price is among what is observed."""
        return self.net.policy(obs, mask).probs

    @torch.no_grad()
    def prepare(self, rollout: Rollout) -> Batch:
        """Turn a rollout into advantages and value targets."""
        # 1. Rewards on the scale of the return.
        done = rollout.terminated | rollout.truncated
        reward = rollout.reward
        if self.scale:
            self.scale.update(reward, done)
            reward = self.scale(reward)
        # 2. Values of what was seen, and of what came next: after a truncation, of what the reset replaced.
        value = self.net.value(torch.cat((rollout.obs, rollout.last_obs[None])))
        value, next_value = value[:-1], value[1:]
        if rollout.final_obs is not None:
            next_value = torch.where(rollout.truncated, self.net.value(rollout.final_obs), next_value)
        # 3. Advantages and targets.
        advantage = gae(reward, value, next_value, rollout.terminated, done, self.gamma, self.gae_lambda)
        target = advantage + value
        decides = (rollout.barrier == 0).flatten(2).sum(-1) > 1
        if self.norm_adv == "batch":
            advantage = whiten(advantage, decides, parallel.total)
        return Batch(*(x.flatten(0, 1) for x in (rollout.obs, rollout.barrier, rollout.action, rollout.log_prob, value,
                                                 advantage, target, decides)))

    def update(self, rollout: Rollout, batch: Batch) -> dict[str, Tensor]:
        """Take epochs × minibatches steps; return metrics as device tensors."""
        sums: dict[str, Tensor] = {}
        steps = 0
        for _ in range(self.epochs):
            order = torch.randperm(len(batch.obs), generator=self.generator, device=self.lr.device)
            shuffled = (x.index_select(0, order).chunk(self.minibatches) for x in batch)
            epoch_kl = torch.zeros_like(self.lr)
            for minibatch in map(Batch._make, zip(*shuffled)):
                metrics = self.learn(minibatch, self.iteration < self.imitated)
                sums = {name: sums.get(name, 0) + x for name, x in metrics.items()}
                epoch_kl += metrics["approx_kl"] / self.minibatches
                steps += 1
            epoch_kl = parallel.mean(epoch_kl)
            if self.target_kl is not None and epoch_kl.item() > self.target_kl:
                break
        metrics = {f"losses/{name}": x / steps for name, x in sums.items()}
        metrics["losses/explained_variance"] = losses.explained_variance(batch.value, batch.target, None, parallel.total)
        self.kl.copy_(epoch_kl)
        # The spend head sees each decision once, the observation scale moves only between updates.
        if self.spend:
            metrics["losses/spend"] = self.spend.fit(batch.obs, batch.action, rollout.redeemed.flatten(), self.minibatches,
                                                     self.generator)
        self.net.rescale(rollout.obs)
        return metrics

    def learn(self, batch: Batch, imitates: bool) -> dict[str, Tensor]:
        """Take one step on a minibatch; return the loss's diagnostics."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.backward(batch, imitates)
        self.optimizer.step()
        return metrics

    def backward(self, batch: Batch, imitates: bool) -> dict[str, Tensor]:
        """Leave the loss's gradients in the parameters, clipped together; return its diagnostics."""
        loss, metrics = self.imitation(batch) if imitates else self.loss(batch)
        loss.backward()
        parallel.average_gradients(self.net.parameters())
        # One kernel for all norms where each is called for; a compiler makes its own.
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.max_grad_norm,
                                              foreach=not torch.compiler.is_compiling())
        return metrics | {"grad_norm": norm}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss and diagnostics on a minibatch."""
        distribution = self.net.policy(batch.obs, batch.barrier)
        advantage = batch.advantage
        if self.norm_adv == "minibatch":
            advantage = whiten(advantage, batch.decides, parallel.total)
        return losses.ppo(distribution.log_prob(batch.action), batch.log_prob, advantage, distribution.entropy(),
                          self.net.value(batch.obs), batch.value, batch.target, batch.decides, clip=self.clip,
                          clip_value=self.clip_value, vf_coef=self.vf_coef, ent_coef=self.entropy_weight,
                          weight=parallel.weight(batch.decides))

    def imitation(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the teacher's preferences, and the value loss: what is learned from while there is a teacher."""
        log_probs = self.net.policy(batch.obs, batch.barrier).log_probs
        asked = self.teacher.preferences(batch.obs, batch.barrier.flatten(1) == 0, self.temperature)
        cross = -(asked * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
        weight = parallel.weight(batch.decides)
        policy = weight * losses.masked_mean(cross, batch.decides)
        critic = losses.value_loss(self.net.value(batch.obs), batch.value, batch.target, self.clip_value)
        with torch.no_grad():
            kl = losses.kl_k3(log_probs.gather(1, flatten(batch.action, self.env.nvec)[:, None])[:, 0] - batch.log_prob)
        return policy + self.vf_coef * critic, {"imitation": policy.detach(), "value_loss": critic.detach(),
                                                "approx_kl": weight * losses.masked_mean(kl, batch.decides)}

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return super().state_dict() | {"scale": self.scale and self.scale.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on. Comes before any call is recorded: the optimiser's state is replaced."""
        super().load_state_dict(state)
        if self.scale:
            self.scale.load_state_dict(state["scale"])
