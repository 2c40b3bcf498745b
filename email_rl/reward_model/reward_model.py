"""The reward model: a trained and calibrated outcome classifier that can be resumed, and refreshed with new mails."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import Mails
from email_rl.models.hf_io import restore
from email_rl.reward_model.outcome_training import OutcomeTraining
from email_rl.reward_model.refresh import pack_splits, unpack_splits, with_replay, without_crossing

PROGRESS = ("iteration", "updates_done", "best_at", "has_stalled", "finished", "best_loss", "best", "temperature")


class RewardModel(OutcomeTraining):
    """An outcome classifier in training; a finished one is refreshed when it resumes with new mails.

    A refresh trains the model on the new mails and on a replay of the old ones, and keeps the better of the models
    before and after.
    """

    old_splits: dict[str, Mails] | None = None  #: in a refresh: the splits that the model had been trained on
    before_refresh: dict[str, Tensor] | None = None  #: in a refresh: the old model's probabilities of test mails
    _packed_mails: dict | None = None
    _new_splits: dict[str, Mails] | None = None

    def state_dict(self) -> dict:
        """Return everything that a resumed run needs to continue exactly, and the mails that a refresh replays."""
        if self._packed_mails is None:
            self._packed_mails = pack_splits(self.new_splits(), self.old_splits)
        return {
            "files": self.files,
            "classifier": self.network.state_dict(),
            "overlap_head": self.overlap_head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in PROGRESS},
            "mails_seen": self.mails_seen,
            "input": self.input,
            "digest": self.digest,
            "mails": self._packed_mails,
            "refreshed": self.old_splits is not None,
            "before_refresh": self.before_refresh,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def new_splits(self) -> dict[str, Mails]:
        """Return the dataset's splits; in a refresh, without old mails and near-duplicates of another old side's."""
        if self.old_splits is None:
            return self.env.splits
        if self._new_splits is None:
            self._new_splits = without_crossing(self.env.splits, self.old_splits, self.env.groups)
        return self._new_splits

    def load_policy(self, state: dict) -> None:
        """Restore the part that predictions need."""
        self._set_network(*restore(state["files"], AutoModelForSequenceClassification))
        self.network.load_state_dict(state["classifier"])
        self._packed_mails = None
        self.input, self.finished, self.temperature = state["input"], state["finished"], state["temperature"]
        self._set_mails(self.env.train, [self.env.valid], self.encoder.lr, self.encoder.steps)

    def load_state_dict(self, state: dict) -> None:
        """Continue a run on these mails, or refresh a finished model with them."""
        if state["input"] != self.input:
            raise ValueError(f"algo.input: the checkpoint's is '{state['input']}', got '{self.input}'")
        mails = unpack_splits(state["mails"])
        self.load_policy(state)
        self.overlap_head.load_state_dict(state["overlap_head"])
        self.mails_seen = state["mails_seen"]
        if state["digest"] == self.digest:
            self._resume(state, mails["old"] if state["refreshed"] else None)
        else:
            if not state["finished"]:
                raise ValueError("resume: that run had not finished: go on with its own env.data first, then refresh")
            self._refresh({name: mails["old"][name] + mails["new"][name] for name in mails["new"]})

    def _resume(self, state: dict, old_splits: dict[str, Mails] | None) -> None:
        self.old_splits, self._new_splits, self.before_refresh = old_splits, None, state["before_refresh"]
        if old_splits:
            self._mix(old_splits)
        self.optimizer.load_state_dict(state["optimizer"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.device)

    def _refresh(self, old_splits: dict[str, Mails]) -> None:
        self.old_splits, self._new_splits, self.finished, self.temperature = old_splits, None, False, 1.0
        new = self.new_splits()
        dropped = sum(map(len, self.env.splits.values())) - sum(map(len, new.values()))
        self._mix(old_splits)
        self.before_refresh = {"old": self.probabilities(old_splits["test"]), "new": self.probabilities(new["test"])}
        print(
            f"refresh: {len(new['train']):,} new mails to learn from, {len(self.train_mails) - len(new['train']):,} "
            f"old ones again; {dropped} new mails left out: old ones, and near-duplicates of another old side's",
            file=sys.stderr,
        )
        with torch.no_grad():  # training includes the class weights that finish() removes
            self.output_layer.bias.add_(self.class_weights.log().to(self.output_layer.bias.device))
        self.observe_validation(self.validate())  # the weights before the refresh may stay the best

    def _mix(self, old_splits: dict[str, Mails]) -> None:
        """Train on the new mails and a replay of old ones; validate on old and new mails with equal weight."""
        new = self.new_splits()
        for name, mails in new.items():
            if not len(mails):
                raise ValueError(
                    f"{self.env.name}: nothing new for {name}: its mails are the checkpoint's, or near-duplicates of "
                    "another side's"
                )
        self._packed_mails = None
        train = with_replay(new["train"], old_splits["train"], self.refresh["replay_ratio"], self.seed)
        self._set_mails(
            train,
            [new["valid"], old_splits["valid"]],
            self.refresh["lr_share"] * self.encoder.lr,
            self.refresh["steps"],
        )
        # the replay is a part of the old mails, and the model has learnt from all of them
        learnt = LearntMails.of(new["train"] + old_splits["train"], self.valid_mails)
        self.classifier.learnt = learnt.joined(self.encoder.learnt)
