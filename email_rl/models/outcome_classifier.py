"""A trained reward model at work: probabilities of outcomes for any mails."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from email_rl.data.mails import OUTCOMES
from email_rl.models.encoders import padded, tokens
from email_rl.models.hf_io import describe, export, restore

FOLDER = "reward_model"  # beside checkpoint.pt; transformers loads it, and so does Scorer


def worth(p: Tensor, values: Tensor, kind: str) -> Tensor:
    """Return what mails with these outcome probabilities [N, K] are worth [N]: `expected`, or of the likeliest outcome (`argmax`)."""
    return p @ values if kind == "expected" else values[p.argmax(1)]


class Scorer:
    """A network with its tokenizer: probabilities of outcomes for mails."""

    def __init__(self, model: nn.Module, tokenizer, device: torch.device, batch_size: int):
        self.model, self.tokenizer, self.device, self.batch_size = model.to(device).eval(), tokenizer, device, batch_size

    @staticmethod
    def load(folder: Path | str, device: torch.device, batch_size: int) -> Scorer:
        """Read what a run left in its folder `reward_model`."""
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder}: no reward model; expected a folder with config.json, weights and tokenizer")
        return Scorer(AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder),
                      device, batch_size)

    def ids(self, contexts: list[str], texts: list[str]) -> list[list[int]]:
        """Return the tokens of what the model reads: context and text, or the text only."""
        return tokens(self.tokenizer, contexts if self.model.config.reads_context else None, texts)

    def logits(self, ids: list[list[int]]) -> Tensor:
        """Return logits [N, 3] on the CPU, in the order given; mails of like length are read together."""
        was, out = self.model.training, torch.zeros(len(ids), len(OUTCOMES))
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        self.model.eval()
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                rows = order[start:start + self.batch_size]
                x, mask = padded([ids[i] for i in rows], self.tokenizer.pad_token_id)
                out[rows] = self.model(input_ids=x.to(self.device), attention_mask=mask.to(self.device)).logits.float().cpu()
        self.model.train(was)
        return out

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3] of mails in their contexts."""
        return self.logits(self.ids(contexts, texts)).softmax(1)

    def export(self, folder: Path) -> None:
        """Write network and tokenizer as transformers does."""
        export(folder, self.model, self.tokenizer)

    def pack(self) -> dict:
        """Lay everything out for a checkpoint."""
        return {"files": describe(self.model, self.tokenizer), "weights": self.model.state_dict()}

    @staticmethod
    def unpack(state: dict, device: torch.device, batch_size: int) -> Scorer:
        """Restore what `pack` gave."""
        model, tokenizer = restore(state["files"], AutoModelForSequenceClassification)
        model.load_state_dict(state["weights"])
        return Scorer(model, tokenizer, device, batch_size)
