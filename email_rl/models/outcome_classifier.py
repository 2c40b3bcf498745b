"""A trained reward model: probabilities of outcomes for any mails."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from email_rl.data.mails import OUTCOMES
from email_rl.models.encoders import pad_batch, tokenize
from email_rl.models.hf_io import describe, export, restore

REWARD_MODEL_FOLDER = "reward_model"  # beside checkpoint.pt; transformers loads it, and so does OutcomeClassifier


def outcome_reward(p: Tensor, values: Tensor, kind: str) -> Tensor:
    """Return the reward [N] of mails by their outcome probabilities p [N, K] and the outcomes' values [K].

    `kind` is `expected`, Σ p·value, or `argmax`, the value of the likeliest outcome.
    """
    return p @ values if kind == "expected" else values[p.argmax(1)]


class OutcomeClassifier:
    """A network with its tokenizer: probabilities of outcomes for mails."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device, batch_size: int
    ):
        # transformers wraps Module.to in a way that loses `self`
        self.model: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.device, self.batch_size = device, batch_size

    @staticmethod
    def load(folder: Path | str, device: torch.device, batch_size: int) -> OutcomeClassifier:
        """Read the folder `reward_model` of a run."""
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder}: no reward model; expected a folder with config.json, weights and tokenizer")
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return OutcomeClassifier(model, tokenizer, device, batch_size)

    def token_ids(self, contexts: list[str], texts: list[str]) -> list[list[int]]:
        """Return the tokens of the model's input: context and text, or the text only."""
        return tokenize(self.tokenizer, contexts if self.model.config.reads_context else None, texts)

    def logits(self, ids: list[list[int]]) -> Tensor:
        """Return logits [N, 3] on the CPU, in the order given; mails of like length are read together."""
        was_training, logits = self.model.training, torch.zeros(len(ids), len(OUTCOMES))
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                x, mask = pad_batch([ids[i] for i in rows], self.tokenizer.pad_token_id)
                found = self.model(input_ids=x.to(self.device), attention_mask=mask.to(self.device))
                logits[rows] = found.logits.float().cpu()
        self.model.train(was_training)
        return logits

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3] of mails in their contexts."""
        return self.logits(self.token_ids(contexts, texts)).softmax(1)

    def export(self, folder: Path) -> None:
        """Write network and tokenizer in transformers' format."""
        export(folder, self.model, self.tokenizer)

    def pack(self) -> dict:
        """Lay everything out for a checkpoint."""
        return {"files": describe(self.model, self.tokenizer), "weights": self.model.state_dict()}

    @staticmethod
    def unpack(state: dict, device: torch.device, batch_size: int) -> OutcomeClassifier:
        """Restore the result of `pack`."""
        model, tokenizer = restore(state["files"], AutoModelForSequenceClassification)
        model.load_state_dict(state["weights"])
        return OutcomeClassifier(model, tokenizer, device, batch_size)
