"""A trained reward model: probabilities of outcomes for any mails."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import OUTCOMES
from email_rl.models.encoders import OFFSET_POSITIONS, pad_batch, tokenize
from email_rl.models.hf_io import describe, export, from_folder, restore

REWARD_MODEL_FOLDER = "reward_model"  # beside checkpoint.pt; transformers loads it, and so does OutcomeClassifier


def outcome_reward(p: Tensor, values: Tensor, kind: str) -> Tensor:
    """Return the reward [N] of mails by their outcome probabilities p [N, K] and the outcomes' values [K].

    `kind` is `expected`, Σ p·value, or `argmax`, the value of the likeliest outcome.
    """
    return p @ values if kind == "expected" else values[p.argmax(1)]


def _check_labels(labels: dict[int, str], folder: Path | str) -> None:
    """Raise ValueError where a classifier names other classes than the outcomes, or names them in another order.

    The names LABEL_0, LABEL_1 …, which transformers gives classes without names, stand for any.
    """
    names = [" ".join(labels[k].lower().replace("_", " ").replace("-", " ").split()) for k in range(len(OUTCOMES))]
    if names not in (list(OUTCOMES), [f"label {k}" for k in range(len(OUTCOMES))]):
        raise ValueError(
            f"{folder}: config.json, id2label: expected the classes {', '.join(OUTCOMES)} in this order (or LABEL_0, "
            f"LABEL_1, LABEL_2, where they are these), got {', '.join(labels[k] for k in range(len(OUTCOMES)))}"
        )


class OutcomeClassifier:
    """A network with its tokenizer: probabilities of outcomes for mails."""

    learnt: LearntMails | None = None  #: the mails that it has learnt from; None: unknown

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device, batch_size: int
    ):
        # transformers wraps Module.to in a way that loses `self`
        self.model: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        # A classifier of another project reads the text alone, unless its config.json says reads_context: true.
        self.reads_context = bool(model.config.to_dict().get("reads_context", False))
        self.device, self.batch_size = device, batch_size

    @staticmethod
    def load(folder: Path | str, device: torch.device, batch_size: int) -> OutcomeClassifier:
        """Read the folder `reward_model` of a run."""
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder}: no reward model; expected a folder with config.json, weights and tokenizer")
        model, tokenizer = from_folder(
            str(folder),
            "algo.reward_model_folder",
            lambda path: (
                AutoModelForSequenceClassification.from_pretrained(path, dtype="float32", trust_remote_code=False),
                AutoTokenizer.from_pretrained(path, trust_remote_code=False),
            ),
            "classifier",
        )
        if model.config.num_labels != len(OUTCOMES):
            raise ValueError(
                f"{folder}: a classifier of {model.config.num_labels} classes; expected {len(OUTCOMES)}: "
                f"{', '.join(OUTCOMES)}"
            )
        _check_labels(model.config.id2label, folder)
        if tokenizer.pad_token_id is None:
            raise ValueError(f"{folder}: its tokenizer has no padding token; expected an encoder such as DistilBERT")
        # A tokenizer that was saved without a limit reads as many tokens as the network has positions.
        positions = model.config.to_dict().get("max_position_embeddings") or tokenizer.model_max_length
        offset = model.config.pad_token_id + 1 if model.config.model_type in OFFSET_POSITIONS else 0
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - offset)
        return OutcomeClassifier(model, tokenizer, device, batch_size)

    def token_ids(self, contexts: list[str], texts: list[str]) -> list[list[int]]:
        """Return the tokens of the model's input: context and text, or the text only."""
        return tokenize(self.tokenizer, contexts if self.reads_context else None, texts)

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
