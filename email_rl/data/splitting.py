"""Which mails may stand on different sides of a split, and what a file can't support."""
from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict

import numpy as np
import torch
from scipy.stats import binom

from email_rl.data.mails import OUTCOMES, Mails, words
from email_rl.data.gold_model import sentences

SIGNATURE, BAND = 64, 4  # min-hashes a text, and how many of them must agree for two texts to be compared
PRIME = (1 << 31) - 1


def near_duplicates(texts: list[str], similarity: float) -> list[int]:
    """Number the groups of texts whose three-word shingles overlap by `similarity` (Jaccard) or more, chained.

    Candidates come from min-hash bands (Broder 1997): pairs at .8 are found with probability .9998; texts that are equal
    but for case, punctuation and digits always share a group.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple, int] = {}
    shingles: dict[int, frozenset] = {}
    for i, text in enumerate(texts):
        said = tuple(normal(text).split())
        parent[i] = first.setdefault(said, i)
        if parent[i] == i:
            shingles[i] = frozenset(zlib.crc32(" ".join(said[k:k + 3]).encode()) for k in range(max(1, len(said) - 2)))
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, PRIME, (2, SIGNATURE, 1), dtype=np.int64)
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for i, grams in shingles.items():
        hashed = np.fromiter(grams, np.int64, len(grams)) % PRIME
        signature = ((a * hashed + b) % PRIME).min(1)
        for band in range(0, SIGNATURE, BAND):
            buckets[band, signature[band:band + BAND].tobytes()].append(i)
    for members in buckets.values():
        kept: list[int] = []
        for i in members:
            for j in kept:
                if root(i) != root(j) and len(shingles[i] & shingles[j]) >= similarity * len(shingles[i] | shingles[j]):
                    parent[root(i)] = root(j)
            if len(kept) < 50:  # a bucket of thousands of unlike texts would cost their square
                kept.append(i)
    return [root(i) for i in range(len(texts))]


def stratified(mails: Mails, groups: list[int], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Deal whole groups out to splits so that each split has its share of every outcome; largest groups first."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    order = list(members.values())
    random.Random(seed).shuffle(order)
    order.sort(key=len, reverse=True)
    total = Counter(mails.outcome.tolist())
    rank = {y: i for i, (y, _) in enumerate(sorted(total.items(), key=lambda item: item[1]))}
    need = {name: {y: share * n for y, n in total.items()} for name, share in shares.items()}
    split: dict[str, list[int]] = {name: [] for name in shares}
    for rows in order:
        counts = Counter(mails.outcome[rows].tolist())
        rarest = min(counts, key=rank.get)  # the outcome that is hardest to place decides
        name = max(shares, key=lambda name: (need[name][rarest] / shares[name], sum(need[name].values())))
        split[name] += rows
        for y, n in counts.items():
            need[name][y] -= n
    return {name: sorted(rows) for name, rows in split.items()}


def telling_sentences(mails: Mails, seldom: int, purity: float, chance: float) -> list[tuple[str, int, int, int]]:
    """List sentences that give an outcome away: (sentence, outcome, times with it, times in all), most frequent first.

    One counts if it occurs `seldom` times or more, with one outcome in a share `purity` of them, and if among as many
    sentences as there are chance alone would show one such with a probability below `chance`.
    """
    seen: dict[str, Counter] = defaultdict(Counter)
    written: dict[str, str] = {}
    for text, y in zip(mails.texts, mails.outcome.tolist()):
        here = {normal(sentence): sentence for sentence in sentences(text)}
        for said, sentence in here.items():
            if said:
                written.setdefault(said, sentence)
                seen[said][y] += 1
    share = torch.bincount(mails.outcome, minlength=len(OUTCOMES)).double() / len(mails)
    found = []
    for said, counts in seen.items():
        (y, hits), n = counts.most_common(1)[0], sum(counts.values())
        if n >= seldom and hits >= purity * n and binom.sf(hits - 1, n, share[y].item()) * len(seen) < chance:
            found.append((written[said], y, hits, n))
    return sorted(found, key=lambda f: -f[3])


def told(mails: Mails, found: list[tuple[str, int, int, int]]) -> float:
    """Return the share of mails that have one of the sentences found."""
    known = {normal(sentence) for sentence, *_ in found}
    return sum(any(normal(s) in known for s in sentences(text)) for text in mails.texts) / max(1, len(mails))


def normal(text: str) -> str:
    """Write a text without case, punctuation and numbers, so that what is filled in differs no more."""
    return " ".join("0" if word.isdigit() else word for word in words(text))
