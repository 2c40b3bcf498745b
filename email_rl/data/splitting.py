"""Split mails so that near-duplicates stay on one side."""

from __future__ import annotations

import random
import zlib
from collections import Counter, defaultdict

import numpy as np

from email_rl.data.mails import Mails, words

SIGNATURE, BAND = 64, 4  # min-hashes a text, and how many of them must agree for two texts to be compared
PRIME = (1 << 31) - 1


def near_duplicate_groups(texts: list[str], similarity: float) -> list[int]:
    """Number the groups of texts whose three-word shingles overlap by `similarity` (Jaccard) or more; overlaps chain.

    Candidates come from min-hash bands (Broder 1997): pairs at .8 are found with probability .9998; texts that are
    equal but for case, punctuation and digits always share a group.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[tuple, int] = {}
    shingles: dict[int, frozenset] = {}
    for i, text in enumerate(texts):
        tokens = tuple(normalised(text).split())
        parent[i] = first.setdefault(tokens, i)
        if parent[i] == i:
            shingles[i] = frozenset(
                zlib.crc32(" ".join(tokens[k : k + 3]).encode()) for k in range(max(1, len(tokens) - 2))
            )
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, PRIME, (2, SIGNATURE, 1), dtype=np.int64)
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for i, grams in shingles.items():
        hashed = np.fromiter(grams, np.int64, len(grams)) % PRIME
        signature = ((a * hashed + b) % PRIME).min(1)
        for band in range(0, SIGNATURE, BAND):
            buckets[band, signature[band : band + BAND].tobytes()].append(i)
    for members in buckets.values():
        kept: list[int] = []
        for i in members:
            for j in kept:
                if root(i) != root(j) and len(shingles[i] & shingles[j]) >= similarity * len(shingles[i] | shingles[j]):
                    parent[root(i)] = root(j)
            if len(kept) < 50:  # a bucket of thousands of unlike texts would cost their square
                kept.append(i)
    return [root(i) for i in range(len(texts))]


def groups_to_split(
    mails: Mails, *, similarity: float, min_distinct_texts: int, max_group_share: float
) -> tuple[list[int], int | None]:
    """Number the groups of mails that no split may part, and count the texts where few are sent again and again.

    Groups are those of near-duplicate texts. Where fewer than `min_distinct_texts` such groups exist, or where one of
    them has more than `max_group_share` of the mails, mails of one text may part, and only those of equal context and
    text form a group. The count is None elsewhere.
    """
    groups = near_duplicate_groups(mails.texts, similarity)
    sizes = Counter(groups)
    if len(sizes) >= min_distinct_texts and max(sizes.values()) <= max_group_share * len(mails):
        return groups, None
    pairs = [f"{context} | {text}" for context, text in zip(mails.contexts, mails.texts)]
    return near_duplicate_groups(pairs, 1.0), len(sizes)


def stratified_split(mails: Mails, groups: list[int], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Assign whole groups to splits so that each split has its share of every outcome; largest groups first."""
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
        rarest = min(counts, key=rank.__getitem__)  # place the outcome that is hardest to place first
        name = max(shares, key=lambda name: (need[name][rarest] / shares[name], sum(need[name].values())))
        split[name] += rows
        for y, n in counts.items():
            need[name][y] -= n
    return {name: sorted(rows) for name, rows in split.items()}


def normalised(text: str) -> str:
    """Write a text without case, punctuation and numbers, so that texts from one template are equal."""
    return " ".join("0" if word.isdigit() else word for word in words(text))
