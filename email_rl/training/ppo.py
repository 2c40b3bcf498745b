"""PPO with a KL penalty: a language model learns to write mails that a reward model scores high, near to how it wrote
before.

An iteration, in the order of this file: 1. sample contexts, 2. generate mails for them, 3. score the mails by the
reward model, 4. score their tokens under the policy and under the reference, 5. compute advantages, 6. update the
policy. Losses, GAE and KL estimators are rlcore's, as for the offers. Checklist: Ziegler et al. 2019; Stiennon et al.
2020; Huang et al. 2024 ("The N+ implementation details of RLHF with PPO").
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.models.outcome_classifier import expected_reward
from email_rl.models.policy import LanguageModelPolicy, TokenizedMails
from email_rl.training.diagnostics import rollout_metrics, sample_table
from email_rl.training.language_model_algorithm import LanguageModelAlgorithm
from email_rl.training.model_sources import ModelSources
from rlcore import losses
from rlcore.backends import distributed
from rlcore.logger import Logger, NullLogger


@dataclass(frozen=True)
class MailRollout:
    """B generated mails with what reward model, policy and reference make of them."""

    contexts: list[str]
    texts: list[str]
    mails: TokenizedMails
    has_ended: Tensor  #: bool [B], whether a mail has a stop token
    proxy_reward: Tensor  #: [B], by the reward model, in units of the outcomes' values
    score: Tensor  #: [B], what is optimised: standardised rewards, another for a mail without an end
    log_prob: Tensor  #: [B, R], of each token under the policy that generated it
    reference_log_prob: Tensor  #: [B, R], under the reference
    value: Tensor  #: [B, R], the value head's estimate before each token
    entropy: Tensor  #: [B, R], of the choice of each token

    @property
    def log_ratio(self) -> Tensor:
        """log π − log π_ref of each token [B, R], 0 after a mail's end; its sum estimates the mail's KL (k1), nats."""
        return torch.where(self.mails.response_mask, self.log_prob - self.reference_log_prob, 0.0)


class MailBatch(NamedTuple):
    """What the policy learns from: B mails and, for each of their tokens, [B, R]."""

    mails: TokenizedMails
    log_prob: Tensor
    reference_log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor  #: of the value head: advantage + value

    def micro_batch(self, rows: Tensor, mails: TokenizedMails) -> MailBatch:
        """Return the mails `rows`, cut to the width of `mails`, which are their tokens."""
        def cut(x: Tensor) -> Tensor:
            return x[rows, :mails.response.shape[1]]
        return MailBatch(mails=mails, log_prob=cut(self.log_prob), reference_log_prob=cut(self.reference_log_prob),
                         value=cut(self.value), advantage=cut(self.advantage), target=cut(self.target))


class LanguageModelPPO(LanguageModelAlgorithm):
    """Fine-tune a policy against a reward model, with a penalty on its KL from a reference policy.

    Rewards are the outcome's value, `expected` or of the likeliest outcome (`argmax`). Scores are rewards in standard
    deviations of what the reference gets, so that the KL coefficient means the same for every reward model; a mail
    without an end gets `missing_eos_score`, on that scale. Under torchrun every process generates its share of the
    mails, and all take the step that one would on the joined minibatch.
    """

    graph_regions = ("accumulate_gradient",)
    sharded = ("generator",)
    validates_at_start = True  # the reference, from which training starts

    def __init__(self, env: MailDataset, seed: int, *, language_model, encoder, reward_model_training: dict, sft: dict,
                 generation: dict, advantage, kl_controller: Callable, optimizer: Callable,
                 lr_schedule: Callable | None, reward_model_folder: str | None, reference_folder: str | None,
                 model_cache: str, reward: str, missing_eos_score: float, normalization_mails: int, iterations: int,
                 mails_per_iteration: int, minibatches: int, epochs: int, micro_batch_size: int, clip: float,
                 clip_value: float | None, vf_coef: float, ent_coef: float, max_grad_norm: float,
                 gradient_checkpointing: bool, inference_batch_size: int, eval_every: int, log_samples_every: int,
                 logged_samples: int, checkpoint_every: int):
        settings = {key: x for key, x in locals().items() if key not in ("self", "env", "seed", "__class__")}
        if reward not in ("expected", "argmax"):
            raise ValueError(f"algo.reward: expected 'expected' or 'argmax', got '{reward}'")
        self.mails_per_process = distributed.per_process(mails_per_iteration, "algo.mails_per_iteration")
        if self.mails_per_process % (minibatches * advantage.samples_per_prompt):
            raise ValueError(f"algo.mails_per_iteration: expected a multiple of minibatches × samples a prompt, "
                             f"{minibatches} × {advantage.samples_per_prompt}, got {self.mails_per_process}")
        if mails_per_iteration // minibatches < 8 and advantage.critic:
            raise ValueError("algo.minibatches: expected minibatches of at least 8 mails, got "
                             f"{mails_per_iteration // minibatches}")
        sources = ModelSources(
            env, seed, language_model=language_model, encoder=encoder, generation=generation, sft=sft,
            reward_model_training=reward_model_training, reward_model_folder=reward_model_folder,
            reference_folder=reference_folder, model_cache=model_cache, batch_size=inference_batch_size)
        super().__init__(env, seed, settings, sources=sources, generation=generation, optimizer=optimizer,
                         lr_schedule=lr_schedule, lr=language_model.lr, gradient_checkpointing=gradient_checkpointing,
                         inference_batch_size=inference_batch_size)
        self.advantage, self.kl_controller = advantage, kl_controller(env.device)
        self.reward_kind, self.missing_eos_score = reward, missing_eos_score
        self.normalization_mails, self.micro_batch_size = normalization_mails, micro_batch_size
        self.iterations, self.steps_per_iteration = iterations, mails_per_iteration
        self.minibatches, self.epochs, self.max_grad_norm = minibatches, epochs, max_grad_norm
        self.clip, self.clip_value, self.vf_coef, self.ent_coef = clip, clip_value, vf_coef, ent_coef
        self.eval_every, self.log_samples_every = eval_every, log_samples_every
        self.checkpoint_every, self.logged_samples = checkpoint_every, logged_samples
        self.forward = LanguageModelPolicy.__call__  # a backend may put an equal, faster function here
        self.logger: Logger = NullLogger()

    def setup(self, logger: Logger, should_stop: Callable[[], bool]) -> None:
        """Load or train reference policy and reward model, and fit the scale of scores on mails of the reference."""
        self.logger = logger
        if self.policy is not None:
            return
        self.set_models(*self.sources.load_or_train(logger, should_stop, self.accelerate_inner))
        contexts = self.sample_contexts(self.normalization_mails)
        _, texts = self.reference.generate(contexts, 1, self.generator, **self.sampling)
        _, mean, variance = distributed.all_reduce_moments(self.rewards(contexts, texts).to(self.device))
        self.score_mean, self.score_std = mean.item(), variance.sqrt().clamp_min(1e-6).item()

    # ── an iteration ────────────────────────────────────────────────────────────────────────────────────────────────
    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect mails with their scores, compute advantages, and update the policy; return the metrics."""
        if self.lr_schedule:
            self.lr_schedule(self.lr, self.initial_lr, progress, self.kl)
        rollout = self.collect()
        metrics = rollout_metrics(rollout, self.kl_controller.coef)
        batch = self.compute_advantages(rollout)
        metrics |= self.update(batch)
        if self.iteration % self.log_samples_every == 0:
            self.logger.log_text("samples", sample_table(rollout, self.logged_samples))
        return metrics | {"charts/learning_rate": self.lr}

    @torch.no_grad()
    def collect(self) -> MailRollout:
        """Generate a batch of mails, score them, and score their tokens under policy and reference (stages 1 to 4)."""
        samples = self.advantage.samples_per_prompt
        # 1. Sample contexts.
        contexts = self.sample_contexts(self.mails_per_process // samples)
        # 2. Generate mails, `samples` for each context.
        mails, texts = self.policy.generate(contexts, samples, self.generator, **self.sampling)
        contexts = [context for context in contexts for _ in range(samples)]
        has_ended = self.policy.has_ended(mails)
        # 3. Score the mails.
        proxy_reward = self.rewards(contexts, texts).to(self.device)
        standardised = (proxy_reward - self.score_mean) / self.score_std
        score = torch.where(has_ended, standardised, self.missing_eos_score).float()
        # 4. Score their tokens under the policy and under the reference.
        own = self.policy.score_tokens(mails, self.micro_batch_size, True, self.forward)
        reference = self.reference.score_tokens(mails, self.micro_batch_size, False, self.forward)
        rollout = MailRollout(contexts=contexts, texts=texts, mails=mails, has_ended=has_ended,
                              proxy_reward=proxy_reward, score=score, log_prob=own.log_prob,
                              reference_log_prob=reference.log_prob, value=own.value, entropy=own.entropy)
        self.kl_to_reference = distributed.all_reduce_mean(rollout.log_ratio.sum(1).mean())
        return rollout

    def sample_contexts(self, n: int) -> list[str]:
        """Sample n contexts of training mails, with replacement."""
        contexts = self.env.train.contexts
        rows = torch.randint(len(contexts), (n,), generator=self.generator, device=self.device)
        return [contexts[i] for i in rows.tolist()]

    @property
    def sampling(self) -> dict:
        """How mails are generated: by temperature alone, or log-probabilities would be of another distribution."""
        return {"temperature": self.generation["temperature"], "top_k": 0, "top_p": 1.0,
                "batch_size": self.inference_batch_size}

    def rewards(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return the reward model's reward of mails [N], in units of the outcomes' values."""
        p = self.reward_model.probabilities(contexts, texts).double()
        return expected_reward(p, self.env.outcome_values, self.reward_kind)

    @torch.no_grad()
    def compute_advantages(self, rollout: MailRollout) -> MailBatch:
        """5. Turn the mails' scores into advantages and value targets of their tokens; move the KL coefficient on."""
        value = rollout.value if self.advantage.critic else torch.zeros_like(rollout.value)
        advantage, target = self.advantage(rollout.score, rollout.log_ratio, rollout.mails.response_mask, value,
                                           self.kl_controller.coef)
        self.kl_controller.update(self.kl_to_reference, self.steps_per_iteration)
        return MailBatch(mails=rollout.mails, log_prob=rollout.log_prob, reference_log_prob=rollout.reference_log_prob,
                         value=value, advantage=advantage, target=target)

    def update(self, batch: MailBatch) -> dict[str, Tensor]:
        """6. Take epochs × minibatches gradient steps; return the mean of each metric."""
        totals: dict[str, Tensor] = {}
        # In training mode transformers checkpoints gradients; there is no dropout to turn on.
        self.policy.language_model.train(self.gradient_checkpointing)
        for _ in range(self.epochs):
            order = torch.randperm(len(batch.value), generator=self.generator, device=self.device)
            for rows in order.chunk(self.minibatches):
                self.train_minibatch(batch, rows, totals)
        self.policy.language_model.eval()
        metrics = {f"ppo/{name}": total / (self.epochs * self.minibatches) for name, total in totals.items()}
        metrics = distributed.mean_scalars(metrics)
        metrics["ppo/ratio_var"] = metrics.pop("ppo/ratio_square") - metrics["ppo/ratio"].square()
        self.kl.copy_(metrics["ppo/approxkl"])
        if self.advantage.critic:
            mask, total = batch.mails.response_mask, distributed.all_reduce_sum
            metrics["val/mean"] = losses.masked_mean(batch.value, mask, total)
            metrics["val/explained_variance"] = losses.explained_variance(batch.value, batch.target, mask, total)
        return metrics

    def train_minibatch(self, batch: MailBatch, rows: Tensor, totals: dict[str, Tensor]) -> None:
        """Take one gradient step on the mails `rows`, in micro-batches that memory can hold; add to `totals`."""
        tokens = distributed.all_reduce_mean(batch.mails.response_mask[rows].sum().float())
        self.optimizer.zero_grad(set_to_none=False)  # a recorded backward pass adds to gradients where they lie
        for bucket, mails in batch.mails.length_buckets(rows, self.micro_batch_size):
            share = mails.response_mask.sum() / tokens  # the mean over a minibatch's tokens, as if it were one
            metrics = self.accumulate_gradient(batch.micro_batch(bucket, mails), share)
            totals |= {name: totals.get(name, 0) + share * x for name, x in metrics.items()}
        distributed.average_gradients(self.policy.parameters())
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        totals["grad_norm"] = totals.get("grad_norm", 0) + grad_norm

    def accumulate_gradient(self, batch: MailBatch, share: Tensor) -> dict[str, Tensor]:
        """Add `share` times the gradient of PPO's loss on a micro-batch; with `kl_in_loss`, the loss has the KL to the
        reference (k3). Return loss and diagnostics.
        """
        mask = batch.mails.response_mask
        now = self.policy(batch.mails, entropy=self.ent_coef != 0)
        loss, metrics = losses.ppo(now.log_prob, batch.log_prob, batch.advantage, now.entropy, now.value, batch.value,
                                   batch.target, mask, mask, clip=self.clip, clip_value=self.clip_value,
                                   vf_coef=self.vf_coef if self.advantage.critic else 0.0, ent_coef=self.ent_coef)
        if self.advantage.kl_in_loss:
            log_ratio = torch.where(mask, batch.reference_log_prob - now.log_prob, 0.0)
            loss = loss + self.kl_controller.coef * losses.masked_mean(losses.kl_k3(log_ratio), mask)
        (share * loss).backward()
        ratio = torch.where(mask, (now.log_prob - batch.log_prob).detach(), 0.0).exp()
        return {"loss": loss.detach(), "policy_loss": metrics["policy_loss"], "value_loss": metrics["value_loss"],
                "approxkl": metrics["approx_kl"], "clipfrac": metrics["clipfrac"],
                "ratio": losses.masked_mean(ratio, mask), "ratio_square": losses.masked_mean(ratio.square(), mask)}

    # ── to and from disk ────────────────────────────────────────────────────────────────────────────────────────────
    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        return super().state_dict() | {"kl_coef": self.kl_controller.coef}

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`, to train on."""
        super().load_state_dict(state)
        self.kl_controller.coef.copy_(state["kl_coef"])
