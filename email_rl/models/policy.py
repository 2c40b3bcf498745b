"""A language model that writes mails for contexts, and says how likely it was to write one."""
from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from email_rl.models.generation import Memory, alive, generate, positions, sees, warp
from email_rl.models.hf_io import describe, export, restore


class Samples(NamedTuple):
    """B mails as tokens: left-padded prompts [B, Q] with their mask, mails [B, R] with the mask of their own tokens."""

    query: Tensor
    query_mask: Tensor
    response: Tensor
    alive: Tensor

    def alike(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Samples]]:
        """Part the mails `rows` into batches of like length, each cut to its longest prompt and mail (rounded up to eights, so
        that few shapes occur): who reads it pays for little padding. Yields rows and their mails; asks the host once."""
        lengths = torch.stack((self.query_mask.sum(1), self.alive.sum(1)))[:, rows]
        order = lengths.sum(0).argsort(stable=True)
        longest = [(-(-part.amax(1) // 8) * 8).tolist() for part in lengths[:, order].cpu().split(size, 1)]
        for some, (read, wrote) in zip(rows[order].split(size), longest):
            yield some, Samples(self.query[some, -read:], self.query_mask[some, -read:], self.response[some, :wrote],
                                self.alive[some, :wrote])


class Reading(NamedTuple):
    """What a policy thinks of each token of a mail, [B, R]: log-probability, value before it, entropy of the choice (or 0)."""

    log_prob: Tensor
    value: Tensor
    entropy: Tensor


class Policy(nn.Module):
    """A causal LM with a value head on its trunk, its tokenizer, and how a context becomes a prompt.

    `prompt` is a template with {context}; a prompt is padded, or its beginning cut, to `query_tokens`; a mail has at most
    `response_tokens`, its stop token included. Log-probabilities are those of the distribution at `temperature`.
    """

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, prompt: str, query_tokens: int,
                 response_tokens: int, temperature: float, precision: str):
        super().__init__()
        if "{context}" not in prompt:
            raise ValueError(f"algo.writing.prompt: expected a text with {{context}}, got '{prompt}'")
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"algo.writing.precision: expected auto, float32 or bfloat16, got '{precision}'")
        if tokenizer.eos_token_id is None:
            raise ValueError("algo.lm: its tokenizer has no end-of-text token, by which a mail could stop")
        room = getattr(lm.config, "max_position_embeddings", query_tokens + response_tokens)
        if query_tokens + response_tokens > room:
            raise ValueError(f"algo.writing: query_tokens {query_tokens} + response_tokens {response_tokens}: expected at "
                             f"most {room}, the positions of algo.lm")
        self.lm, self.tokenizer, self.stop = lm, tokenizer, tokenizer.eos_token_id
        self.prompt, self.query_tokens, self.response_tokens = prompt, query_tokens, response_tokens
        self.temperature, self.precision, self.mode, self.memory = temperature, precision, "eager", Memory()
        self.value = nn.Linear(lm.config.hidden_size, 1)
        for parameter in self.value.parameters():
            nn.init.zeros_(parameter)
        for module in self.modules():  # or a ratio would differ from 1 before the first update
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.value.weight.device

    # ── text to tokens and back ─────────────────────────────────────────────────────────────────────────────────────
    def queries(self, contexts: list[str]) -> tuple[Tensor, Tensor]:
        """Lay prompts out, padded on the left: ids and mask [P, Q]. Padding is known by the mask alone."""
        rows = [row[-self.query_tokens:] for row in self.prompts(contexts)]
        ids = torch.tensor([[0] * (self.query_tokens - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (self.query_tokens - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.device), mask.to(self.device)

    def prompts(self, contexts: list[str]) -> list[list[int]]:
        """Return the tokens of prompts at their full length."""
        return self.tokenizer([self.prompt.format(context=context) for context in contexts], add_special_tokens=False)["input_ids"]

    def responses(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of mails, the stop token last."""
        return [row + [self.stop] for row in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def texts(self, response: Tensor, own: Tensor) -> list[str]:
        """Read mails [B, R] up to their stop token."""
        kept = (own & (response != self.stop)).cpu()
        return [text.strip() for text in self.tokenizer.batch_decode(
            [row[keep].tolist() for row, keep in zip(response.cpu(), kept)], clean_up_tokenization_spaces=False)]

    def ended(self, samples: Samples) -> Tensor:
        """Tell which mails have a stop token, bool [B]."""
        return ((samples.response == self.stop) & samples.alive).any(1)

    # ── what it thinks ──────────────────────────────────────────────────────────────────────────────────────────────
    def forward(self, samples: Samples, entropy: bool = False) -> Reading:
        """Read mails [B, R]; the entropy, which costs another pass over the vocabulary, on demand."""
        ids = torch.cat((samples.query, samples.response), 1)
        mask = torch.cat((samples.query_mask, samples.alive.to(samples.query_mask.dtype)), 1)
        with self.autocast():  # the mask whole: of one [B, L] transformers asks the host whether all of it is 1
            hidden = self.lm.base_model(input_ids=ids, attention_mask=sees(mask, mask.shape[1])[:, None],
                                        position_ids=positions(mask), use_cache=False).last_hidden_state
            hidden = hidden[:, -samples.response.shape[1] - 1:-1]  # at the token before each of the mail's
            logits = self.lm.get_output_embeddings()(hidden)
        logits = warp(logits.float(), self.temperature, 0, 1.0)
        normalizer = logits.logsumexp(-1)
        log_prob = logits.gather(-1, samples.response[..., None])[..., 0] - normalizer
        spread = (normalizer - ((logits - normalizer[..., None]).exp() * logits).sum(-1) if entropy
                  else torch.zeros_like(log_prob))
        return Reading(log_prob, self.value(hidden.float())[..., 0], spread)

    @torch.no_grad()
    def read(self, samples: Samples, batch_size: int, entropy: bool = False, reader: Callable | None = None) -> Reading:
        """Read mails [B, R] in batches of like length, without a gradient, by `reader`, which can be this class's own call
        recorded; 0 after the longest of a batch."""
        found = Reading(*torch.zeros(3, *samples.response.shape, device=self.device))
        for rows, some in samples.alike(torch.arange(len(samples.query), device=self.device), batch_size):
            for whole, part in zip(found, (reader or Policy.__call__)(self, some, entropy)):
                whole[rows, :part.shape[1]] = part
        return found

    def autocast(self):
        """Compute in bfloat16 (`auto`: on a GPU that has it); weights stay float32.

        Casts of weights are not kept to the end of the context: what is recorded would read them after it.
        """
        bf16 = self.precision == "bfloat16" or (
            self.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported())
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def write(self, contexts: list[str], samples: int, generator: torch.Generator, *, temperature: float, top_k: int,
              top_p: float, batch_size: int) -> tuple[Samples, list[str]]:
        """Write `samples` mails for each context; those of a context stand together."""
        found, texts = [], []
        per_batch = max(1, batch_size // samples)
        u = torch.rand(len(contexts) * samples, self.response_tokens, generator=generator, device=self.device)
        for start in range(0, len(contexts), per_batch):
            some = contexts[start:start + per_batch]
            query, mask = self.queries(some)
            with self.autocast():
                response = self.sample(query, mask, u[start * samples:(start + len(some)) * samples].T,
                                       temperature=temperature, top_k=top_k, top_p=top_p)
            own = alive(response, self.stop)
            found.append(Samples(query.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0), response, own))
            texts += self.texts(response, own)
        whole = Samples(*map(torch.cat, zip(*found)))
        longest = -(-int(whole.alive.sum(1).max()) // 8) * 8  # nobody reads what comes after the longest mail
        return whole._replace(response=whole.response[:, :longest], alive=whole.alive[:, :longest]), texts

    def sample(self, query: Tensor, mask: Tensor, u: Tensor, **how) -> Tensor:
        """Sample mails [B, R] for prompts [P, Q] from uniforms [R, B], as `generate` does."""
        return generate(self.lm, query, mask, u, mode=self.mode, memory=self.memory, **how)

    # ── to and from disk ────────────────────────────────────────────────────────────────────────────────────────────
    def pack(self) -> dict:
        """Lay everything out for a checkpoint."""
        return {"files": describe(self.lm, self.tokenizer), "weights": self.state_dict()}

    @staticmethod
    def unpack(state: dict, writing: dict) -> Policy:
        """Restore what `pack` gave, to write as `writing` says."""
        policy = Policy(*restore(state["files"], AutoModelForCausalLM), **writing)
        policy.load_state_dict(state["weights"])
        return policy

    def export(self, folder: Path) -> None:
        """Write language model and tokenizer as transformers does; the value head is of use in training only."""
        export(folder, self.lm, self.tokenizer)
