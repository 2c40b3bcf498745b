"""PPO with a KL penalty: a language model learns to write mails that a reward model scores high.

The KL penalty keeps the policy near the reference, which is the policy before this training.

How a mail's score becomes a gradient, in the order of this file: 1. sample contexts; 2. generate mails for them;
3. score each mail by the reward model; 4. compute each token's log-probability under the policy and the reference, and
its value; 5. turn each mail's score and KL penalty into advantages of its tokens (with `kl_in_loss` the KL penalty
enters in 7 instead); 6. update the KL coefficient; 7. take PPO's gradient steps. Losses and GAE are rlcore's.

Two estimators of KL(π ‖ π_ref) from samples of π (Schulman 2020, http://joschu.net/blog/kl-approx.html):
k1 = log π − log π_ref, and k3 = r − 1 − log r with r = π_ref / π. Checklist: Ziegler et al. 2019; Stiennon et al. 2020;
Huang et al. 2024 ("The N+ implementation details of RLHF with PPO").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.models.policy import LanguageModelPolicy
from email_rl.training.advantages import AdvantageEstimator
from email_rl.training.diagnostics import UpdateMetrics, micro_batch_metrics, rollout_metrics, value_metrics
from email_rl.training.language_model_algorithm import LanguageModelAlgorithm
from email_rl.training.rollout import MailBatch, MailRollout
from rlcore import losses
from rlcore.backends import distributed


class LanguageModelPPO(LanguageModelAlgorithm):
    """Fine-tune a policy against a reward model, with a penalty on KL(π ‖ π_ref), its KL to a reference policy.

    A mail's score = (reward − mean) / std, with mean and std of the rewards of mails that the reference generated at
    `setup`, so that the KL coefficient means the same for every reward model. A mail without a stop token scores
    `missing_eos_score` instead. Under torchrun every process generates its share of the mails, and every process takes
    the step that a single process would take on the joined minibatches.
    """

    graph_regions = ("accumulate_gradient",)  # methods that a backend may compile or capture as CUDA graphs
    sharded = ("generator",)  # keys of `state_dict` that differ between processes: each draws its own random numbers
    validates_at_start = True  # evaluate before iteration 1, when the policy is the reference

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        *,
        advantage: AdvantageEstimator,
        missing_eos_score: float,
        iterations: int,
        mails_per_iteration: int,
        minibatches: int,
        epochs: int,
        micro_batch_size: int,
        clip: float,
        clip_value: float | None,
        vf_coef: float,
        ent_coef: float,
        max_grad_norm: float,
        eval_every: int,
        checkpoint_every: int,
        **models: Any,
    ):
        own = {key: x for key, x in locals().items() if key not in ("self", "env", "seed", "models", "__class__")}
        super().__init__(env, seed, **models)
        self.settings = {**own, **models}
        self.mails_per_process = distributed.per_process(mails_per_iteration, "algo.mails_per_iteration")
        if self.mails_per_process % (minibatches * advantage.samples_per_prompt):
            raise ValueError(
                "algo.mails_per_iteration: expected a multiple of algo.minibatches × algo.advantage.samples_per_prompt "
                f"per process, {minibatches} × {advantage.samples_per_prompt}, got {self.mails_per_process}"
            )
        # a lower bound taken from TRL, here over all processes; whitening happens in stage 5
        if mails_per_iteration // minibatches < 8 and advantage.critic:
            raise ValueError(
                "algo.minibatches: expected algo.mails_per_iteration / algo.minibatches to be at least 8, got "
                f"{mails_per_iteration} / {minibatches}"
            )
        self.advantage_estimator, self.missing_eos_score = advantage, missing_eos_score
        self.samples_per_context = advantage.samples_per_prompt
        self.iterations, self.steps_per_iteration = iterations, mails_per_iteration
        self.epochs, self.minibatches, self.micro_batch_size = epochs, minibatches, micro_batch_size
        self.clip, self.clip_value, self.max_grad_norm = clip, clip_value, max_grad_norm
        self.vf_coef, self.ent_coef = vf_coef if advantage.critic else 0.0, ent_coef
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.forward_no_grad = LanguageModelPolicy.__call__  # a backend may put an equal, faster function here

    # ── an iteration ────────────────────────────────────────────────────────────────────────────────────────────────
    def iterate(self, progress: float) -> dict[str, Tensor]:
        """Collect mails with their scores, compute advantages, and update the policy; return the metrics."""
        if self.lr_schedule:
            # update_kl: approximate KL between the generating policy and the policy being updated, mean over the last
            # update's steps; not the KL to the reference
            self.lr_schedule(self.lr, self.initial_lr, progress, self.update_kl)
        rollout = self.collect()
        metrics = rollout_metrics(rollout, self.kl_controller.coef)
        batch = self.compute_advantages(rollout)
        # 6. Update the KL coefficient. Stage 5's token rewards used the old coefficient; with `kl_in_loss` they hold no
        # KL, and stage 7's loss uses the new one.
        self.kl_to_reference = rollout.kl_to_reference()
        self.kl_controller.update(self.kl_to_reference, mails=self.steps_per_iteration)
        metrics |= self.update(batch)
        self.log_rollout(rollout, metrics["ppo/largest_mean_ratio"].item())
        return metrics | {"charts/learning_rate": self.lr}

    @torch.no_grad()
    def collect(self) -> MailRollout:
        """Generate mails, score them, and compute statistics of their tokens (stages 1 to 4)."""
        samples = self.advantage_estimator.samples_per_prompt  # the prompt is a sampled context in a template
        # 1. Sample contexts.
        contexts = self.sample_contexts(self.mails_per_process // samples)
        # 2. Generate mails, `samples` for each context, in the order of the contexts.
        mails, texts = self.policy.generate(contexts, samples, self.generator, **self.sampling)
        contexts = [context for context in contexts for _ in range(samples)]
        has_ended = self.policy.has_ended(mails)
        # 3. Score the mails.
        proxy_reward = self.rewards(contexts, texts).to(self.device)
        score = self.scores(proxy_reward, has_ended)
        # 4. Compute token log-probabilities under the policy, with values and entropies, and under the reference.
        own = self.policy.token_statistics(mails, self.micro_batch_size, entropy=True, forward=self.forward_no_grad)
        reference = self.reference.token_statistics(mails, self.micro_batch_size, forward=self.forward_no_grad)
        return MailRollout(
            contexts=contexts,
            texts=texts,
            mails=mails,
            has_ended=has_ended,
            proxy_reward=proxy_reward,
            score=score,
            log_prob=own.log_prob,
            reference_log_prob=reference.log_prob,
            value=own.value,
            entropy=own.entropy,
        )

    def scores(self, proxy_reward: Tensor, has_ended: Tensor) -> Tensor:
        """Return the scores of mails [N], which training maximises; `has_ended`: whether a mail has a stop token."""
        standardised = (proxy_reward - self.score_mean) / self.score_std
        return torch.where(has_ended, standardised, self.missing_eos_score).float()

    @torch.no_grad()
    def compute_advantages(self, rollout: MailRollout) -> MailBatch:
        """5. Turn the mails' scores into advantages and value targets of their tokens."""
        value = rollout.value if self.advantage_estimator.critic else torch.zeros_like(rollout.value)
        # A token's reward is −kl_coef · log_ratio (k1), plus the mail's score on its last token; estimators such as GAE
        # make advantages of rewards and values (advantages.py). GAE (with `whiten`) and REINFORCE++ then whiten the
        # advantages over the tokens of all mails of all processes, before minibatches are drawn. An estimator with
        # `kl_in_loss` ignores log_ratio and kl_coef, so that the KL counts once, in the loss of stage 7.
        advantage, target = self.advantage_estimator(
            score=rollout.score,
            log_ratio=rollout.log_ratio,
            response_mask=rollout.mails.response_mask,
            value=value,
            kl_coef=self.kl_controller.coef,
        )
        return MailBatch(
            mails=rollout.mails,
            log_prob=rollout.log_prob,
            reference_log_prob=rollout.reference_log_prob,
            value=value,
            advantage=advantage,
            target=target,
        )

    def update(self, batch: MailBatch) -> dict[str, Tensor]:
        """7. Take epochs × minibatches gradient steps; return the mean of each metric."""
        totals = UpdateMetrics()
        # Gradient checkpointing, if set, works in training mode only; the model has no dropout that this would turn on.
        self.policy.language_model.train(self.gradient_checkpointing)
        for _ in range(self.epochs):
            order = torch.randperm(len(batch.value), generator=self.generator, device=self.device)
            for rows in order.chunk(self.minibatches):
                self.train_minibatch(batch, rows, totals)
        self.policy.language_model.eval()
        metrics = totals.mean(steps=self.epochs * self.minibatches)
        self.update_kl.copy_(metrics["ppo/approxkl"])
        if self.advantage_estimator.critic:
            metrics |= value_metrics(batch.value, batch.target, batch.mails.response_mask)
        return metrics

    def train_minibatch(self, batch: MailBatch, rows: Tensor, totals: UpdateMetrics) -> None:
        """Take one gradient step on the mails `rows`, in micro-batches that fit in memory; add metrics to `totals`."""
        tokens_per_process = distributed.all_reduce_mean(batch.mails.response_mask[rows].sum().float())
        # keep the tensors: a captured CUDA graph writes to their addresses
        self.optimizer.zero_grad(set_to_none=False)
        # A micro-batch has mails of like length; `bucket` holds their row numbers in the whole batch.
        for bucket, mails in batch.mails.length_buckets(rows, self.micro_batch_size):
            # Weight micro-batches so that their sum is the mean over all tokens of the minibatch, on all processes.
            # The denominator is a mean over processes, because gradients are averaged over processes below.
            share = mails.response_mask.sum() / tokens_per_process
            metrics = self.accumulate_gradient(batch.micro_batch(bucket, mails), share)
            totals.add(metrics, share)
        distributed.average_gradients(self.policy.parameters())
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        totals.end_minibatch(grad_norm)

    def accumulate_gradient(self, batch: MailBatch, share: Tensor) -> dict[str, Tensor]:
        """Add `share` times the gradient of PPO's loss on a micro-batch; return loss and diagnostics.

        With `kl_in_loss`, the loss adds kl_coef · KL(π ‖ π_ref), estimated by k3. The value loss reaches the trunk too.
        """
        mask = batch.mails.response_mask
        current = self.policy(batch.mails, entropy=self.ent_coef != 0)
        loss, metrics = losses.ppo(
            log_prob=current.log_prob,
            old_log_prob=batch.log_prob,
            advantage=batch.advantage,
            mask=mask,
            value=current.value,
            old_value=batch.value,
            target=batch.target,
            value_mask=mask,
            entropy=current.entropy,
            clip=self.clip,
            clip_value=self.clip_value,
            vf_coef=self.vf_coef,
            ent_coef=self.ent_coef,
        )
        if self.advantage_estimator.kl_in_loss:
            # log π_ref − log π, as k3 wants; `MailRollout.log_ratio` has the opposite sign.
            reference_log_ratio = torch.where(mask, batch.reference_log_prob - current.log_prob, 0.0)
            loss = loss + self.kl_controller.coef * losses.masked_mean(losses.kl_k3(reference_log_ratio), mask)
        (share * loss).backward()
        return micro_batch_metrics(loss.detach(), metrics, (current.log_prob - batch.log_prob).detach(), mask)
