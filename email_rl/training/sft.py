"""Supervised fine-tuning: a language model learns to write mails like those that were sent, before PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails
from email_rl.models.encoders import bucketed_batches
from email_rl.models.policy import LanguageModelPolicy, TokenizedMails
from rlcore import checkpoint
from rlcore.algorithm import Algorithm
from rlcore.losses import masked_mean
from rlcore.schedules import linear_with_warmup

POLICY_FOLDER = "policy"  # beside checkpoint.pt; transformers loads it


class SFT(Algorithm):
    """Fine-tune a language model on context → mail pairs by next-token cross-entropy over the mails' own tokens.

    The validation mails choose the epoch. Training uses mails with one of `outcomes`, at most `max_mails` of them
    (null: all). Mails longer than `generation.response_tokens` are left out, because they would teach a policy not to
    stop.
    """

    env_type = MailDataset
    graph_regions = ("loss",)
    reference, reward_model = None, None  # which PPO has and SFT has not

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        *,
        language_model,
        generation: dict,
        optimizer: Callable,
        outcomes: list,
        max_mails: int | None,
        warmup_share: float,
        final_lr_share: float,
        max_grad_norm: float,
        updates_per_iteration: int,
        bucket_batches: int,
        checkpoint_every: int,
    ):
        self.env, self.device, self.seed, self.settings = env, env.device, seed, language_model
        self.max_grad_norm = max_grad_norm
        self.updates_per_iteration = updates_per_iteration
        self.checkpoint_every = checkpoint_every
        self.warmup_share, self.final_lr_share, self.bucket_batches = warmup_share, final_lr_share, bucket_batches
        torch.manual_seed(seed)
        network, tokenizer = language_model.build(env.train.contexts + env.train.texts)
        self.policy = LanguageModelPolicy(network, tokenizer, **generation).to(self.device)
        self.policy.value_head.requires_grad_(False)
        self.optimizer = optimizer([p for p in self.policy.parameters() if p.requires_grad], lr=language_model.sft_lr)
        self.train_mails = self._tokenize(env.train, outcomes, max_mails)
        self.valid_mails = self._tokenize(env.valid, outcomes, max_mails)
        self.train_lengths = self.train_mails.response_mask.sum(1).tolist()
        self.updates_per_epoch = math.ceil(len(self.train_lengths) / language_model.sft_batch_size)
        self.total_updates = language_model.sft_epochs * self.updates_per_epoch
        self.iterations, self.iteration, self.updates_done = math.ceil(self.total_updates / updates_per_iteration), 0, 0
        self._epoch: int | None = None  # the epoch of the current batches
        self.best_loss = math.inf
        self.best: dict[str, Tensor] | None = None

    def _tokenize(self, mails: Mails, outcomes: list, max_mails: int | None) -> TokenizedMails:
        mails = mails.rows([i for i, y in enumerate(mails.outcome.tolist()) if y in outcomes][:max_mails])
        most = self.policy.response_tokens
        responses = self.policy.tokenize_responses(mails.texts)
        rows = [i for i, row in enumerate(responses) if len(row) <= most]
        if not rows:
            raise ValueError(
                f"algo.generation.response_tokens: no mail of {self.env.name} with an outcome of {outcomes} has "
                f"{most} tokens or fewer; expected more"
            )
        padded = [responses[i] + [self.policy.stop_token] * (most - len(responses[i])) for i in rows]
        mask = torch.tensor([[k < len(responses[i]) for k in range(most)] for i in rows])
        prompt, prompt_mask = self.policy.tokenize_prompts([mails.contexts[i] for i in rows])
        return TokenizedMails(prompt, prompt_mask, torch.tensor(padded, device=self.device), mask.to(self.device))

    @property
    def steps_done(self) -> int:
        """Training mails so far."""
        return self.updates_done * self.settings.sft_batch_size

    def iterate(self, progress: float) -> dict[str, Tensor | float]:
        """Take the updates of an iteration, or the remaining ones."""
        end = min(self.updates_done + self.updates_per_iteration, self.total_updates)
        taken, loss = end - self.updates_done, torch.zeros((), device=self.device)
        while self.updates_done < end:
            loss += self.train_batch()
        return {"losses/total": loss / taken, "charts/learning_rate": self.optimizer.param_groups[0]["lr"]}

    def is_validation_due(self) -> bool:
        """Tell whether the last iteration completed an epoch."""
        before = min((self.iteration - 1) * self.updates_per_iteration, self.total_updates)
        return self.updates_done // self.updates_per_epoch > before // self.updates_per_epoch

    def observe_validation(self, metrics: dict[str, float]) -> None:
        """Keep the best weights."""
        loss = metrics["email/token_loss"]
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: x.detach().cpu().clone() for name, x in self.policy.state_dict().items()}

    def finish(self) -> None:
        """Take the best weights."""
        if self.best is None:
            raise ValueError(
                f"algo.language_model.sft_lr: {self.settings.sft_lr}: training diverged, no validation gave a finite "
                "loss; expected a lower one"
            )
        self.policy.load_state_dict(self.best)

    def train_batch(self) -> Tensor:
        """Take one step; return its loss, nats a token."""
        rows = self.batches(self.updates_done // self.updates_per_epoch)[self.updates_done % self.updates_per_epoch]
        share = linear_with_warmup(self.updates_done, self.total_updates, self.warmup_share, self.final_lr_share)
        self.optimizer.param_groups[0]["lr"] = self.settings.sft_lr * share
        mails = self.train_mails.select(torch.tensor(rows, device=self.device))
        loss = self.loss(mails.cut(int(mails.response_mask.sum(1).max())))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.updates_done += 1
        return loss.detach()

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch's batches."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch = epoch
            self._batches = bucketed_batches(
                self.train_lengths, self.settings.sft_batch_size, self.bucket_batches, generator
            )
        return self._batches

    def loss(self, mails: TokenizedMails) -> Tensor:
        """Return the mean of −log π over the mails' own tokens, nats."""
        return -masked_mean(self.policy(mails).log_prob, mails.response_mask)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss on validation mails, nats a token."""
        total, count = 0.0, 0
        everyone = torch.arange(len(self.valid_mails.prompt), device=self.device)
        for rows in everyone.split(self.settings.sft_batch_size):
            mails = self.valid_mails.select(rows)
            total -= (self.policy(mails).log_prob * mails.response_mask).sum().item()
            count += int(mails.response_mask.sum())
        return {"email/token_loss": total / count}

    def judge(self) -> None:
        """Return no judge: none is trained for a policy that learns from mails alone."""

    def export(self, directory: Path) -> None:
        """Write the policy into its folder in a directory."""
        checkpoint.atomic_folder(directory / POLICY_FOLDER, self.export_model)

    def export_model(self, folder: Path) -> None:
        """Write language model and tokenizer in transformers' format."""
        self.policy.export(folder)

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly."""
        return {
            "policy": self.policy.pack(),
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "updates_done": self.updates_done,
            "best_loss": self.best_loss,
            "best": self.best,
        }

    def load_policy(self, state: dict) -> None:
        """Restore the model that writes."""
        self.policy.load_state_dict(state["policy"]["weights"])

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`, to train on."""
        self.load_policy(state)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("iteration", "updates_done", "best_loss", "best"):
            setattr(self, name, state[name])
