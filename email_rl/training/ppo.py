"""PPO with a KL penalty: a language model learns to write mails that a reward model scores high, near to how it wrote before.

An iteration, in the order of this file: 1. sample contexts, 2. generate a mail for each, 3. score the mails by the reward
model, 4. score their tokens under the policy and under the reference, 5. compute advantages, 6. update the policy.
Losses, GAE and KL estimators are rlcore's, as for the offers. Checklist: Ziegler et al. 2019; Stiennon et al. 2020;
Huang et al. 2024 ("The N+ implementation details of RLHF with PPO").
"""
from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.models.hf_io import fuse_gelu
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, OutcomeClassifier, expected_reward
from email_rl.models.policy import LanguageModelPolicy, TokenizedMails
from email_rl.training.model_sources import ModelSources
from email_rl.training.sft import POLICY_FOLDER
from rlcore import checkpoint, losses
from email_rl.training.loop import Loop
from rlcore.backends import distributed
from email_rl.training.loop import capture, fast


@dataclass(frozen=True)
class MailRollout:
    """B generated mails with what reward model, policy and reference make of them."""

    contexts: list[str]
    texts: list[str]
    mails: TokenizedMails
    proxy_reward: Tensor  # [B], by the reward model, in units of the outcomes' values
    score: Tensor  # [B], what is optimised: standardised, and another for a mail without an end
    log_prob: Tensor  # [B, R], of each token under the policy that generated it
    reference_log_prob: Tensor  # [B, R]
    value: Tensor  # [B, R], the value head's estimate before each token
    entropy: Tensor  # [B, R]

    @property
    def log_ratio(self) -> Tensor:
        """log π − log π_ref of each token [B, R], 0 after a mail's end; its sum is the mail's KL estimate (k1), nats."""
        return torch.where(self.mails.response_mask, self.log_prob - self.reference_log_prob, 0.0)


class MailBatch(NamedTuple):
    """What the policy learns from: B mails and, for each of their tokens, [B, R]."""

    mails: TokenizedMails
    log_prob: Tensor
    reference_log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor

    def micro_batch(self, rows: Tensor, mails: TokenizedMails) -> MailBatch:
        """Return the mails `rows`, cut to the width of `mails`, which are their tokens."""
        def cut(x: Tensor) -> Tensor:
            return x[rows, :mails.response.shape[1]]
        return MailBatch(mails=mails, log_prob=cut(self.log_prob), reference_log_prob=cut(self.reference_log_prob),
                         value=cut(self.value), advantage=cut(self.advantage), target=cut(self.target))


