"""Supervised fine-tuning: a language model learns to write mails like those that were sent, before it is rewarded."""
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails
from email_rl.models.encoders import bucketed_batches
from email_rl.models.policy import LanguageModelPolicy, TokenizedMails
from rlcore import checkpoint
from email_rl.training.loop import fast
from rlcore.losses import masked_mean
from rlcore.schedules import warmed

POLICY_FOLDER = "policy"  # beside checkpoint.pt; transformers loads it


class SFT:
    """Fine-tune on context → mail pairs by next-token cross-entropy over the mails' own tokens, best epoch by validation.

    It learns from mails with one of `outcomes`, at most `max_mails` of them (null: all). Mails longer than
    `generation.response_tokens` are left out: a policy would learn from them not to stop.
    """

    env_type = MailDataset
    reference, reward_model = None, None  # what a policy that PPO trains has

    def __init__(self, dataset: MailDataset, seed: int, mode: str, *, language_model, generation: dict, optim: Callable,
                 outcomes: list, max_mails: int | None, warmup_share: float, final_lr_share: float, max_grad_norm: float,
                 steps_per_iteration: int, bucket_batches: int, checkpoint_every: int):
        self.dataset, self.device, self.seed, self.settings = dataset, dataset.device, seed, language_model
        self.max_grad_norm, self.steps_per_iteration, self.checkpoint_every = max_grad_norm, steps_per_iteration, checkpoint_every
        self.warmup_share, self.final_lr_share, self.bucket_batches = warmup_share, final_lr_share, bucket_batches
        torch.manual_seed(seed)
        network, tokenizer = language_model.build(dataset.train.contexts + dataset.train.texts)
        self.policy = LanguageModelPolicy(network, tokenizer, **generation).to(self.device)
        self.policy.value_head.requires_grad_(False)
        self.loss = fast(self._loss, mode)
        self.optimizer = optim([p for p in self.policy.parameters() if p.requires_grad], lr=language_model.sft_lr)
        self.train_mails = self._tokenize(dataset.train, outcomes, max_mails)
        self.valid_mails = self._tokenize(dataset.valid, outcomes, max_mails)
        self.train_lengths = self.train_mails.response_mask.sum(1).tolist()
        self.steps_per_epoch = math.ceil(len(self.train_lengths) / language_model.sft_batch_size)
        self.total_steps = language_model.sft_epochs * self.steps_per_epoch
        self.iterations, self.iteration, self.step = math.ceil(self.total_steps / steps_per_iteration), 0, 0
        self._epoch: int | None = None  # whose batches are made
        self.best_loss, self.best = math.inf, None

    def _tokenize(self, mails: Mails, outcomes: list, max_mails: int | None) -> TokenizedMails:
        mails = mails.rows([i for i, y in enumerate(mails.outcome.tolist()) if y in outcomes][:max_mails])
        most = self.policy.response_tokens
        responses = self.policy.tokenize_responses(mails.texts)
        rows = [i for i, row in enumerate(responses) if len(row) <= most]
        if not rows:
            raise ValueError(f"algo.generation.response_tokens: no mail of {self.dataset.name} with an outcome of {outcomes} has "
                             f"{most} tokens or fewer; expected more")
        padded = [responses[i] + [self.policy.stop_token] * (most - len(responses[i])) for i in rows]
        mask = torch.tensor([[k < len(responses[i]) for k in range(most)] for i in rows])
        prompt, prompt_mask = self.policy.tokenize_prompts([mails.contexts[i] for i in rows])
        return TokenizedMails(prompt, prompt_mask, torch.tensor(padded, device=self.device), mask.to(self.device))

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Train to the last step, or to the end of the iteration in which `stop` turns true."""
        while self.iteration < self.iterations:
            started, end = time.perf_counter(), min(self.step + self.steps_per_iteration, self.total_steps)
            taken, losses = end - self.step, torch.zeros((), device=self.device)
            while self.step < end:
                losses += self.train_batch()
            self.iteration += 1
            epoch_ended = self.step % self.steps_per_epoch < taken or self.step == self.total_steps
            mails_seen = self.step * self.settings.sft_batch_size
            logger.log_iteration(mails_seen,
                       {"losses/total": losses / taken, "charts/learning_rate": self.optimizer.param_groups[0]["lr"]},
                       iteration=self.iteration, steps=taken * self.settings.sft_batch_size, started=started)
            if epoch_ended:
                loss = self.validate()
                logger.log_evaluation(mails_seen, {"email/token_loss": loss})
                if loss < self.best_loss:
                    self.best_loss = loss
                    self.best = {name: x.detach().cpu().clone() for name, x in self.policy.state_dict().items()}
            stopped = stop()
            if self.iteration % self.checkpoint_every == 0 or stopped:
                save()
            if stopped:
                return
        self.policy.load_state_dict(self.best)
        save()
        if logger.directory:
            checkpoint.atomic_folder(Path(logger.directory) / POLICY_FOLDER, self.export)

    def train_batch(self) -> Tensor:
        """Take one step; return its loss, nats a token."""
        rows = self.batches(self.step // self.steps_per_epoch)[self.step % self.steps_per_epoch]
        share = warmed(self.step, self.total_steps, self.warmup_share, self.final_lr_share)
        self.optimizer.param_groups[0]["lr"] = self.settings.sft_lr * share
        mails = self.train_mails.select(torch.tensor(rows, device=self.device))
        loss = self.loss(mails.cut(int(mails.response_mask.sum(1).max())))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch's batches."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch = epoch
            self._batches = bucketed_batches(self.train_lengths, self.settings.sft_batch_size, self.bucket_batches, generator)
        return self._batches

    def _loss(self, mails: TokenizedMails) -> Tensor:
        return -masked_mean(self.policy(mails).log_prob, mails.response_mask)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss on validation mails, nats a token."""
        total, count = 0.0, 0
        everyone = torch.arange(len(self.valid_mails.prompt), device=self.device)
        for rows in everyone.split(self.settings.sft_batch_size):
            mails = self.valid_mails.select(rows)
            total -= (self.policy(mails).log_prob * mails.response_mask).sum().item()
            count += int(mails.response_mask.sum())
        return total / count

    def judge(self) -> None:
        """Return no judge of mails: none is trained for a policy that learns from mails alone."""

    def export(self, folder: Path) -> None:
        """Write language model and tokenizer as transformers does."""
        self.policy.export(folder)

    def state_dict(self) -> dict:
        """Everything that training needs to go on as if it had not stopped."""
        return {"policy": self.policy.pack(), "optimizer": self.optimizer.state_dict(), "iteration": self.iteration,
                "step": self.step, "best_loss": self.best_loss, "best": self.best}

    def load_weights(self, state: dict) -> None:
        """Restore what writing needs."""
        self.policy.load_state_dict(state["policy"]["weights"])

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave, to train on."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("iteration", "step", "best_loss", "best"):
            setattr(self, name, state[name])
