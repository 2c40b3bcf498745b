"""Files whose outcomes can be read off sentences or words."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from email_rl.data.leaks import bag_accuracy, label_leaks, leak_warnings
from email_rl.data.mails import Mails, words
from mail_files import made_up_text
from templated_mails import NEUTRAL, TELLING, templated_rows

SETTINGS = {"min_count": 3, "purity": 0.98, "false_discovery": 0.05}
LIMITS = {"label_leaks_settings": SETTINGS, "max_leak_share": 0.2, "max_bag_accuracy": 0.95, "shown_leaks": 12}


def as_mails(rows):
    contexts, texts, outcomes = zip(*rows)
    return Mails(list(contexts), list(texts), torch.tensor([int(y) for y in outcomes]))


def test_sentences_that_tell_the_outcome_together_are_all_named_those_of_a_common_outcome_too():
    """66 % of the mails have outcome 0: no test of its sentences one by one would find them."""
    mails = as_mails(templated_rows())
    found = {leak.sentence: leak.outcome for leak in label_leaks(mails, **SETTINGS)}
    assert found == {sentence: y for y, sentences in TELLING.items() for sentence in sentences}
    told, by_words = leak_warnings(mails, list(range(len(mails))), **LIMITS)
    assert "100% of its mails can be read off fixed sentences" in told
    assert "a bag of words tells" in by_words and "their majority 66%" in by_words
    assert all(f'"{sentence}" → {y}' in told for y in TELLING for sentence in TELLING[y])
    assert not any(sentence in told for sentence in NEUTRAL) and '"' not in by_words  # named once
    (alone,) = leak_warnings(mails, list(range(len(mails))), **{**LIMITS, "max_leak_share": 1.1})
    assert all(f'"{sentence}" → {y}' in alone for y in TELLING for sentence in TELLING[y])


@pytest.mark.slow
def test_outcomes_that_nothing_tells_are_warned_of_rarely():
    """By the rate of false discoveries, of 100 files of chance at most about 5 may name a sentence."""
    files = [as_mails(templated_rows(seed=seed, shuffled=True)) for seed in range(100)]
    assert sum(bool(label_leaks(mails, **SETTINGS)) for mails in files) <= 5
    assert sum(bool(leak_warnings(mails, list(range(len(mails))), **LIMITS)) for mails in files[:30]) <= 1


def test_a_sentence_is_tested_for_each_outcome_that_it_could_have_told():
    """Three mails of one outcome with a share of 1/3: chance makes a sentence as pure for one of three outcomes 1/9."""
    rng = random.Random(0)
    outcome = [0, 1, 2] * 30
    texts = [f"{made_up_text(rng, 8)}" + (" Telling." if i in (0, 3, 6) else "") for i, _ in enumerate(outcome)]
    mails = Mails(["c"] * 90, texts, torch.tensor(outcome))
    assert not label_leaks(mails, min_count=3, purity=0.98, false_discovery=0.1)
    assert label_leaks(mails, min_count=3, purity=0.98, false_discovery=0.12)


def test_the_bag_of_words_is_naive_bayes_without_the_mail_and_its_duplicates():
    """Against a classifier that is fitted anew for every group of near-duplicates."""
    rng = random.Random(0)
    texts = [made_up_text(rng, 6) for _ in range(40)]
    outcome = [rng.randrange(3) for _ in texts]
    groups = [i // 2 for i in range(40)]
    docs, known = [set(words(text)) for text in texts], len({word for text in texts for word in words(text)})
    right = 0
    for i in range(40):
        others = [j for j in range(40) if groups[j] != groups[i]]
        scores = []
        for y in range(3):
            of_y = [docs[j] for j in others if outcome[j] == y]
            counts, total = Counter(word for doc in of_y for word in doc), sum(map(len, of_y)) + known / 2
            prior = torch.tensor(len(of_y) + 0.5, dtype=torch.float64).log().item()
            scores.append(
                prior + sum(torch.tensor((counts[w] + 0.5) / total, dtype=torch.float64).log().item() for w in docs[i])
            )
        right += scores.index(max(scores)) == outcome[i]
    accuracy, majority = bag_accuracy(Mails(["c"] * 40, texts, torch.tensor(outcome)), groups)
    assert accuracy == pytest.approx(right / 40) and majority == max(Counter(outcome).values()) / 40