class LanguageModelPPO(Loop):
    """Fine-tune a policy against a reward model, with a penalty on its KL from a reference policy.

    Rewards are the outcome's value, `expected` or of the likeliest outcome (`argmax`). Scores are rewards in standard
    deviations of what the reference gets, so that the KL coefficient means the same for every reward model; a mail without
    an end gets `missing_eos_score`, on that scale. Reward model and reference come from ModelSources. Under torchrun every
    process generates its share of the mails, and all take the step that one would on the joined minibatch.
    """

    env_type = MailDataset
    sharded = ("generator",)  # what of the state is a process's own

    def __init__(self, dataset: MailDataset, seed: int, mode: str, *, language_model, encoder, reward_model_training: dict,
                 sft: dict, generation: dict, advantage, kl_controller: Callable, optim: Callable, schedule: Callable | None,
                 reward_model_folder: str | None, reference_folder: str | None, model_cache: str, reward: str,
                 missing_eos_score: float, normalization_mails: int, iterations: int, mails_per_iteration: int,
                 minibatches: int, epochs: int, micro_batch_size: int, clip: float, clip_value: float | None, vf_coef: float,
                 ent_coef: float, max_grad_norm: float, gradient_checkpointing: bool, inference_batch_size: int,
                 eval_every: int, log_samples_every: int, logged_samples: int, checkpoint_every: int):
        if reward not in ("expected", "argmax"):
            raise ValueError(f"algo.reward: expected 'expected' or 'argmax', got '{reward}'")
        share = distributed.per_process(mails_per_iteration, "algo.mails_per_iteration")
        if share % (minibatches * advantage.samples_per_prompt):
            raise ValueError(f"algo.mails_per_iteration: expected a multiple of minibatches × samples a prompt, {minibatches} × "
                             f"{advantage.samples_per_prompt}, got {share}")
        if mails_per_iteration // minibatches < 8 and advantage.critic:
            raise ValueError("algo.minibatches: expected minibatches of at least 8 mails, got "
                             f"{mails_per_iteration // minibatches}")
        self.settings = {key: value for key, value in locals().items()
                         if key not in ("self", "dataset", "seed", "mode", "share")}
        self.dataset, self.seed, self.mode, self.device = dataset, seed, mode, dataset.device
        self.sources = ModelSources(
            dataset, seed, mode, language_model=language_model, encoder=encoder, generation=generation, sft=sft,
            reward_model_training=reward_model_training, reward_model_folder=reward_model_folder,
            reference_folder=reference_folder, model_cache=model_cache, batch_size=inference_batch_size)
        self.generation, self.inference_batch_size, self.micro_batch_size = generation, inference_batch_size, micro_batch_size
        self.reward_kind, self.missing_eos_score, self.normalization_mails = reward, missing_eos_score, normalization_mails
        self.advantage, self.kl_controller = advantage, kl_controller(self.device)
        self.iterations, self.iteration, self.batch = iterations, 0, mails_per_iteration
        self.minibatches, self.epochs, self.gradient_checkpointing = minibatches, epochs, gradient_checkpointing
        self.clip, self.clip_value, self.vf_coef, self.ent_coef = clip, clip_value, vf_coef, ent_coef
        self.optim, self.schedule, self.max_grad_norm = optim, schedule, max_grad_norm
        self.first_lr, self.lr = language_model.lr, torch.tensor(float(language_model.lr), device=self.device)
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.log_samples_every, self.logged_samples = log_samples_every, logged_samples
        self.generator = torch.Generator(self.device).manual_seed(2 * distributed.rank_seed(seed) + 1)
        self.kl = torch.full((), torch.nan, device=self.device)  # of the last update from the policy before it
        self.kl_to_reference = torch.full((), torch.nan, device=self.device)  # nats a mail
        self.policy: LanguageModelPolicy | None = None
        self.reference: LanguageModelPolicy | None = None
        self.reward_model: OutcomeClassifier | None = None
        self.score_mean, self.score_std = 0.0, 1.0  # of the rewards that the reference gets

    # ── the models ──────────────────────────────────────────────────────────────────────────────────────────────────
    def load_or_train_models(self, logger, should_stop: Callable[[], bool]) -> None:
        """Get reference policy and reward model, and fit the scale of scores on mails of the reference."""
        self.set_models(*self.sources.load_or_train(logger, should_stop))
        contexts = self.sample_contexts(self.normalization_mails)
        _, texts = self.reference.generate(contexts, 1, self.generator, **self.sampling)
        _, mean, variance = distributed.all_reduce_moments(self.rewards(contexts, texts).to(self.device))
        self.score_mean, self.score_std = mean.item(), variance.sqrt().clamp_min(1e-6).item()

    def set_models(self, reference: LanguageModelPolicy, reward_model: OutcomeClassifier) -> None:
        """Start from this reference, against this reward model."""
        reference.mode = self.mode  # of generation
        if self.mode != "eager" and self.device.type == "cuda":
            fuse_gelu(reference.language_model)
        self.reference, self.reward_model = reference.requires_grad_(False), reward_model
        self.policy = copy.deepcopy(reference).requires_grad_(True)
        if self.gradient_checkpointing:
            self.policy.language_model.gradient_checkpointing_enable()
        self.optimizer = self.optim(self.policy.parameters(), lr=self.first_lr)
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.loss = fast(self._loss, self.mode, dynamic=None)  # micro-batches are of several lengths
        # Checkpointing keeps the state of a random stream, which can't be recorded.
        mode = "eager" if self.gradient_checkpointing else self.mode
        self.accumulate_gradient = capture(self._accumulate_gradient, mode, self.device)
        self.forward = capture(LanguageModelPolicy.__call__, mode, self.device)

    def judge(self) -> OutcomeClassifier:
        """Return a judge for mails whose truth is unknown."""
        return self.sources.judge()

    # ── an iteration ────────────────────────────────────────────────────────────────────────────────────────────────
    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Run to the last iteration, or to the end of the one in which `stop` turns true."""
        if self.policy is None:
            self.load_or_train_models(logger, stop)
            if evaluate:
                logger.log_evaluation(0, evaluate())
        for _, metrics in self.loop(logger, save, evaluate, stop):
            rollout = self.collect()
            metrics |= self.rollout_metrics(rollout)
            metrics |= self.update(self.compute_advantages(rollout))
            if self.iteration % self.log_samples_every == 0:
                logger.log_text("samples", self.sample_table(rollout))
        if logger.directory and self.iteration == self.iterations:
            self.save_folders(Path(logger.directory))

    @torch.no_grad()
    def collect(self) -> MailRollout:
        """Generate a batch of mails, score them, and score their tokens under policy and reference (stages 1 to 4)."""
        samples = self.advantage.samples_per_prompt
        # 1. Sample contexts.
        contexts = self.sample_contexts(self.batch // distributed.num_processes() // samples)
        # 2. Generate mails.
        mails, texts = self.policy.generate(contexts, samples, self.generator, **self.sampling)
        contexts = [context for context in contexts for _ in range(samples)]
        # 3. Score the mails.
        proxy_reward = self.rewards(contexts, texts).to(self.device)
        standardised = (proxy_reward - self.score_mean) / self.score_std
        score = torch.where(self.policy.has_ended(mails), standardised, self.missing_eos_score).float()
        # 4. Score their tokens.
        own = self.policy.score_tokens(mails, self.micro_batch_size, True, self.forward)
        reference = self.reference.score_tokens(mails, self.micro_batch_size, False, self.forward)
        rollout = MailRollout(contexts=contexts, texts=texts, mails=mails, proxy_reward=proxy_reward, score=score,
                              log_prob=own.log_prob, reference_log_prob=reference.log_prob, value=own.value, entropy=own.entropy)
        self.kl_to_reference = distributed.all_reduce_mean(rollout.log_ratio.sum(1).mean())
        return rollout

    def sample_contexts(self, n: int) -> list[str]:
        """Sample n contexts of training mails, with replacement."""
        contexts = self.dataset.train.contexts
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
        return expected_reward(p, self.dataset.outcome_values, self.reward_kind)

    @torch.no_grad()
    def compute_advantages(self, rollout: MailRollout) -> MailBatch:
        """5. Turn the mails' scores into advantages and value targets of their tokens; move the KL coefficient on."""
        value = rollout.value if self.advantage.critic else torch.zeros_like(rollout.value)
        advantage, target = self.advantage(rollout.score, rollout.log_ratio, rollout.mails.response_mask, value,
                                           self.kl_controller.coef)
        self.kl_controller.update(self.kl_to_reference, self.batch)
        return MailBatch(mails=rollout.mails, log_prob=rollout.log_prob, reference_log_prob=rollout.reference_log_prob,
                         value=value, advantage=advantage, target=target)

    def update(self, batch: MailBatch) -> dict[str, Tensor]:
        """6. Take epochs × minibatches steps, each over as many micro-batches as memory asks for."""
        sums: dict[str, Tensor] = {}
        self.policy.language_model.train(self.gradient_checkpointing)  # transformers checkpoints in this mode only; no dropout
        for _ in range(self.epochs):
            order = torch.randperm(len(batch.value), generator=self.generator, device=self.device)
            for rows in order.chunk(self.minibatches):
                self.train_minibatch(batch, rows, sums)
        self.policy.language_model.eval()
        metrics = distributed.mean_scalars({f"ppo/{name}": x / (self.epochs * self.minibatches) for name, x in sums.items()})
        metrics["ppo/ratio_var"] = metrics.pop("ppo/ratio_square") - metrics["ppo/ratio"].square()
        self.kl.copy_(metrics["ppo/approxkl"])
        if self.advantage.critic:
            mask = batch.mails.response_mask
            metrics["val/mean"] = losses.masked_mean(batch.value, mask, distributed.all_reduce_sum)
            metrics["val/explained_variance"] = losses.explained_variance(batch.value, batch.target, mask, distributed.all_reduce_sum)
        return metrics

    def train_minibatch(self, batch: MailBatch, rows: Tensor, sums: dict[str, Tensor]) -> None:
        """Take one step on the mails `rows`, and add its metrics to `sums`."""
        tokens = distributed.all_reduce_mean(batch.mails.response_mask[rows].sum().float())
        self.optimizer.zero_grad(set_to_none=self.mode != "cudagraph")  # recorded, gradients stay at their place
        for bucket, mails in batch.mails.length_buckets(rows, self.micro_batch_size):
            share = mails.response_mask.sum() / tokens  # the mean over a minibatch's tokens, as if it were one
            metrics = self.accumulate_gradient(batch.micro_batch(bucket, mails), share)
            sums |= {name: sums.get(name, 0) + share * x for name, x in metrics.items()}
        distributed.average_gradients(self.policy.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        sums["grad_norm"] = sums.get("grad_norm", 0) + norm

    def _accumulate_gradient(self, micro_batch: MailBatch, share: Tensor) -> dict[str, Tensor]:
        loss, metrics = self.loss(micro_batch)
        (share * loss).backward()
        return metrics

    def _loss(self, batch: MailBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's loss and diagnostics on a micro-batch; with `kl_in_loss`, plus the KL to the reference (k3)."""
        mask = batch.mails.response_mask
        now = self.policy(batch.mails, entropy=self.ent_coef != 0)
        loss, found = losses.ppo(now.log_prob, batch.log_prob, batch.advantage, now.entropy, now.value, batch.value,
                                 batch.target, mask, mask, clip=self.clip, clip_value=self.clip_value,
                                 vf_coef=self.vf_coef if self.advantage.critic else 0.0, ent_coef=self.ent_coef)
        if self.advantage.kl_in_loss:
            log_ratio = torch.where(mask, batch.reference_log_prob - now.log_prob, 0.0)
            loss = loss + self.kl_controller.coef * losses.masked_mean(losses.kl_k3(log_ratio), mask)
        ratio = torch.where(mask, (now.log_prob - batch.log_prob).detach(), 0.0).exp()
        return loss, {"policy_loss": found["policy_loss"], "value_loss": found["value_loss"],
                      "approxkl": found["approx_kl"], "clipfrac": found["clipfrac"],
                      "ratio": losses.masked_mean(ratio, mask), "ratio_square": losses.masked_mean(ratio.square(), mask)}

    # ── what is logged and kept ─────────────────────────────────────────────────────────────────────────────────────
    def rollout_metrics(self, rollout: MailRollout) -> dict[str, Tensor]:
        """Return means over a rollout's mails, of all processes."""
        mask, score = rollout.mails.response_mask, rollout.score.mean()
        coef = self.kl_controller.coef.clone()
        return distributed.mean_scalars({
            "objective/kl": self.kl_to_reference, "objective/kl_coef": coef,
            "objective/entropy": torch.where(mask, rollout.entropy, 0.0).sum(1).mean(),
            "objective/scores": score, "objective/proxy_reward": rollout.proxy_reward.float().mean(),
            "objective/non_score_reward": -coef * self.kl_to_reference,
            "objective/score_total": score - coef * self.kl_to_reference,
            "objective/num_eos": distributed.num_processes() * self.policy.has_ended(rollout.mails).sum(),
            "objective/tokens": mask.sum(1).float().mean()})

    def sample_table(self, rollout: MailRollout) -> str:
        """Show a few mails of a rollout with their scores, as Markdown."""
        kl = rollout.log_ratio.sum(1).tolist()
        lines = [f"| {context} | {text.replace('|', '/').replace(chr(10), '<br>')} | {score:.2f} | {nats:.1f} |"
                 for context, text, score, nats in zip(rollout.contexts, rollout.texts, rollout.score.tolist(), kl)]
        return "\n".join(["| context | mail | score | KL, nats |", "|---|---|---|---|", *lines[:self.logged_samples]])

    def baseline_trainer(self, advantage) -> LanguageModelPPO:
        """Return a trainer with the same reference, reward model and settings, but another advantage estimator."""
        other = LanguageModelPPO(self.dataset, self.seed, self.mode, **{**self.settings, "advantage": advantage})
        other.set_models(copy.deepcopy(self.reference), self.reward_model)
        other.score_mean, other.score_std = self.score_mean, self.score_std
        return other

    def save_folders(self, folder: Path) -> None:
        """Write policy, reference and reward model as transformers does."""
        checkpoint.atomic_folder(folder / POLICY_FOLDER, self.policy.export)
        checkpoint.atomic_folder(folder / "reference", self.reference.export)
        checkpoint.atomic_folder(folder / REWARD_MODEL_FOLDER, self.reward_model.export)

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return {"policy": self.policy.pack(), "reference": self.reference.pack(), "reward_model": self.reward_model.pack(),
                "score_scale": [self.score_mean, self.score_std], "kl_coef": self.kl_controller.coef, "kl": self.kl,
                "kl_to_reference": self.kl_to_reference, "lr": self.lr, "optimizer": self.optimizer.state_dict(),
                "iteration": self.iteration, "generator": self.generator.get_state()}

    def load_weights(self, state: dict) -> None:
        """Restore what writing and scoring need."""
        self.set_models(LanguageModelPolicy.unpack(state["reference"], self.generation).to(self.device),
                        OutcomeClassifier.unpack(state["reward_model"], self.device, self.inference_batch_size))
        self.policy.load_state_dict(state["policy"]["weights"])
        self.score_mean, self.score_std = state["score_scale"]
        self.iteration = state["iteration"]

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["lr"] = self.lr
        for name, x in (("lr", self.lr), ("kl", self.kl), ("kl_to_reference", self.kl_to_reference),
                        ("kl_coef", self.kl_controller.coef)):
            x.copy_(state[name])
        self.generator.set_state(state["generator"].cpu())
