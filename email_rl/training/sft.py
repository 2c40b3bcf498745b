"""The warm start: a language model learns to write mails like those that were sent, before it is rewarded."""
from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

from email_rl.data.mails import Mails
from email_rl.models.encoders import dealt
from email_rl.data.dataset import EmailEnv
from email_rl.models.policy import Policy, Samples
from rlcore import checkpoint
from rlcore.backends.cuda_graphs import fast
from rlcore.losses import masked_mean
from rlcore.schedules import warmed

FOLDER = "policy"  # beside checkpoint.pt; transformers loads it


class SFT:
    """Fine-tune on context → mail pairs by next-token cross-entropy over the mails' own tokens, best epoch by validation.

    It learns from mails with one of `outcomes`, at most `mails` of them (null: all). Mails longer than
    `writing.response_tokens` are left out: a policy would learn from them not to stop.
    """

    environment = EmailEnv
    reference, scorer = None, None  # what a writer that PPO trains has

    def __init__(self, env: EmailEnv, seed: int, mode: str, *, lm, writing: dict, optim: Callable,
                 outcomes: list, mails: int | None, warmup: float, final_lr: float, max_grad_norm: float, steps: int, pool: int,
                 checkpoint_every: int):
        self.env, self.max_grad_norm, self.steps, self.checkpoint_every = env, max_grad_norm, steps, checkpoint_every
        self.lm, self.warmup, self.final_lr, self.pool, self.seed = lm, warmup, final_lr, pool, seed
        torch.manual_seed(seed)
        self.policy = Policy(*lm.build(env.train.contexts + env.train.texts), **writing).to(env.device)
        self.policy.value.requires_grad_(False)
        self.loss = fast(self._loss, mode)
        self.optimizer = optim([p for p in self.policy.parameters() if p.requires_grad], lr=lm.start_lr)
        self.train_rows, self.valid_rows = (self._lay(side, outcomes, mails) for side in (env.train, env.valid))
        self.lengths = self.train_rows.alive.sum(1).tolist()
        self.per_epoch = math.ceil(len(self.train_rows.query) / lm.start_batch)
        self.total = lm.start_epochs * self.per_epoch
        self.iterations, self.iteration, self.step, self._epoch = math.ceil(self.total / steps), 0, 0, None
        self.best_loss, self.best = math.inf, None

    def _lay(self, mails: Mails, outcomes: list, most: int | None) -> Samples:
        mails = mails.rows([i for i, y in enumerate(mails.outcome.tolist()) if y in outcomes][:most])
        responses = self.policy.responses(mails.texts)
        rows = [i for i, row in enumerate(responses) if len(row) <= self.policy.response_tokens]
        if not rows:
            raise ValueError(f"algo.writing.response_tokens: no mail of {self.env.name} with an outcome of {outcomes} has "
                             f"{self.policy.response_tokens} tokens or fewer; expected more")
        pad = [responses[i] + [self.policy.stop] * (self.policy.response_tokens - len(responses[i])) for i in rows]
        own = torch.tensor([[k < len(responses[i]) for k in range(self.policy.response_tokens)] for i in rows])
        query, mask = self.policy.queries([mails.contexts[i] for i in rows])
        return Samples(query, mask, torch.tensor(pad, device=query.device), own.to(query.device))

    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Train to the last step, or to the end of the iteration in which `stop` turns true."""
        while self.iteration < self.iterations:
            started, end = time.perf_counter(), min(self.step + self.steps, self.total)
            taken, losses = end - self.step, torch.zeros((), device=self.env.device)
            while self.step < end:
                losses += self.update()
            self.iteration += 1
            epoch_ended = self.step % self.per_epoch < taken or self.step == self.total
            seen = self.step * self.lm.start_batch
            logger.log(seen, {"losses/total": losses / taken, "charts/learning_rate": self.optimizer.param_groups[0]["lr"]},
                       iteration=self.iteration, steps=taken * self.lm.start_batch, started=started)
            if epoch_ended:
                loss = self.validate()
                logger.evaluated(seen, {"email/token_loss": loss})
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
            checkpoint.atomic_folder(Path(logger.directory) / FOLDER, self.export)

    def update(self) -> Tensor:
        """Take one step; return its loss, nats a token."""
        rows = torch.tensor(self.batches(self.step // self.per_epoch)[self.step % self.per_epoch], device=self.env.device)
        share = warmed(self.step, self.total, self.warmup, self.final_lr)
        self.optimizer.param_groups[0]["lr"] = self.lm.start_lr * share
        some = Samples(*(x[rows] for x in self.train_rows))
        longest = int(some.alive.sum(1).max())
        loss = self.loss(some._replace(response=some.response[:, :longest], alive=some.alive[:, :longest]))
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
            self._epoch, self._batches = epoch, dealt(self.lengths, self.lm.start_batch, self.pool, generator)
        return self._batches

    def _loss(self, samples: Samples) -> Tensor:
        return -masked_mean(self.policy(samples).log_prob, samples.alive)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss on validation mails, nats a token."""
        total, count = 0.0, 0
        for rows in torch.arange(len(self.valid_rows.query), device=self.env.device).split(self.lm.start_batch):
            some = Samples(*(x[rows] for x in self.valid_rows))
            total -= (self.policy(some).log_prob * some.alive).sum().item()
            count += int(some.alive.sum())
        return total / count

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
