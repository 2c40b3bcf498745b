"""The gold model, the truth of the embedded market: P(outcome) as a function of context and text alone.

It draws the outcomes of a corpus and judges models and policies. Training must never use it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from email_rl.data import phrases

VALUE_PARTS = ("source", "role", "industry", "product")


class Market(NamedTuple):
    """The contexts of a market: the values of each facet, and whether mails may paraphrase them."""

    values: dict[str, dict[str, tuple[str, ...]]]
    paraphrases: bool

    @staticmethod
    def of(size: int, paraphrases: bool) -> Market:
        """Take the first `size` values of every facet."""
        whole: dict[str, dict[str, tuple[str, ...]]] = {
            "source": phrases.SOURCES,
            "role": phrases.ROLES,
            "industry": phrases.INDUSTRIES,
            "product": phrases.PRODUCTS,
        }
        if not 2 <= size <= min(map(len, whole.values())):
            raise ValueError(f"env.corpus.values_per_facet: expected 2 to {min(map(len, whole.values()))}, got {size}")
        return Market({facet: dict(list(values.items())[:size]) for facet, values in whole.items()}, paraphrases)

    def fillings(self, sentence: str, part: str) -> list[str]:
        """Write a sentence of `part` in every possible way."""
        slots = re.findall(r"{(\w+)}", sentence)
        facet = part.removesuffix("_paraphrase")
        named = list(self.values.get(facet, ()))
        others = (
            [phrase for group in self.values.get(facet, {}).values() for phrase in group] if self.paraphrases else []
        )
        own = (
            others if part.endswith("_paraphrase") else named + others * (f"{part}_paraphrase" not in phrases.SENTENCES)
        )
        choices = [own if slot == facet and own else phrases.FILLERS[slot] for slot in slots]
        return [_fill(sentence, choice) for choice in product(*choices)]


def _fill(sentence: str, fillers: tuple[str, ...]) -> str:
    """Put the fillers into the slots of a sentence, one after the other."""
    remaining = iter(fillers)
    return re.sub(r"{\w+}", lambda _: next(remaining), sentence)


class ParsedSentence(NamedTuple):
    """What the gold model finds in one sentence."""

    words_only: str  # its words, to recognise a repetition
    mentions: frozenset[tuple[str, str]]  # (facet, value)
    proof: bool
    calls: int
    questions: int
    spam: int
    words: int
    unknown: int  # word trigrams that the market's language does not have


def trigrams(sentence: str) -> list[tuple[str, ...]]:
    """Return the word trigrams of a sentence with its start and its last mark; all numbers are one word."""
    tokens = re.findall(r"[\w']+", re.sub(r"\d+", "0", sentence.lower()))
    end = sentence.rstrip()[-1:]
    marked = ["<", *tokens, end if end in ".?!," else ""]
    return [tuple(marked[i : i + 3]) for i in range(len(marked) - 2)]


def split_sentences(text: str) -> list[str]:
    """Split a mail at line ends, and at full stops, question and exclamation marks."""
    return [s for line in text.splitlines() for s in re.split(r"(?<=[.?!])\s+", line.strip()) if s]


class GoldModel:
    """Ordered logit over a mail's merits: P(outcome ≥ k) = σ(slope · (s − thresholds[k−1]))."""

    def __init__(
        self,
        market: Market,
        *,
        slope: float,
        thresholds: list,
        facets: dict,
        proof: dict,
        calls: list,
        more_calls: float,
        questions: list,
        more_questions: float,
        spam: float,
        length: dict,
        warmth: dict,
        repeated: float,
        unknown: float,
        unsigned: float,
        ungreeted: float,
    ):
        if len(thresholds) != 2 or not thresholds[0] < thresholds[1] or slope <= 0:
            raise ValueError(
                f"env.corpus.gold: expected slope > 0 and two rising thresholds, got {slope}, {thresholds}"
            )
        self.market, self.slope, self.thresholds, self.facets, self.proof = market, slope, thresholds, facets, proof
        self.calls, self.more_calls, self.questions, self.more_questions = calls, more_calls, questions, more_questions
        self.spam, self.length, self.warmth = spam, length, warmth
        self.repeated, self.unknown, self.unsigned, self.ungreeted = repeated, unknown, unsigned, ungreeted
        self.language = {
            gram
            for part, written in phrases.SENTENCES.items()
            if market.paraphrases or not part.endswith("_paraphrase")
            for s in written
            for filled in market.fillings(s, part)
            for gram in trigrams(filled)
        }
        self.language |= {gram for s in phrases.GREETINGS + phrases.CLOSINGS + phrases.NAMES for gram in trigrams(s)}
        value_of = {
            facet: {phrase.lower(): value for value, others in values.items() for phrase in (value, *others)}
            for facet, values in market.values.items()
        }
        self.value_of = value_of
        self.finders = {
            facet: re.compile(r"\b(" + "|".join(map(re.escape, known)) + r")\b") for facet, known in value_of.items()
        }
        self.parse = lru_cache(maxsize=500_000)(self._parse)  # mails share their sentences

    def _parse(self, sentence: str) -> ParsedSentence:
        """Find the parts of a sentence that the gold model values."""
        lower, grams = sentence.lower(), trigrams(sentence)
        return ParsedSentence(
            " ".join(re.findall(r"[\w']+", lower)),
            frozenset(
                (facet, self.value_of[facet][found])
                for facet, finder in self.finders.items()
                for found in finder.findall(lower)
            ),
            re.search(phrases.PROOF, lower) is not None,
            sum(lower.count(call) for call in phrases.CALLS),
            sentence.count("?"),
            sum(lower.count(phrase) for phrase in phrases.SPAM),
            len(grams),
            sum(gram not in self.language for gram in grams),
        )

    def merit(self, context: str, text: str) -> float:
        """Score one mail, s."""
        asked = {facet: value for facet, value in (m for m in self.parse(context).mentions)}
        found = [self.parse(s) for s in split_sentences(text)]
        mentions = frozenset().union(*(s.mentions for s in found))
        executive = "executive" if asked.get("role") in phrases.EXECUTIVES else "other"
        s = self.warmth.get(asked.get("source"), 0.0)
        for facet, weight in self.facets.items():
            values = {value for mentioned, value in mentions if mentioned == facet}
            s += weight["right"] * (asked.get(facet) in values) + weight["wrong"] * bool(values - {asked.get(facet)})
        s += self.proof[executive] * any(x.proof for x in found)
        s += _counted(sum(x.calls for x in found), self.calls, self.more_calls)
        s += _counted(sum(x.questions for x in found), self.questions, self.more_questions)
        s += self.spam * sum(x.spam for x in found)
        words = sum(x.words for x in found)
        s += self.length["over"] * max(0, words - self.length[executive])
        s += self.length["under"] * max(0, self.length["short"] - words)
        s += self.repeated * (len(found) - len({x.words_only for x in found}))
        s += self.unknown * (sum(x.unknown for x in found) / max(1, words))
        lines = [line.strip().lower() for line in text.strip().splitlines() if line.strip()]
        closed = len(lines) > 1 and lines[-2] in _lower(phrases.CLOSINGS) and lines[-1] in _lower(phrases.NAMES)
        greeted = bool(lines) and lines[0] in _lower(phrases.GREETINGS)
        return s + self.unsigned * (not closed) + self.ungreeted * (not greeted)

    def probabilities(self, contexts: list[str], texts: list[str]) -> Tensor:
        """Return P(outcome) [N, 3], float64."""
        s = torch.tensor([self.merit(c, t) for c, t in zip(contexts, texts)], dtype=torch.float64)
        at_least = torch.sigmoid(self.slope * (s[:, None] - torch.tensor(self.thresholds, dtype=torch.float64)))
        one, two = at_least.unbind(1)
        return torch.stack((1 - one, one - two, two), 1)


def _counted(n: int, worth: list, more: float) -> float:
    return worth[min(n, len(worth) - 1)] + more * max(0, n - len(worth) + 1)


@lru_cache
def _lower(lines: tuple[str, ...]) -> frozenset[str]:
    return frozenset(line.lower() for line in lines)
