"""The reward model: DistilBERT that learns outcomes from context and text; calibrated, resumable, refreshable."""
from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from email_rl.data.mails import OUTCOMES, Mails
from email_rl.models.encoders import dealt, in_both, padded
from email_rl.data.dataset import EmailEnv
from email_rl.data.metrics import log_losses, temperature
from email_rl.models.hf_io import describe, restore
from email_rl.models.outcome_classifier import FOLDER, Scorer
from rlcore import checkpoint
from rlcore.backends.cuda_graphs import fast
from rlcore.logger import Quiet
from rlcore.schedules import warmed


class RewardModel:
    """Fine-tune a classifier of outcomes: class-weighted cross-entropy, early stopping on log-loss, one temperature.

    What is hard to learn from scratch is that a mail names what its context has. With rm.overlap > 0 an auxiliary task that
    needs no labels teaches it: every token tells whether the other part, context or text, has it too.
    Class weights w shift what the network learns to log p + log w; that shift and the temperature, both taken from
    training and validation mails, end up in the last layer, so that the saved model gives calibrated probabilities as it is.
    Resumed with mails it has not seen, it is refreshed: trained on them and on a replay of the old split.
    """

    environment = EmailEnv

    def __init__(self, env: EmailEnv, seed: int, mode: str, *, rm, optim: Callable, input: str, class_weights: float,
                 warmup: float, final_lr: float, max_grad_norm: float, steps: int, eval_every: int, patience: int,
                 checkpoint_every: int, pool: int, predict_batch: int, refresh: dict):
        if input not in ("text", "context_text"):
            raise ValueError(f"algo.input: expected text or context_text, got '{input}'")
        if min(rm.epochs, rm.batch_size, steps, eval_every, patience, checkpoint_every, pool, predict_batch) < 1:
            raise ValueError("algo: expected epochs, batch_size, steps, eval_every, patience, checkpoint_every, pool and "
                             "predict_batch of at least 1")
        self.settings = {"rm": rm, "optim": optim, "input": input, "class_weights": class_weights, "warmup": warmup,
                         "final_lr": final_lr, "max_grad_norm": max_grad_norm, "steps": steps, "eval_every": eval_every,
                         "patience": patience, "checkpoint_every": checkpoint_every, "pool": pool,
                         "predict_batch": predict_batch, "refresh": refresh}
        self.env, self.seed, self.mode, self.rm, self.optim, self.input = env, seed, mode, rm, optim, input
        self.power, self.warmup, self.final_lr, self.max_grad_norm = class_weights, warmup, final_lr, max_grad_norm
        self.steps, self.eval_every, self.patience, self.checkpoint_every = steps, eval_every, patience, checkpoint_every
        self.pool, self.predict_batch, self.refresh = pool, predict_batch, refresh
        self.digest = env.digest
        self.iteration, self.step, self.seen, self.bad, self.finished = 0, 0, 0, 0, False
        self.best_loss, self.best, self.temperature = math.inf, None, 1.0
        self.old: dict[str, Mails] | None = None  # in a refresh: the splits it had learnt from
        self.before: dict[str, Tensor] | None = None  # and what it said of old and new test mails
        torch.manual_seed(seed)
        model, tokenizer = rm.build(env.train.contexts + env.train.texts)
        model.config.reads_context = input == "context_text"
        self._wire(model, tokenizer)
        self._take(env.train, [env.valid], rm.lr, rm.epochs)

    def _wire(self, model: nn.Module, tokenizer) -> None:
        self.scorer = Scorer(model, tokenizer, self.env.device, self.predict_batch)
        self.model = self.scorer.model
        self.files = describe(model, tokenizer)
        self.head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == len(OUTCOMES)][-1]
        self.overlap = nn.Linear(model.config.hidden_size, 1).to(self.env.device)  # of the auxiliary task; not saved with it
        self.trained = [*self.model.parameters(), *self.overlap.parameters()]
        self.loss = fast(self._loss, self.mode)

    def _take(self, train: Mails, valid: list[Mails], lr: float, epochs: int) -> None:
        """Make these the mails to learn from and to choose by (each set of valid counts alike)."""
        self.train_mails, self.valid_mails, self.lr = train, sum(valid[1:], valid[0]), lr
        self.ids = self.scorer.ids(train.contexts, train.texts)
        self.valid_ids = self.scorer.ids(self.valid_mails.contexts, self.valid_mails.texts)
        self.valid_weight = torch.cat([torch.full((len(v),), 1 / (len(v) * len(valid))) for v in valid if len(v)])
        counts = torch.bincount(train.outcome, minlength=len(OUTCOMES)).double()
        weight = (counts.sum() / counts.clamp_min(1)) ** self.power
        self.weight = (weight * counts.sum() / (weight * counts).sum()).float()  # mean 1 over the mails
        self._epoch, self._packed = None, None  # batches dealt, and mails laid out for a checkpoint, were of other mails
        self.per_epoch = math.ceil(len(train) / self.rm.batch_size)
        self.total = epochs * self.per_epoch
        self.iterations = math.ceil(self.total / self.steps)
        self.optimizer = self.optim(self.trained, lr=lr)

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────────
    def train(self, logger, save: Callable[[], None], evaluate: Callable[[], dict] | None,
              stop: Callable[[], bool]) -> None:
        """Train to the last step, until validation stops improving, or to the end of the iteration in which `stop` is true."""
        self.model.train()
        while self.iteration < self.iterations and self.bad < self.patience and not self.finished:
            started, seen = time.perf_counter(), self.seen
            metrics = self.update()
            self.iteration += 1
            last = self.iteration == self.iterations
            logger.log(self.seen, metrics, iteration=self.iteration, steps=self.seen - seen, started=started)
            if self.iteration % self.eval_every == 0 or last:
                found = evaluate() if evaluate else self.validate()
                logger.evaluated(self.seen, found)
                self._remember(found["email/log_loss"])
            stopped = stop()
            if self.iteration % self.checkpoint_every == 0 or stopped:
                save()
            if stopped:
                return
        if not self.finished:
            self.finish()
            save()
        if logger.directory:
            checkpoint.atomic_folder(Path(logger.directory) / FOLDER, self.export)

    def update(self) -> dict[str, Tensor | float]:
        """Take `steps` optimizer steps, or what is left of them."""
        sums = torch.zeros(3, device=self.env.device)
        end = min(self.step + self.steps, self.total)
        taken = end - self.step
        weight, y = self.weight.to(self.env.device), self.train_mails.outcome.to(self.env.device)
        while self.step < end:
            rows = self.batches(self.step // self.per_epoch)[self.step % self.per_epoch]
            x, mask = padded([self.ids[i] for i in rows], self.scorer.tokenizer.pad_token_id)
            loss, overlap = self.loss(x.to(self.env.device), mask.to(self.env.device), y[rows], weight)
            self.optimizer.param_groups[0]["lr"] = self.lr * warmed(self.step, self.total, self.warmup, self.final_lr)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.trained, self.max_grad_norm)
            self.optimizer.step()
            sums += torch.stack((loss.detach(), norm.detach(), overlap.detach()))
            self.step, self.seen = self.step + 1, self.seen + len(rows)
        return {"losses/total": sums[0] / taken, "losses/grad_norm": sums[1] / taken, "losses/overlap": sums[2] / taken,
                "charts/learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _loss(self, x: Tensor, mask: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the part of it that the auxiliary task has."""
        found = self.model(input_ids=x, attention_mask=mask, output_hidden_states=True)
        loss = nn.functional.cross_entropy(found.logits.float(), y, weight=weight)
        if not self.rm.overlap or self.input == "text":
            return loss, torch.zeros_like(loss)
        shared, counts = in_both(x, mask, self.scorer.tokenizer.cls_token_id, self.scorer.tokenizer.sep_token_id)
        said = self.overlap(found.hidden_states[-2])[..., 0].float()  # before the last layer, which may then use it
        each = nn.functional.binary_cross_entropy_with_logits(said, shared.float(), reduction="none")
        overlap = (each * counts).sum() / counts.sum().clamp_min(1)
        return loss + self.rm.overlap * overlap, overlap

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch's batches."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            self._epoch, self._batches = epoch, dealt([len(row) for row in self.ids], self.rm.batch_size, self.pool, generator)
        return self._batches

    # ── validation and calibration ──────────────────────────────────────────────────────────────────────────────────
    def valid_logits(self) -> Tensor:
        """Return what the model says of the validation mails, class weights taken out again, [N, 3]."""
        return self.scorer.logits(self.valid_ids) - (0 if self.finished else self.weight.log())

    def validate(self) -> dict[str, float]:
        """Judge the model on the validation mails."""
        p, y = self.valid_logits().softmax(1), self.valid_mails.outcome
        return {"email/log_loss": (self.valid_weight * log_losses(p, y)).sum().item(),
                "email/accuracy": (self.valid_weight * (p.argmax(1) == y)).sum().item()}

    def _remember(self, loss: float) -> None:
        """Keep the best weights so far; count evaluations without a better one."""
        self.bad += 1
        if loss < self.best_loss:
            self.best_loss, self.bad = loss, 0
            self.best = {name: x.detach().cpu().clone() for name, x in self.model.state_dict().items()}

    def finish(self) -> None:
        """Take the best weights and fold class weights and temperature into the last layer."""
        if self.best is None:
            raise ValueError(f"algo.rm.lr: {self.lr}: training diverged, no evaluation gave a finite log-loss; expected a lower one")
        self.model.load_state_dict(self.best)
        self.temperature = temperature(self.valid_logits(), self.valid_mails.outcome, self.valid_weight)
        with torch.no_grad():
            self.head.bias.sub_(self.weight.log().to(self.head.bias.device)).div_(self.temperature)
            self.head.weight.div_(self.temperature)
        self.finished, self.best = True, None

    def probabilities(self, mails: Mails) -> Tensor:
        """Return P(outcome) [N, 3] of the finished model."""
        return self.scorer.probabilities(mails.contexts, mails.texts)

    def fit_other(self, input: str) -> RewardModel:
        """Train, without a log, the same model from the start with another input."""
        other = RewardModel(self.env, self.seed, self.mode, **{**self.settings, "input": input})
        other.train(Quiet(), lambda: None, None, lambda: False)
        return other

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer as transformers does."""
        self.scorer.export(folder)

    # ── resume and refresh ──────────────────────────────────────────────────────────────────────────────────────────
    def state_dict(self) -> dict:
        """Everything that training needs to go on, and the mails that a refresh replays."""
        if self._packed is None:
            known = self.old or {name: Mails([], [], torch.zeros(0, dtype=torch.long)) for name in self.env.splits}
            self._packed = {"new": {name: mails.pack() for name, mails in self.new().items()},
                            "old": {name: mails.pack() for name, mails in known.items()}}
        return {"files": self.files, "model": self.model.state_dict(), "overlap": self.overlap.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "iteration": self.iteration, "step": self.step, "seen": self.seen, "bad": self.bad,
                "finished": self.finished, "best_loss": self.best_loss, "best": self.best, "temperature": self.temperature,
                "input": self.input, "digest": self.digest, "mails": self._packed, "refreshed": self.old is not None,
                "before": self.before, "random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.env.device) if self.env.device.type == "cuda" else None}

    def new(self) -> dict[str, Mails]:
        """Return the environment's splits; in a refresh, without texts that the old splits have on another side."""
        if self.old is None:
            return self.env.splits
        return {name: mails.without(sum((x for other, x in self.old.items() if other != name), mails.rows([])))
                for name, mails in self.env.splits.items()}

    def load_weights(self, state: dict) -> None:
        """Restore what judging needs."""
        self._wire(*restore(state["files"], AutoModelForSequenceClassification))
        self.model.load_state_dict(state["model"])
        self.input, self.finished, self.temperature = state["input"], state["finished"], state["temperature"]
        self._take(self.env.train, [self.env.valid], self.rm.lr, self.rm.epochs)

    def load_state_dict(self, state: dict) -> None:
        """Go on where a run stopped on these mails, or refresh a finished one with them."""
        if state["input"] != self.input:
            raise ValueError(f"algo.input: the checkpoint's is '{state['input']}', got '{self.input}'")
        mails = {age: {name: Mails.unpack(packed) for name, packed in kept.items()} for age, kept in state["mails"].items()}
        self.load_weights(state)
        self.overlap.load_state_dict(state["overlap"])
        self.seen = state["seen"]
        if state["digest"] == self.digest:
            self._resume(state, mails["old"] if state["refreshed"] else None)
        else:
            if not state["finished"]:
                raise ValueError("resume: that run had not finished: go on with its own env.data first, then refresh")
            self._refresh({name: mails["old"][name] + mails["new"][name] for name in mails["new"]})

    def _resume(self, state: dict, old: dict[str, Mails] | None) -> None:
        self.old, self.before = old, state["before"]
        if old:
            self._mix()
        self.optimizer.load_state_dict(state["optimizer"])
        for name in ("iteration", "step", "bad", "finished", "best_loss", "best", "temperature"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.env.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.env.device)

    def _refresh(self, old: dict[str, Mails]) -> None:
        self.old, self.finished, self.temperature = old, False, 1.0
        dropped = sum(map(len, self.env.splits.values())) - sum(map(len, self.new().values()))
        self._mix()
        self.before = {"old": self.probabilities(old["test"]), "new": self.probabilities(self.new()["test"])}
        print(f"refresh: {len(self.new()['train']):,} new mails to learn from, {len(self.train_mails) - len(self.new()['train']):,} "
              f"old ones again; {dropped} new mails left out, whose texts stand on another side of the old split",
              file=sys.stderr)
        with torch.no_grad():  # training sees the class weights that finish() takes out
            self.head.bias.add_(self.weight.log().to(self.head.bias.device))
        self._remember(self.validate()["email/log_loss"])  # what it was may stay the best

    def _mix(self) -> None:
        """Learn from the new mails and as many old ones as `replay` says; choose by old and new alike."""
        new = self.new()
        for name, mails in new.items():
            if not len(mails):
                raise ValueError(f"{self.env.name}: nothing new for {name}: its texts are those of the checkpoint's mails")
        n = min(len(self.old["train"]), math.ceil(self.refresh["replay"] * len(new["train"])))
        rows = torch.randperm(len(self.old["train"]), generator=torch.Generator().manual_seed(self.seed))[:n].tolist()
        self._take(new["train"] + self.old["train"].rows(rows), [new["valid"], self.old["valid"]],
                   self.refresh["lr"] * self.rm.lr, self.refresh["epochs"])
