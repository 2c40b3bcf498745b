"""A trainer of mails that takes milliseconds: a language model of eight words, a reward model that reads them off."""

from __future__ import annotations

import torch
from hydra.utils import instantiate
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from configs import composed
from email_rl.models.policy import LanguageModelPolicy
from rlcore.backends.accelerate import accelerate
from rlcore.runs.logger import NullLogger
from rlcore.training_loop import TrainingLoop

WORDS = ["<stop>", "a", "b", "c", "d", "e", "f", "g"]
GENERATION = {
    "prompt_template": "{context}",
    "prompt_tokens": 4,
    "response_tokens": 6,
    "temperature": 1.0,
    "precision": "float32",
}


def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<stop>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<stop>")


def language_model(kind="gpt2", dropout=0.1, places=16):
    torch.manual_seed(0)
    if kind == "gpt2":  # with dropout, as the hub's has it: the policy must take it out
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=8,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=places,
                bos_token_id=0,
                eos_token_id=0,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def policy(kind="gpt2", **changes):
    return LanguageModelPolicy(language_model(kind), tokenizer(), **{**GENERATION, **changes})


class Taste:
    """A reward model by rule: P(conversion) is the share of a mail's words that are `b`."""

    learnt = None

    def probabilities(self, contexts, texts):
        share = torch.tensor([text.split().count("b") / max(1, len(text.split())) for text in texts])
        return torch.stack((1 - share, torch.zeros_like(share), share), 1)


class Market:
    """The parts of a dataset that the loop needs: contexts and values."""

    class train:
        contexts = ["a", "a c", "d e f"]

    test = train
    name, digest = "three contexts", "their digest"

    device = torch.device("cpu")
    outcome_values = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def train(algorithm, **how):
    """Run an algorithm in the loop, without a log."""
    TrainingLoop(algorithm, NullLogger(), **how).run()


def trainer(*overrides, kind="gpt2", seed=0, reward_model=None, mode="eager"):
    """A trainer of a tiny policy, against Taste, without an environment of mails."""
    cfg = composed(
        "env=email",
        "algo=ppo_kl",
        "algo.mails_per_iteration=32",
        "algo.micro_batch_size=32",
        "algo.generation.prompt_tokens=4",
        "algo.generation.response_tokens=6",
        "algo.generation.prompt_template='{context}'",
        "algo.generation.precision=float32",
        *overrides,
    )
    made = accelerate(instantiate(cfg.algo, _convert_="all")(Market(), seed), mode)
    made.set_models(policy(kind, precision=cfg.algo.generation.precision).to(Market.device), reward_model or Taste())
    return made
