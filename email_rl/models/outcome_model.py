"""What scores mails: a contract, and reading any model of outcomes from a folder or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from email_rl.models import bag_of_words
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_classifier import OutcomeClassifier


class OutcomePredictor(Protocol):
    """What predicts outcomes."""

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3] of mails in their contexts."""


class OutcomeModel(OutcomePredictor, Protocol):
    """A trained model of outcomes: a network (OutcomeClassifier) or a bag of words."""

    def export(self, folder: Path) -> None:
        """Write the model into a folder, which `load_outcome_model` reads."""

    def pack(self) -> dict:
        """Lay the model out for a checkpoint, which `unpack_outcome_model` reads."""


def load_outcome_model(folder: Path | str, device: torch.device, batch_size: int) -> OutcomeModel:
    """Read the folder of a reward model: of a run's, or of a classifier that transformers saved."""
    if (Path(folder) / bag_of_words.FILE).is_file():
        return BagOfWords.load(Path(folder))
    return OutcomeClassifier.load(folder, device, batch_size)


def unpack_outcome_model(state: dict, device: torch.device, batch_size: int) -> OutcomeModel:
    """Restore the result of `pack`."""
    if "known_words" in state:
        return BagOfWords.unpack(state)
    return OutcomeClassifier.unpack(state, device, batch_size)
