"""The reward model's network and tokenizer: DistilBERT with random weights, from a local folder, or from the hub."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig,
                          DistilBertForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast)

from email_rl.data.mails import OUTCOMES
from email_rl.models.hf_io import from_folder, from_hub

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NORMALIZER, PRE_TOKENIZER = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
LABELS = {"num_labels": len(OUTCOMES), "id2label": dict(enumerate(OUTCOMES)),
          "label2id": {name: i for i, name in enumerate(OUTCOMES)}}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A small DistilBERT with random weights, and a word-piece vocabulary made of the mails' words."""

    vocabulary: int  # tokens at most
    dim: int
    layers: int
    heads: int
    hidden: int
    dropout: float
    max_length: int  # tokens of context and text together
    lr: float
    epochs: int
    batch_size: int
    overlap: float  # weight of the auxiliary task (email_rl/training/reward_model.py)

    def build(self, texts: list[str]) -> tuple[DistilBertForSequenceClassification, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and the tokenizer."""
        tokenizer = Tokenizer(models.WordPiece(vocabulary(texts, self.vocabulary), unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, PRE_TOKENIZER
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
    overlap: float  # weight of the auxiliary task (email_rl/training/reward_model.py)

    def build(self, texts: list[str]) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
        """Download or find in the cache; raise ValueError, in one line, where neither works."""
        return from_hub(self.name, "algo.rm.name", lambda name: _pretrained(name, self.max_length),
                        "algo/rm=local algo.rm.path=FOLDER (saved weights) or algo/rm=distilbert_tiny (nothing to download)")


@dataclass(frozen=True, kw_only=True)
class Local:
    """An encoder that `save_pretrained` left in a folder."""

    path: str | None
    max_length: int
    lr: float
    epochs: int
    batch_size: int
    overlap: float  # weight of the auxiliary task (email_rl/training/reward_model.py)

    def build(self, texts: list[str]) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
        """Read the folder; raise ValueError where it holds no such model."""
        return from_folder(self.path, "algo.rm.path", lambda path: _pretrained(path, self.max_length), "classifier")


def _pretrained(name: str, max_length: int) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = max_length
    return AutoModelForSequenceClassification.from_pretrained(name, **LABELS), tokenizer


def vocabulary(texts: list[str], size: int) -> dict[str, int]:
    """Number special tokens, characters (so that any word can be spelled), and the most frequent words.

    The library's own trainer orders ties by chance: two runs of a seed would differ.
    """
    counts = Counter(word for text in texts for word, _ in PRE_TOKENIZER.pre_tokenize_str(NORMALIZER.normalize_str(text)))
    letters: Counter = Counter()
    for word, n in counts.items():
        letters.update({letter: n * k for letter, k in Counter(word).items()})
    common = [letter for letter, _ in sorted(letters.items(), key=lambda item: (-item[1], item[0]))[:size // 4]]
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    pieces = dict.fromkeys([*SPECIAL, *sorted(common), *("##" + letter for letter in sorted(common)), *words])
    return {piece: i for i, piece in enumerate(list(pieces)[:size])}


def tokens(tokenizer: PreTrainedTokenizerBase, contexts: list[str] | None, texts: list[str]) -> list[list[int]]:
    """Return each input's token ids: [CLS] text [SEP], or [CLS] context [SEP] text [SEP]."""
    pairs = (texts,) if contexts is None else (contexts, texts)
    return tokenizer(*pairs, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]


def dealt(lengths: list[int], size: int, pool: int, generator: torch.Generator) -> list[list[int]]:
    """Deal all rows into batches: shuffled, rows of like length together within `pool` batches."""
    order, batches = torch.randperm(len(lengths), generator=generator).tolist(), []
    for start in range(0, len(order), size * pool):
        rows = sorted(order[start:start + size * pool], key=lengths.__getitem__)
        cut = [rows[k:k + size] for k in range(0, len(rows), size)]
        batches += [cut[k] for k in torch.randperm(len(cut), generator=generator).tolist()]
    return batches


def padded(ids: list[list[int]], pad: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 [B, L]; L is rounded up, so that few shapes occur."""
    length = -(-max(map(len, ids)) // multiple) * multiple
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return torch.tensor([row + [pad] * (length - len(row)) for row in ids]), mask


def in_both(x: Tensor, mask: Tensor, cls: int, sep: int) -> tuple[Tensor, Tensor]:
    """Mark the tokens of [CLS] context [SEP] text [SEP] that the other part has too, and those that count, bool [B, L]."""
    counts = mask.bool() & (x != cls) & (x != sep)
    context = (x == sep).cumsum(1) == 0
    same = (x[:, :, None] == x[:, None, :]) & (context[:, :, None] != context[:, None, :]) & counts[:, None, :]
    return same.any(2) & counts, counts
