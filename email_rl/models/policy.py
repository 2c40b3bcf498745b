"""A language model that writes mails for contexts, and computes the probability of a mail."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from email_rl.models.generation import (
    attention_mask,
    causal_mask,
    generate,
    new_decoder,
    position_ids,
    response_mask,
    warp_logits,
)
from email_rl.models.hf_io import describe, export, restore
from email_rl.models.tokenized_mails import TokenizedMails, TokenStatistics

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for bytes that are no character


class LanguageModelPolicy(nn.Module):
    """A causal language model with a value head on its trunk, its tokenizer, and how a context becomes a prompt.

    `prompt_template` has {context}; a prompt is padded, or its beginning cut, to `prompt_tokens`; a mail has at most
    `response_tokens`, its stop token included. Log-probabilities are those of the distribution at `temperature`.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_template: str,
        prompt_tokens: int,
        response_tokens: int,
        temperature: float,
        precision: str,
    ):
        super().__init__()
        if "{context}" not in prompt_template:
            raise ValueError(
                f"algo.generation.prompt_template: expected a text with {{context}}, got '{prompt_template}'"
            )
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"algo.generation.precision: expected auto, float32 or bfloat16, got '{precision}'")
        if tokenizer.eos_token_id is None:
            raise ValueError("algo.language_model: its tokenizer has no end-of-text token, by which a mail could stop")
        room = getattr(language_model.config, "max_position_embeddings", prompt_tokens + response_tokens)
        if prompt_tokens + response_tokens > room:
            raise ValueError(
                f"algo.generation: prompt_tokens {prompt_tokens} + response_tokens {response_tokens}: expected at "
                f"most {room}, the positions of algo.language_model"
            )
        self.language_model, self.tokenizer, self.stop_token = language_model, tokenizer, tokenizer.eos_token_id
        self.prompt_template, self.prompt_tokens, self.response_tokens = prompt_template, prompt_tokens, response_tokens
        self.temperature, self.precision = temperature, precision
        self.settings = {
            "prompt_template": prompt_template,
            "prompt_tokens": prompt_tokens,
            "response_tokens": response_tokens,
            "temperature": temperature,
            "precision": precision,
        }
        self.make_decoder = new_decoder  # a backend may put an equal, faster function here
        self.value_head = nn.Linear(language_model.get_output_embeddings().weight.shape[1], 1)
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)
        remove_dropout(language_model)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.value_head.weight.device

    # ── text to tokens and back ─────────────────────────────────────────────────────────────────────────────────────
    def tokenize_prompts(self, contexts: list[str]) -> tuple[Tensor, Tensor]:
        """Return prompts, padded on the left: ids and mask [P, Q]. Only the mask tells padding from tokens."""
        rows = [row[-self.prompt_tokens :] for row in self.full_prompts(contexts)]
        ids = torch.tensor([[0] * (self.prompt_tokens - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (self.prompt_tokens - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.device), mask.to(self.device)

    def full_prompts(self, contexts: list[str]) -> list[list[int]]:
        """Return the tokens of prompts at their full length.

        Raises ValueError where a context holds a control token: inside a prompt it would end or start a text.
        """
        self._refuse_control_tokens(contexts, "context")
        prompts = [self.prompt_template.replace("{context}", context) for context in contexts]
        return self.tokenizer(prompts, add_special_tokens=False)["input_ids"]

    def _refuse_control_tokens(self, texts: list[str], kind: str) -> None:
        tokens = self.tokenizer.all_special_tokens
        for text in texts:
            for token in tokens:
                if token in text:
                    raise ValueError(
                        f"{kind} '{' '.join(text.split())[:60]}': expected no '{token}', which is a control token of "
                        "the language model"
                    )

    def tokenize_responses(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of mails, the stop token last; raise ValueError where a mail holds a control token."""
        self._refuse_control_tokens(texts, "e-mail")
        return [row + [self.stop_token] for row in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def decode(self, response: Tensor, response_mask: Tensor) -> list[str]:
        """Return the texts of mails [B, R] up to their stop token.

        Bytes that make no whole character, as where a mail was cut within one, are left out.
        """
        kept = (response_mask & (response != self.stop_token)).cpu()
        return [
            text.replace(BROKEN, "").strip()
            for text in self.tokenizer.batch_decode(
                [row[keep].tolist() for row, keep in zip(response.cpu(), kept)], clean_up_tokenization_spaces=False
            )
        ]

    def has_ended(self, mails: TokenizedMails) -> Tensor:
        """Tell which mails have a stop token, bool [B]."""
        return ((mails.response == self.stop_token) & mails.response_mask).any(1)

    # ── how likely a mail is ────────────────────────────────────────────────────────────────────────────────────────
    def forward(self, mails: TokenizedMails, entropy: bool = False) -> TokenStatistics:
        """Compute token statistics of mails [B, R]; the entropy, which costs a pass over the vocabulary, on demand."""
        ids = torch.cat((mails.prompt, mails.response), 1)
        mask = torch.cat((mails.prompt_mask, mails.response_mask.to(mails.prompt_mask.dtype)), 1)
        first = mails.prompt.shape[1] - 1
        before = torch.arange(first, first + mails.response.shape[1], device=ids.device)  # the token before each
        with self.autocast():  # the mask whole: of one [B, L] transformers asks the host whether all of it is 1
            # by the whole model and not by its parts, because some families scale or cap the logits
            found = self.language_model(
                input_ids=ids,
                attention_mask=attention_mask(causal_mask(mask, mask.shape[1]), self.language_model),
                position_ids=position_ids(mask),
                use_cache=False,
                output_hidden_states=True,
                logits_to_keep=before,
            )
        hidden = found.hidden_states[-1][:, before]
        logits = warp_logits(found.logits.float(), self.temperature, 0, 1.0)
        normalizer = logits.logsumexp(-1)
        log_prob = logits.gather(-1, mails.response[..., None])[..., 0] - normalizer
        token_entropy = (
            normalizer - ((logits - normalizer[..., None]).exp() * logits).sum(-1)
            if entropy
            else torch.zeros_like(log_prob)
        )
        return TokenStatistics(log_prob, self.value_head(hidden.float())[..., 0], token_entropy)

    @torch.no_grad()
    def token_statistics(
        self, mails: TokenizedMails, batch_size: int, entropy: bool = False, forward: Callable | None = None
    ) -> TokenStatistics:
        """Compute token statistics of mails [B, R] in batches of like length, without a gradient.

        The statistics are 0 after the longest mail of a batch. `forward` replaces this class's own call by an equal
        one, such as a recorded one.
        """
        statistics = TokenStatistics(*torch.zeros(3, *mails.response.shape, device=self.device))
        everyone = torch.arange(len(mails.prompt), device=self.device)
        for rows, bucket in mails.length_buckets(everyone, batch_size):
            for whole, part in zip(statistics, (forward or LanguageModelPolicy.__call__)(self, bucket, entropy)):
                whole[rows, : part.shape[1]] = part
        return statistics

    def autocast(self):
        """Compute in bfloat16 (`auto`: on a GPU that has it); weights stay float32.

        Casts of weights are not cached, because a recording would read them after the context's end.
        """
        bf16 = self.precision == "bfloat16" or (
            self.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()

    # ── generation ──────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def generate(
        self,
        contexts: list[str],
        samples: int,
        generator: torch.Generator,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        batch_size: int,
    ) -> tuple[TokenizedMails, list[str]]:
        """Sample `samples` mails for each context, as tokens and as texts, in the order of the contexts."""
        batches, texts = [], []
        contexts_per_batch = max(1, batch_size // samples)
        u = torch.rand(len(contexts) * samples, self.response_tokens, generator=generator, device=self.device)
        for start in range(0, len(contexts), contexts_per_batch):
            batch = contexts[start : start + contexts_per_batch]
            prompt, prompt_mask = self.tokenize_prompts(batch)
            with self.autocast():
                response = self.sample_responses(
                    prompt,
                    prompt_mask,
                    u[start * samples : (start + len(batch)) * samples].T,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                )
            own = response_mask(response, self.stop_token)
            batches.append(
                TokenizedMails(
                    prompt.repeat_interleave(samples, 0), prompt_mask.repeat_interleave(samples, 0), response, own
                )
            )
            texts += self.decode(response, own)
        mails = TokenizedMails(*map(torch.cat, zip(*batches)))
        longest = -(-int(mails.response_mask.sum(1).max()) // 8) * 8  # tokens after the longest mail are not used
        return mails.cut(longest), texts

    def sample_responses(self, prompt: Tensor, prompt_mask: Tensor, u: Tensor, **sampling) -> Tensor:
        """Sample mails [B, R] for prompts [P, Q] from uniforms [R, B] (email_rl/models/generation.py)."""
        return generate(self.language_model, prompt, prompt_mask, u, make_decoder=self.make_decoder, **sampling)

    # ── to and from disk ────────────────────────────────────────────────────────────────────────────────────────────
    def pack(self) -> dict:
        """Lay everything out for a checkpoint."""
        return {
            "files": describe(self.language_model, self.tokenizer),
            "weights": self.state_dict(),
            "settings": self.settings,
        }

    @staticmethod
    def unpack(state: dict) -> LanguageModelPolicy:
        """Restore the result of `pack`."""
        policy = LanguageModelPolicy(*restore(state["files"], AutoModelForCausalLM), **state["settings"])
        policy.load_state_dict(state["weights"])
        return policy

    def export(self, folder: Path) -> None:
        """Write language model and tokenizer in transformers' format; the value head is for training only.

        config.json has the prompt's template as `prompt_template`, with {context}, and generation_config.json how mails
        are sampled: transformers alone then writes them (docs/emails.md).
        """
        self.language_model.config.prompt_template = self.prompt_template
        self.language_model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.response_tokens,
            bos_token_id=self.language_model.config.bos_token_id,
            eos_token_id=self.stop_token,
            pad_token_id=self.stop_token,
        )
        export(folder, self.language_model, self.tokenizer)


def remove_dropout(network: nn.Module) -> None:
    """Set every rate of dropout to 0, because with dropout a ratio would differ from 1 before the first update.

    Some families keep the rate as a number of a layer (`dropout`, `attention_dropout`, `layerdrop` …).
    """
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
