"""Training of an outcome classifier: DistilBERT learns outcomes from context and text, and is calibrated at the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from email_rl.data.dataset import MailDataset
from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import OUTCOMES, Mails
from email_rl.data.metrics import fit_temperature, log_losses
from email_rl.mail_algorithm import MailAlgorithm
from email_rl.models.encoders import bucketed_batches, cut_inputs, pad_batch, small_enough
from email_rl.models.hf_io import describe
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, OutcomeClassifier
from email_rl.models.outcome_model import export_outcome_model
from email_rl.reward_model.classification import class_weights, overlap_loss
from rlcore.runs import checkpoint
from rlcore.runs.logger import Logger, NullLogger
from rlcore.schedules import linear_with_warmup
from rlcore.training_loop import TrainingLoop


class OutcomeTraining(MailAlgorithm):
    """Fine-tune a classifier of outcomes: class-weighted cross-entropy, early stopping on log-loss, one temperature.

    The match between a mail's words and its context is hard to learn from scratch. With encoder.overlap_weight > 0 an
    auxiliary task that needs no labels teaches the match: each token predicts whether the other part, context or text,
    has the token too.

    Class weights w make the network learn log p + log w. This shift and the temperature, taken from training and
    validation mails, are folded into the last layer, so that the saved model gives calibrated probabilities. `refresh`
    has the settings of a refresh (email_rl/reward_model/reward_model.py).
    """

    start_instead = (
        "algo/encoder=local algo.encoder.source.path=FOLDER (the folder `reward_model` of a run) starts from its "
        "weights, resume=PATH with other mails refreshes the model"
    )
    graph_regions = ("loss",)

    def __init__(
        self,
        env: MailDataset,
        seed: int,
        *,
        encoder,
        optimizer: Callable,
        input: str,
        class_weight_power: float,
        warmup_share: float,
        final_lr_share: float,
        batches_per_pass: int,
        max_grad_norm: float,
        updates_per_iteration: int,
        eval_every: int,
        patience: int,
        patience_passes: int,
        checkpoint_every: int,
        bucket_batches: int,
        predict_batch_size: int,
        refresh: dict,
    ):
        # first: the arguments are the only local names
        self.settings = {key: value for key, value in locals().items() if key not in ("self", "env", "seed")}
        if input not in ("text", "context_text"):
            raise ValueError(f"algo.input: expected text or context_text, got '{input}'")
        self.env, self.device, self.seed = env, env.device, seed
        self.batches_per_pass = batches_per_pass
        self.encoder, self.make_optimizer, self.input, self.refresh = encoder, optimizer, input, refresh
        self.class_weight_power, self.max_grad_norm = class_weight_power, max_grad_norm
        self.warmup_share, self.final_lr_share = warmup_share, final_lr_share
        self.most_updates_per_iteration, self.bucket_batches = updates_per_iteration, bucket_batches
        self.eval_every, self.checkpoint_every = eval_every, checkpoint_every
        self.most_patience, self.patience_passes = patience, patience_passes
        self.predict_batch_size = predict_batch_size
        self.iteration, self.updates_done, self.mails_seen, self.finished = 0, 0, 0, False
        self.best_loss, self.best_at, self.has_stalled, self.temperature = math.inf, 0, False, 1.0
        self.best: dict[str, Tensor] | None = None
        torch.manual_seed(seed)
        network, tokenizer = encoder.build(env.train.contexts, env.train.texts)
        network.config.reads_context = input == "context_text"
        self._set_network(network, tokenizer)
        self._set_mails(env.train, [env.valid], encoder.lr, encoder.steps)
        self._report_learnt_before()

    def _set_network(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.classifier = OutcomeClassifier(network, tokenizer, self.device, self.predict_batch_size)
        self.network, self.files = self.classifier.model, describe(network, tokenizer)
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self.output_layer = [module for module in linear if module.out_features == len(OUTCOMES)][-1]
        # The head of the auxiliary task is not exported.
        self.overlap_head = nn.Linear(network.config.hidden_size, 1).to(self.device)
        self.parameters = [*self.network.parameters(), *self.overlap_head.parameters()]

    def _set_mails(self, train: Mails, valid: list[Mails], lr: float, steps: int) -> None:
        """Set the training mails and the validation mails; the sets of `valid` have equal weight.

        Training makes whole passes over the mails, as few as take `steps` gradient steps.
        """
        self.train_mails, self.valid_mails, self.lr = train, sum(valid[1:], valid[0]), lr
        self.train_ids = self.classifier.token_ids(train.contexts, train.texts)
        self.valid_ids = self.classifier.token_ids(self.valid_mails.contexts, self.valid_mails.texts)
        self.classifier.learnt = LearntMails.of(train, self.valid_mails).joined(self.encoder.learnt)
        self._report_cut_mails(train)
        self.valid_weight = torch.cat([torch.full((len(v),), 1 / (len(v) * len(valid))) for v in valid if len(v)])
        self.class_weights = class_weights(train.outcome, self.class_weight_power)
        self._epoch: int | None = None  # the epoch of `_batches`
        self.batch_size = small_enough(self.encoder.batch_size, len(train), self.batches_per_pass)
        self.updates_per_epoch = math.ceil(len(train) / self.batch_size)
        self.total_updates = math.ceil(steps / self.updates_per_epoch) * self.updates_per_epoch
        self.updates_per_iteration = min(self.most_updates_per_iteration, self.updates_per_epoch)
        self.iterations = math.ceil(self.total_updates / self.updates_per_iteration)
        self.patience = min(self.most_patience, self.patience_passes * self.updates_per_epoch)
        self.optimizer = self.make_optimizer(self.parameters, lr=lr)

    def _report_learnt_before(self) -> None:
        """Warn where the weights that training begins with know mails by which the model is chosen or judged."""
        if self.encoder.learnt is None:
            return
        for side in ("valid", "test"):
            n, left = len(self.env.splits[side]), len(self.env.unread(side, self.encoder.learnt))
            if left < n:
                print(
                    f"warning: algo.encoder.source.path: the weights have learnt from {n - left:,} of the {n:,} mails "
                    f"of split {side}, or from near-duplicates: figures on these flatter the model",
                    file=sys.stderr,
                )

    def _report_cut_mails(self, train: Mails) -> None:
        """Print how many training mails are longer than the model's input."""
        tokenizer = self.classifier.tokenizer
        contexts = train.contexts if self.input == "context_text" else None
        cut = cut_inputs(tokenizer, contexts, train.texts, self.train_ids)
        if cut:
            print(
                f"warning: {cut:,} of {len(train):,} training mails have more than the {tokenizer.model_max_length} "
                "tokens that the reward model reads, and are cut (algo.encoder.max_length)",
                file=sys.stderr,
            )

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────────
    def setup(self, logger: Logger, should_stop: Callable[[], bool]) -> None:
        """Turn dropout on."""
        self.network.train()

    @property
    def steps_done(self) -> int:
        """Training mails so far."""
        return self.mails_seen

    @property
    def has_converged(self) -> bool:
        """Whether validation has stopped improving."""
        return self.finished or self.has_stalled

    def iterate(self, progress: float) -> dict[str, Tensor | float]:
        """Take the updates of an iteration, or the remaining ones."""
        sums = torch.zeros(3, device=self.device)
        end = min(self.updates_done + self.updates_per_iteration, self.total_updates)
        taken = end - self.updates_done
        weights, outcome = self.class_weights.to(self.device), self.train_mails.outcome.to(self.device)
        while self.updates_done < end:
            rows = self.batches(self.updates_done // self.updates_per_epoch)[self.updates_done % self.updates_per_epoch]
            ids, mask = pad_batch([self.train_ids[i] for i in rows], self.classifier.tokenizer.pad_token_id)
            loss, auxiliary = self.loss(ids.to(self.device), mask.to(self.device), outcome[rows], weights)
            share = linear_with_warmup(self.updates_done, self.total_updates, self.warmup_share, self.final_lr_share)
            self.optimizer.param_groups[0]["lr"] = self.lr * share
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            self.optimizer.step()
            sums += torch.stack((loss.detach(), norm.detach(), auxiliary.detach()))
            self.updates_done, self.mails_seen = self.updates_done + 1, self.mails_seen + len(rows)
        return {
            "losses/total": sums[0] / taken,
            "losses/grad_norm": sums[1] / taken,
            "losses/overlap": sums[2] / taken,
            "charts/learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def loss(self, ids: Tensor, attention_mask: Tensor, outcome: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the auxiliary task's loss without its weight."""
        found = self.network(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
        loss = nn.functional.cross_entropy(found.logits.float(), outcome, weight=weights)
        if not self.encoder.overlap_weight or self.input == "text":
            return loss, torch.zeros_like(loss)
        # The states before the last layer, so that the last layer can use what the auxiliary task has learned.
        logits = self.overlap_head(found.hidden_states[-2])[..., 0].float()
        auxiliary = overlap_loss(logits, ids, attention_mask, self.classifier.tokenizer)
        return loss + self.encoder.overlap_weight * auxiliary, auxiliary

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch's batches."""
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            lengths = [len(row) for row in self.train_ids]
            self._epoch = epoch
            self._batches = bucketed_batches(lengths, self.batch_size, self.bucket_batches, generator)
        return self._batches

    # ── validation and calibration ──────────────────────────────────────────────────────────────────────────────────
    def valid_logits(self) -> Tensor:
        """Return logits of the validation mails, without the shift by class weights."""
        return self.classifier.logits(self.valid_ids) - (0 if self.finished else self.class_weights.log())

    def validate(self) -> dict[str, float]:
        """Score the model on the validation mails."""
        p, outcome = self.valid_logits().softmax(1), self.valid_mails.outcome
        return {
            "validation/log_loss": (self.valid_weight * log_losses(p, outcome)).sum().item(),
            "validation/accuracy": (self.valid_weight * (p.argmax(1) == outcome)).sum().item(),
        }

    def observe_validation(self, metrics: dict[str, float]) -> None:
        """Keep the best weights so far; note where there were none for `patience` steps."""
        loss = metrics["validation/log_loss"]
        self.has_stalled = self.updates_done - self.best_at >= self.patience
        if loss < self.best_loss:
            self.best_loss, self.best_at, self.has_stalled = loss, self.updates_done, False
            self.best = {name: x.detach().cpu().clone() for name, x in self.network.state_dict().items()}

    def finish(self) -> None:
        """Take the best weights and fold class weights and temperature into the last layer."""
        if self.finished:
            return
        if self.best is None:
            raise ValueError(
                f"algo.encoder.lr: {self.lr}: training diverged, no evaluation gave a finite log-loss; "
                "expected a lower one"
            )
        self.network.load_state_dict(self.best)
        self.temperature = fit_temperature(self.valid_logits(), self.valid_mails.outcome, self.valid_weight)
        with torch.no_grad():
            self.output_layer.bias.sub_(self.class_weights.log().to(self.output_layer.bias.device)).div_(
                self.temperature
            )
            self.output_layer.weight.div_(self.temperature)
        self.finished, self.best = True, None

    def probabilities(self, mails: Mails) -> Tensor:
        """Return P(outcome) [N, 3] of the finished model."""
        return self.classifier.probabilities(mails.contexts, mails.texts)

    def train_with_input(self, input: str) -> OutcomeTraining:
        """Train the same model from the start with another input, without logging."""
        other = type(self)(self.env, self.seed, **{**self.settings, "input": input})
        self.accelerate_inner(other)
        TrainingLoop(other, NullLogger(), validate=other.validate).run()
        return other

    def export(self, directory: Path) -> None:
        """Write the model into its folder in a directory."""
        checkpoint.atomic_folder(directory / REWARD_MODEL_FOLDER, self.export_model)

    def export_model(self, folder: Path) -> None:
        """Write the model and its tokenizer in transformers' format, and which mails the model has learnt from."""
        export_outcome_model(self.classifier, folder)
