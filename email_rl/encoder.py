"""The reward model's network and tokenizer: DistilBERT with random weights, from a local folder, or from the hub."""
from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig,
                          DistilBertForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast)

from transformers.utils import logging

from email_rl.data import OUTCOMES

logging.disable_progress_bar()  # of reading and writing weights: the run has its own line

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = {"num_labels": len(OUTCOMES), "id2label": dict(enumerate(OUTCOMES)),
          "label2id": {name: i for i, name in enumerate(OUTCOMES)}}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A small DistilBERT with random weights, and a word-piece vocabulary trained on the mails."""

    vocabulary: int
    dim: int
    layers: int
    heads: int
    hidden: int
    dropout: float
    max_length: int  # tokens of context and text together
    lr: float
    epochs: int
    batch_size: int

    def build(self, texts: list[str]) -> tuple[DistilBertForSequenceClassification, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and train the tokenizer."""
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
            vocab_size=self.vocabulary, special_tokens=list(SPECIAL), show_progress=False))
        cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:0 [SEP]:0", special_tokens=[("[CLS]", cls), ("[SEP]", sep)])
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            mask_token="[MASK]", model_max_length=self.max_length, model_input_names=["input_ids", "attention_mask"])
        model = DistilBertForSequenceClassification(DistilBertConfig(
            vocab_size=len(fast), dim=self.dim, n_layers=self.layers, n_heads=self.heads, hidden_dim=self.hidden,
            dropout=self.dropout, attention_dropout=self.dropout, seq_classif_dropout=self.dropout,
            max_position_embeddings=self.max_length, pad_token_id=fast.pad_token_id, **LABELS))
        return model, fast


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A pretrained encoder by its name on the model hub."""

    name: str
    max_length: int
    lr: float
    epochs: int
    batch_size: int

    def build(self, texts: list[str]) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
        """Download or find in the cache; raise ValueError, in one line, where neither works."""
        try:
            return _pretrained(self.name, self.max_length)
        except Exception as error:  # whatever the hub's client raises, the user needs the same line
            raise ValueError(
                f"algo.rm.name: '{self.name}' can't be had from the model hub ({type(error).__name__}): go online, or take "
                "algo/rm=local algo.rm.path=FOLDER (saved weights) or algo/rm=distilbert_tiny (nothing to download)"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Local:
    """An encoder that `save_pretrained` left in a folder."""

    path: str | None
    max_length: int
    lr: float
    epochs: int
    batch_size: int

    def build(self, texts: list[str]) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
        """Read the folder; raise ValueError where it holds no such model."""
        if not self.path or not (Path(self.path) / "config.json").is_file():
            raise ValueError(f"algo.rm.path: expected a folder with config.json, weights and tokenizer, got '{self.path}'")
        try:
            return _pretrained(self.path, self.max_length)
        except Exception as error:
            raise ValueError(f"algo.rm.path: '{self.path}' is no classifier that transformers can load: "
                             f"{str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


def _pretrained(name: str, max_length: int) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = max_length
    return AutoModelForSequenceClassification.from_pretrained(name, **LABELS), tokenizer


def describe(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return all of a network and its tokenizer but the weights: text files by name."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def restore(files: dict[str, str]) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Rebuild, with random weights, what `describe` returned."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_text(content, encoding="utf-8")
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForSequenceClassification.from_config(config), AutoTokenizer.from_pretrained(folder)


def tokens(tokenizer: PreTrainedTokenizerBase, contexts: list[str] | None, texts: list[str]) -> list[list[int]]:
    """Return each input's token ids: [CLS] text [SEP], or [CLS] context [SEP] text [SEP]."""
    pairs = (texts,) if contexts is None else (contexts, texts)
    return tokenizer(*pairs, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]


def padded(ids: list[list[int]], pad: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 [B, L]; L is rounded up, so that few shapes occur."""
    length = -(-max(map(len, ids)) // multiple) * multiple
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return torch.tensor([row + [pad] * (length - len(row)) for row in ids]), mask
