"""What scores mails: a contract, and reading any model of outcomes from a folder or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from email_rl.data.learnt_mails import LearntMails
from email_rl.models import bag_of_words
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.encoders import cut_inputs
from email_rl.models.outcome_classifier import OutcomeClassifier


class OutcomePredictor(Protocol):
    """What predicts outcomes."""

    reads_context: bool  #: False: a text is worth the same in all contexts

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3] of mails in their contexts."""


class OutcomeModel(OutcomePredictor, Protocol):
    """A trained model of outcomes: a network (OutcomeClassifier) or a bag of words."""

    learnt: LearntMails | None  #: the mails that it has learnt from; None: unknown, as of a user's own classifier

    def export(self, folder: Path) -> None:
        """Write the model alone into a folder."""

    def pack(self) -> dict:
        """Lay the model alone out for a checkpoint."""


def export_outcome_model(model: OutcomeModel, folder: Path) -> None:
    """Write a model, and which mails it has learnt from, into a folder, which `load_outcome_model` reads."""
    model.export(folder)
    if model.learnt:
        model.learnt.save(folder)


def load_outcome_model(folder: Path | str, device: torch.device, batch_size: int) -> OutcomeModel:
    """Read the folder of a reward model: of a run's, or of a classifier that transformers saved."""
    is_bag = (Path(folder) / bag_of_words.FILE).is_file()
    model: OutcomeModel = (
        BagOfWords.load(Path(folder)) if is_bag else OutcomeClassifier.load(folder, device, batch_size)
    )
    model.learnt = LearntMails.load(Path(folder))
    return model


def cut_mails(model: OutcomePredictor, contexts: list[str], texts: list[str]) -> int:
    """Count the mails of which a model does not read the end; a bag of words reads all."""
    if not isinstance(model, OutcomeClassifier):
        return 0
    ids = model.token_ids(contexts, texts)
    return cut_inputs(model.tokenizer, contexts if model.reads_context else None, texts, ids)


def pack_outcome_model(model: OutcomeModel) -> dict:
    """Lay a model, and which mails it has learnt from, out for a checkpoint, which `unpack_outcome_model` reads."""
    return {**model.pack(), "learnt": model.learnt and model.learnt.pack()}


def unpack_outcome_model(state: dict, device: torch.device, batch_size: int) -> OutcomeModel:
    """Restore the result of `pack_outcome_model`."""
    is_bag = "known_words" in state
    model: OutcomeModel = BagOfWords.unpack(state) if is_bag else OutcomeClassifier.unpack(state, device, batch_size)
    model.learnt = LearntMails.unpack(state["learnt"]) if state["learnt"] else None
    return model
