"""The embedded market: contexts, mails composed of interchangeable parts, and outcomes drawn from the gold model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from email_rl.data import phrases
from email_rl.data.gold_model import VALUE_PARTS, Market
from email_rl.data.mails import Mails


class SyntheticCorpus:
    """Draw train, valid and test mails of one market; the test mails are the same for every seed.

    `parts` has, for a part with a context's value, the shares of right, wrong (another context's value) and absent; for
    other parts, the shares of 0, 1, 2 … sentences. `shuffled_body` puts a mail's body parts in random order.
    """

    def __init__(
        self,
        seed: int,
        *,
        values_per_facet: int,
        paraphrases: bool,
        shuffled_body: bool,
        train: int,
        valid: int,
        test: int,
        test_seed: int,
        parts: dict,
        gold: Callable,
    ):
        if min(train, valid, test) < 1:
            raise ValueError(
                f"env.corpus: expected train, valid and test of at least 1 mail, got {train}, {valid}, {test}"
            )
        self.market = Market.of(values_per_facet, paraphrases)
        self.shuffled_body, self.parts, self.gold = shuffled_body, parts, gold(self.market)
        self.sizes = {"train": train, "valid": valid, "test": test}
        self.seeds = {"train": 2 * seed, "valid": 2 * seed + 1}
        self.seeds["test"] = test_seed

    def splits(self) -> dict[str, Mails]:
        """Draw the three splits; a text of one split is in no other."""
        test = self.sample(self.sizes["test"], f"test {self.seeds['test']}")
        valid = self.sample(self.sizes["valid"], f"valid {self.seeds['valid']}").without(test)
        train = self.sample(self.sizes["train"], f"train {self.seeds['train']}").without(test + valid)
        return {"train": train, "valid": valid, "test": test}

    def sample(self, n: int, stream: str) -> Mails:
        """Draw n mails with outcomes; a stream (any string) always gives the same mails."""
        rng = random.Random(stream)
        drawn = [self.compose(rng) for _ in range(n)]
        contexts, texts = [context for context, _ in drawn], [text for _, text in drawn]
        return Mails(contexts, texts, self.outcomes(contexts, texts, rng.getrandbits(62)))

    def outcomes(self, contexts: list[str], texts: list[str], seed: int) -> Tensor:
        """Draw the outcomes of mails, int64 [N]."""
        u = torch.rand(len(texts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        p = self.gold.probabilities(contexts, texts)
        return (u[:, None] > p.cumsum(1)[:, :2]).sum(1)

    def compose(self, rng: random.Random) -> tuple[str, str]:
        """Compose one mail: (context, text)."""
        asked = {facet: rng.choice(list(values)) for facet, values in self.market.values.items()}
        body = {}
        for part in VALUE_PARTS:
            right, wrong, _ = self.parts[part]
            u = rng.random()
            if u < right + wrong:
                others = [value for value in self.market.values[part] if value != asked[part]]
                body[part] = [self.sentence(part, asked[part] if u < right else rng.choice(others), rng)]
        for part in ("general", "proof", "spam", "filler", "question", "call"):
            shares = self.parts[part]
            body[part] = _distinct(part, rng.choices(range(len(shares)), shares)[0], rng)
        order = ["source", "general", "role", "industry", "product", "proof", "spam", "filler", "question", "call"]
        if self.shuffled_body:
            middle = order[2:]
            rng.shuffle(middle)
            order[2:] = middle
        if "source" in body:
            body["general"] = []  # one opener
        body_text = " ".join(sentence for part in order for sentence in body.get(part, []))
        lines = [rng.choice(phrases.GREETINGS), body_text, rng.choice(phrases.CLOSINGS), rng.choice(phrases.NAMES)]
        return phrases.CONTEXT.format(**asked), "\n".join(line for line in lines if line)

    def sentence(self, part: str, value: str, rng: random.Random) -> str:
        """Write a sentence about a facet's value, by its name or, if the market has paraphrases, by a paraphrase."""
        choices = [(template, value) for template in phrases.SENTENCES[part]]
        if self.market.paraphrases:
            templates = phrases.SENTENCES.get(f"{part}_paraphrase", phrases.SENTENCES[part])
            choices += [(template, rng.choice(self.market.values[part][value])) for template in templates]
        template, name = rng.choice(choices)
        return _fill(template, {part: name}, rng)


def _distinct(part: str, n: int, rng: random.Random) -> list[str]:
    return [_fill(written, {}, rng) for written in rng.sample(phrases.SENTENCES[part], n)]


@dataclass(frozen=True)
class _Fillers:
    given: dict[str, str]
    rng: random.Random

    def __getitem__(self, slot: str) -> str:
        return self.given[slot] if slot in self.given else self.rng.choice(phrases.FILLERS[slot])


def _fill(written: str, given: dict[str, str], rng: random.Random) -> str:
    return written.format_map(_Fillers(given, rng))
