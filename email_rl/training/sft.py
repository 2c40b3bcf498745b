"""Supervised fine-tuning: a language model learns to write mails like those that were sent, before PPO."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from email_rl.data.dataset import MailDataset
from email_rl.data.mails import Mails
from email_rl.mail_algorithm import MailAlgorithm
from email_rl.models.encoders import bucketed_batches, small_enough
from email_rl.models.mail_lengths import MEASURED, positions_needed
from email_rl.models.policy import LanguageModelPolicy
from email_rl.models.tokenized_mails import TokenizedMails
from email_rl.training.sft_mails import (
    all_contexts,
    outcome_weights,
    policy_settings,
    report_cut_prompts,
    weighted_mails,
)
from rlcore.losses import masked_mean
from rlcore.runs import checkpoint
from rlcore.schedules import linear_with_warmup

POLICY_FOLDER = "policy"  # beside checkpoint.pt; transformers loads it


class SFT(MailAlgorithm):
    """Fine-tune a language model on context → mail pairs by next-token cross-entropy over the mails' own tokens.

    Training uses mails with one of `outcomes`, at most `max_mails` of them (null: all). Where there are fewer than
    `enough_mails`, it also uses the others, whose tokens weigh `other_weight`. Mails longer than
    `generation.response_tokens` are left out, because they would teach a policy not to stop; their number is printed.
    Training makes whole passes over the mails, as few as take `language_model.sft_steps` gradient steps. The validation
    mails choose the weights, and end the training after `patience` steps without better ones.
    """

    start_instead = (
        "algo/language_model=local algo.language_model.source.path=FOLDER (the folder `policy` of a run) starts from "
        "its weights"
    )
    graph_regions = ("loss",)

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        *,
        language_model,
        generation: dict,
        optimizer: Callable,
        outcomes: list,
        enough_mails: int,
        other_weight: float,
        max_mails: int | None,
        patience: int,
        warmup_share: float,
        final_lr_share: float,
        batches_per_pass: int,
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
        contexts, texts = all_contexts(env), env.sample(env.train, MEASURED).texts
        network, tokenizer = language_model.build(
            env.train.contexts + env.train.texts,
            lambda tokenizer: positions_needed(generation, tokenizer, contexts, texts),
        )
        settings = policy_settings(generation, network, tokenizer, env)
        self.policy = LanguageModelPolicy(network, tokenizer, **settings).to(self.device)
        self.policy.value_head.requires_grad_(False)
        self.optimizer = optimizer([p for p in self.policy.parameters() if p.requires_grad], lr=language_model.sft_lr)
        self.patience, self.has_stalled = patience, False
        weight_of = outcome_weights(env.train, outcomes, enough_mails, other_weight)

        def read(mails: Mails, side: str) -> tuple[TokenizedMails, Tensor]:
            order = env.rows_to_draw_from(mails, max_mails)
            return weighted_mails(self.policy, mails, order, weight_of, max_mails, side, env.name)

        self.train_mails, self.train_weights = read(env.train, "training")
        self.valid_mails, self.valid_weights = read(env.valid, "validation")
        for side in sorted(env.splits.keys() - {"train", "valid"}):
            report_cut_prompts(self.policy, env.splits[side].contexts, side)
        own_tokens = self.train_mails.response_mask.sum(1).double()
        self.mean_token_weight = ((self.train_weights * own_tokens).sum() / own_tokens.sum()).item()
        self.train_lengths = self.train_mails.response_mask.sum(1).tolist()
        self.batch_size = small_enough(language_model.sft_batch_size, len(self.train_lengths), batches_per_pass)
        self.updates_per_epoch = math.ceil(len(self.train_lengths) / self.batch_size)
        passes = math.ceil(language_model.sft_steps / self.updates_per_epoch)
        self.total_updates = passes * self.updates_per_epoch
        self.iterations, self.iteration, self.updates_done = math.ceil(self.total_updates / updates_per_iteration), 0, 0
        self._epoch: int | None = None  # the epoch of the current batches
        self.best_loss, self.best_at = math.inf, 0
        self.best: dict[str, Tensor] | None = None

    @property
    def steps_done(self) -> int:
        """Training mails so far."""
        return self.updates_done * self.batch_size

    def iterate(self, progress: float) -> dict[str, Tensor | float]:
        """Take the updates of an iteration, or the remaining ones."""
        end = min(self.updates_done + self.updates_per_iteration, self.total_updates)
        taken, loss = end - self.updates_done, torch.zeros((), device=self.device)
        while self.updates_done < end:
            loss += self.train_batch()
        return {"losses/total": loss / taken, "charts/learning_rate": self.optimizer.param_groups[0]["lr"]}

    @property
    def has_converged(self) -> bool:
        """Whether validation has stopped improving."""
        return self.has_stalled

    def is_validation_due(self) -> bool:
        """Tell whether the last iteration completed an epoch."""
        before = min((self.iteration - 1) * self.updates_per_iteration, self.total_updates)
        return self.updates_done // self.updates_per_epoch > before // self.updates_per_epoch

    def observe_validation(self, metrics: dict[str, float]) -> None:
        """Keep the best weights; note where there were none for `patience` steps."""
        loss = metrics["validation/token_loss"]
        self.has_stalled = self.updates_done - self.best_at >= self.patience
        if loss < self.best_loss:
            self.best_loss, self.best_at, self.has_stalled = loss, self.updates_done, False
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
        loss = self.loss(mails.cut(int(mails.response_mask.sum(1).max())), self.train_weights[rows])
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
            self._batches = bucketed_batches(self.train_lengths, self.batch_size, self.bucket_batches, generator)
        return self._batches

    def loss(self, mails: TokenizedMails, weight: Tensor) -> Tensor:
        """Return the mean of weight · −log π over the mails' own tokens, nats, with the weights of mails [B].

        Weights count in units of the training set's mean weight of a token, so that batches of light mails take smaller
        steps: the mean over batches of equal tokens is the weighted mean over the training set.
        """
        log_prob = self.policy(mails).log_prob * (weight[:, None] / self.mean_token_weight)
        return -masked_mean(log_prob, mails.response_mask)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss on validation mails, nats a token, weighted as in training."""
        total, count = 0.0, 0.0
        everyone = torch.arange(len(self.valid_mails.prompt), device=self.device)
        for rows in everyone.split(self.settings.sft_batch_size):
            mails = self.valid_mails.select(rows)
            weight = mails.response_mask * self.valid_weights[rows, None]
            total -= (self.policy(mails).log_prob * weight).sum().item()
            count += weight.sum().item()
        return {"validation/token_loss": total / count}

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
            "best_at": self.best_at,
            "has_stalled": self.has_stalled,
            "best": self.best,
            "digest": self.digest,
        }

    def load_policy(self, state: dict) -> None:
        """Restore the model that writes."""
        self.policy.load_state_dict(state["policy"]["weights"])

    def load_state_dict(self, state: dict) -> None:
        """Restore the result of `state_dict`, to train on. Raises ValueError where the mails are others."""
        self.check_same_mails(state)
        self.load_policy(state)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("iteration", "updates_done", "best_loss", "best_at", "has_stalled", "best"):
            setattr(self, name, state[name])
