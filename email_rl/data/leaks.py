"""Find out whether a file's outcomes can be read off fixed sentences, or off words, and which sentences these are."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import NamedTuple

import torch
from scipy.stats import binom

from email_rl.data.gold_model import split_sentences
from email_rl.data.mails import OUTCOMES, Mails, words
from email_rl.data.splitting import normalised

MOST_MAILS = 5000  # mails by which a bag of words is judged


class LabelLeak(NamedTuple):
    """A sentence that gives an outcome away: it occurs `hits` times with that outcome, `occurrences` times in all."""

    sentence: str
    outcome: int
    hits: int
    occurrences: int

    def __str__(self) -> str:
        return f'"{self.sentence}" → {self.outcome} ({self.hits} of {self.occurrences})'


def label_leaks(mails: Mails, min_count: int, purity: float, false_discovery: float) -> list[LabelLeak]:
    """List the sentences that give an outcome away, most frequent first.

    A sentence is a candidate if it occurs `min_count` times or more. One that has one outcome in a share `purity` of
    these times counts if chance alone makes it so rarely: before the filter by purity, at most a share
    `false_discovery` of those that count is expected to be chance's (Benjamini and Hochberg 1995, over all candidates,
    each with the outcome that it has most often). A test of each sentence by itself could never be passed by the
    sentences of a common outcome, though together they tell nearly every mail.
    """
    outcomes_of: dict[str, Counter] = defaultdict(Counter)
    first_form: dict[str, str] = {}
    for text, y in zip(mails.texts, mails.outcome.tolist()):
        here = {normalised(sentence): sentence for sentence in split_sentences(text)}
        for normal_form, sentence in here.items():
            if normal_form:
                first_form.setdefault(normal_form, sentence)
                outcomes_of[normal_form][y] += 1
    share = torch.bincount(mails.outcome, minlength=len(OUTCOMES)).double() / len(mails)
    candidates: list[tuple[float, LabelLeak]] = []
    for normal_form, counts in outcomes_of.items():
        (y, hits), n = counts.most_common(1)[0], sum(counts.values())
        if n >= min_count:
            # y is the likeliest of the outcomes, so any of them could have made the sentence tell (Bonferroni)
            chance = min(1.0, len(OUTCOMES) * binom.sf(hits - 1, n, share[y].item()).item())
            candidates.append((chance, LabelLeak(first_form[normal_form], y, hits, n)))
    candidates.sort(key=lambda found: found[0])
    passed = 0
    for rank, (chance, _) in enumerate(candidates, 1):
        if chance <= false_discovery * rank / len(candidates):
            passed = rank
    leaks = [leak for _, leak in candidates[:passed] if leak.hits >= purity * leak.occurrences]
    return sorted(leaks, key=lambda leak: -leak.occurrences)


def leak_share(mails: Mails, leaks: list[LabelLeak]) -> float:
    """Return the share of mails that have one of the sentences."""
    known = {normalised(leak.sentence) for leak in leaks}
    return sum(any(normalised(s) in known for s in split_sentences(text)) for text in mails.texts) / max(1, len(mails))


def bag_accuracy(mails: Mails, groups: list[int]) -> tuple[float, float]:
    """Return the accuracy of a bag of words on mails that it has not seen, and that of their majority.

    The bag of words is a multinomial naive Bayes over the words that a text has, so that leaving out a mail and its
    near-duplicates (those of the same group) is a subtraction from its counts. Add-half smoothing.
    """
    n, k = min(len(mails), MOST_MAILS), len(OUTCOMES)
    kept = torch.randperm(len(mails), generator=torch.Generator().manual_seed(0))[:n].tolist()
    outcome = [int(mails.outcome[i]) for i in kept]
    bags = [set(words(mails.texts[i])) for i in kept]
    counts: dict[str, list[int]] = defaultdict(lambda: [0] * k)  # mails with a word, by outcome
    mails_of, words_of = [0] * k, [0] * k
    members: dict[int, list[int]] = defaultdict(list)
    for j, (i, y, bag) in enumerate(zip(kept, outcome, bags)):
        members[groups[i]].append(j)
        mails_of[y] += 1
        words_of[y] += len(bag)
        for word in bag:
            counts[word][y] += 1
    right = 0
    for rows in members.values():
        left_out: dict[str, list[int]] = defaultdict(lambda: [0] * k)
        fewer_mails, fewer_words = [0] * k, [0] * k
        for j in rows:
            fewer_mails[outcome[j]] += 1
            fewer_words[outcome[j]] += len(bags[j])
            for word in bags[j]:
                left_out[word][outcome[j]] += 1
        for j in rows:
            scores = []
            for y in range(k):
                total = words_of[y] - fewer_words[y] + 0.5 * len(counts)
                score = math.log(mails_of[y] - fewer_mails[y] + 0.5)
                for word in bags[j]:
                    score += math.log((counts[word][y] - left_out[word][y] + 0.5) / total)
                scores.append(score)
            right += scores.index(max(scores)) == outcome[j]
    return right / n, max(Counter(outcome).values()) / n


def leak_warnings(
    mails: Mails,
    groups: list[int],
    *,
    label_leaks_settings: dict,
    max_leak_share: float,
    max_bag_accuracy: float,
    shown_leaks: int,
) -> list[str]:
    """Return what must be said of a file whose outcomes can be read off its sentences, or off its words."""
    leaks = label_leaks(mails, **label_leaks_settings)
    listed = "; ".join(str(leak) for leak in leaks[:shown_leaks]) or "no sentence that occurs often enough"
    listed += f" and {len(leaks) - shown_leaks} more" if len(leaks) > shown_leaks else ""
    found = []
    share = leak_share(mails, leaks)
    if share >= max_leak_share:
        found.append(
            f"the outcome of {share:.0%} of its mails can be read off fixed sentences: {listed}; a model will learn "
            "these sentences, not what makes mails work"
        )
    accuracy, majority = bag_accuracy(mails, groups)
    if accuracy >= max_bag_accuracy and 1 - accuracy < (1 - majority) / 2:
        found.append(
            f"a bag of words tells {accuracy:.0%} of the outcomes of mails that it has not seen (their majority "
            f"{majority:.0%}): outcomes of real mails can't be told so well, so words that were chosen by the outcome "
            f"tell it{'' if found else f'; its telling sentences: {listed}'}"
        )
    return found
