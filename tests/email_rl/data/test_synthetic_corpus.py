"""The embedded market: the merits of the gold model, and that no sentence gives its outcome away."""

from __future__ import annotations

import itertools
import math
import random
import re
from functools import cache

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from email_rl.data import phrases
from email_rl.data.gold_model import split_sentences
from email_rl.data.metrics import log_losses
from email_rl.models.bag_of_words import BagOfWords


@cache
def corpus(*overrides, seed=0):
    """Build the corpus as conf/ has it."""
    config = composed("algo=reward_model", "env=email", *overrides).env.corpus
    return instantiate(config, _convert_="all")(seed)


@cache
def drawn(n=12000):
    return corpus().sample(n, "test of the corpus")


CONTEXT = "CTO in retail, met through the trade fair, interested in the training portal."
MAIL = """Hello,
You may remember us from the trade fair. We wrote it down for the CTO. We know the retail business by heart. \
Our training portal is easy to start with. It now serves 40 clients. Would Monday suit you? Reply to this with one line.
Kind regards,
Anna"""


def expected(
    right=("source", "role", "industry", "product"),
    wrong=(),
    proof=True,
    calls=1,
    questions=1,
    spam=0,
    words=52,
    executive=True,
    warmth=-0.2,
    repeated=0,
    unknown=0.0,
    signed=True,
    greeted=True,
):
    """The merit of a mail from its features: a second, plain writing of conf/env/corpus/gold/default.yaml."""
    s = warmth + sum({"industry": 1.1, "product": 0.8, "role": 0.6, "source": 0.5}[f] for f in right)
    s -= sum({"industry": 1.3, "product": 0.8, "role": 0.5, "source": 0.6}[f] for f in wrong)
    s += (0.9 if executive else 0.3) * proof
    s += {0: -0.9, 1: 0.6, 2: -0.2, 3: -0.8, 4: -1.4}[calls] + {0: 0.0, 1: 0.4, 2: 0.0, 3: -0.5}[questions] - 0.6 * spam
    s -= 0.05 * max(0, words - (34 if executive else 46)) + 0.08 * max(0, 20 - words)
    return s - repeated - 8 * unknown - 0.6 * (not signed) - 0.4 * (not greeted)


def merit(text, context=CONTEXT):
    return corpus().gold.merit(context, text)


def length(text):
    return len(re.findall(r"[\w']+", text))


@pytest.mark.parametrize(
    "change, features",
    [
        (lambda m: m, {}),
        (
            lambda m: m.replace("We know the retail business", "We know the banking business"),
            {"right": ("source", "role", "product"), "wrong": ("industry",)},
        ),
        (lambda m: m.replace("We wrote it down for the CTO. ", ""), {"right": ("source", "industry", "product")}),
        (lambda m: m.replace("It now serves 40 clients. ", ""), {"proof": False}),
        (lambda m: m.replace("Reply to this with one line.", ""), {"calls": 0}),
        (lambda m: m.replace("Reply", "Book a tour of 30 minutes. Reply"), {"calls": 2}),
        (
            lambda m: m.replace(
                "Reply",
                "Book a tour of 30 minutes. Pick a slot on Monday in my calendar. Sign up for a trial by Friday. Reply",
            ),
            {"calls": 4},
        ),
        (lambda m: m.replace("Would", "Shall we talk soon? How do you handle this today? Would"), {"questions": 3}),
        (lambda m: m.replace("Would", "You are our lucky winner! Would"), {"spam": 1}),
        (
            lambda m: m.replace("Would Monday suit you?", "Would Monday suit you? Would Monday suit you?"),
            {"questions": 2, "repeated": 1},
        ),
        (lambda m: m.replace("\nKind regards,\nAnna", ""), {"signed": False}),
        (lambda m: m.replace("Hello,\n", ""), {"greeted": False}),
    ],
)
def test_merit_is_what_the_features_add_up_to(change, features):
    text = change(MAIL)
    assert merit(text) == pytest.approx(expected(**{"words": length(text), **features}), abs=1e-9)


def test_executives_want_proof_and_brevity():
    manager = CONTEXT.replace("CTO", "HR manager")
    text = MAIL.replace("CTO", "HR manager")
    assert merit(text, manager) == pytest.approx(expected(executive=False, words=length(text)), abs=1e-9)


def test_what_games_a_reward_model_costs():
    right = merit(MAIL)
    scrambled = MAIL.split("\n")
    words = scrambled[1].split()
    random.Random(0).shuffle(words)
    scrambled[1] = " ".join(words)
    keywords = "\n".join(
        ["Hello,", "CTO retail trade fair training portal 40 clients reply to this?", "Kind regards,", "Anna"]
    )
    again = MAIL.replace("It now", "It now serves 40 clients. " * 3 + "It now")
    cut = MAIL[:200]
    for text in ("\n".join(scrambled), keywords, again, cut, MAIL.replace("\n", " "), "", "!!!???", "Hello,\n" * 9):
        assert merit(text) < right - 1, text


@pytest.mark.long
def test_probabilities_are_an_ordered_logit():
    contexts, texts = drawn().contexts[:200], drawn().texts[:200]
    p = corpus().gold.probabilities(contexts, texts)
    for row, context, text in zip(p.tolist(), contexts, texts):
        s = merit(text, context)
        reply, conversion = (1 / (1 + math.exp(-2 * (s - t))) for t in (0.1, 1.9))
        assert row == pytest.approx([1 - reply, reply - conversion, conversion], abs=1e-12)


@pytest.mark.slow
def test_outcomes_come_as_often_as_the_truth_says():
    mails = drawn()
    p = corpus().gold.probabilities(mails.contexts, mails.texts)
    shares = torch.bincount(mails.outcome, minlength=3) / len(mails)
    assert (shares - p.mean(0)).abs().max() < 4 * 0.5 / len(mails) ** 0.5
    assert shares.min() > 0.1


def test_the_same_mail_scores_differently_in_another_context():
    gold, market = corpus().gold, corpus().market
    mails = drawn()
    named = [i for i, text in enumerate(mails.texts) if any(value in text for value in market.values["industry"])][:300]
    texts = [mails.texts[i] for i in named]
    here = gold.probabilities([mails.contexts[i] for i in named], texts)
    rng, values = random.Random(0), list(market.values["industry"])
    moved = []
    for i in named:
        own = next(value for value in values if value in mails.contexts[i])
        moved.append(mails.contexts[i].replace(own, rng.choice([v for v in values if v != own])))
    there = gold.probabilities(moved, texts)
    assert ((here - there).abs().max(1).values > 0.05).float().mean() > 0.5
    assert merit(MAIL) - merit(MAIL, CONTEXT.replace("retail", "banking")) == pytest.approx(2.4)
    assert merit(MAIL) - merit(MAIL, CONTEXT.replace("training portal", "security audit")) == pytest.approx(1.6)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("env/corpus=large",)])
def test_gold_finds_in_a_sentence_what_its_part_is_and_nothing_else(overrides):
    built = corpus(*overrides)
    marks = {"proof": "proof", "spam": "spam", "question": "questions", "call": "calls"}
    for part, written in phrases.SENTENCES.items():
        if part.endswith("_paraphrase") and not built.market.paraphrases:
            continue
        for sentence in written:
            for filled in built.market.fillings(sentence, part)[:400]:
                found = built.gold.parse(filled)
                assert {facet for facet, _ in found.mentions} == {part.removesuffix("_paraphrase")} & set(
                    built.market.values
                )
                assert len(found.mentions) <= 1 and found.unknown == 0, filled
                for other, field in marks.items():
                    assert int(getattr(found, field)) == (part == other), (filled, field)


@pytest.mark.parametrize("overrides", [(), ("env/corpus=large",)])
def test_a_composed_mail_has_no_unknown_language(overrides):
    built = corpus(*overrides)
    mails = built.sample(400, "language")
    assert sum(built.gold.parse(s).unknown for text in mails.texts for s in split_sentences(text)) == 0


def test_every_part_occurs_with_every_outcome():
    mails = drawn()
    seen = {}
    templates = [
        (sentence, re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(sentence))))
        for part, written in phrases.SENTENCES.items()
        if not part.endswith("_paraphrase")
        for sentence in written
    ]
    written = {}
    for text, y in zip(mails.texts, mails.outcome.tolist()):
        for s in split_sentences(text):
            written.setdefault(s, set()).add(y)
    for (sentence, pattern), (s, outcomes) in itertools.product(templates, written.items()):
        if pattern.fullmatch(s):
            seen.setdefault(sentence, set()).update(outcomes)
    assert set(seen) == {sentence for sentence, _ in templates}
    assert all(outcomes == {0, 1, 2} for outcomes in seen.values())
    for lines in (phrases.GREETINGS, phrases.CLOSINGS, phrases.NAMES):
        assert all(written[line] == {0, 1, 2} for line in lines)


@pytest.mark.long
def test_a_bag_of_words_stays_far_below_the_truth():
    mails, test = corpus().sample(15000, "bag"), drawn()
    bag = BagOfWords.fit(
        mails.rows(range(12500)),
        mails.rows(range(12500, 15000)),
        0,
        lr=0.002,
        weight_decay=0.01,
        epochs=5,
        min_steps=500,
        batch_size=128,
    ).probabilities(test.contexts, test.texts)
    p = corpus().gold.probabilities(test.contexts, test.texts)
    right = [(q.argmax(1) == test.outcome).float().mean() for q in (bag, p)]
    assert right[1] - right[0] > 0.05
    loss = [log_losses(q, test.outcome).mean() for q in (bag, p)]
    assert loss[0] - loss[1] > 0.05
    share = torch.bincount(test.outcome) / len(test)
    assert loss[0] < -(share * share.log()).sum() - 0.01  # and yet it learnt something


@pytest.mark.slow
def test_a_corpus_follows_from_its_seed():
    small = ("env.corpus.train=400", "env.corpus.valid=50", "env.corpus.test=50")
    one, same, other = (corpus(*small, seed=seed).splits() for seed in (0, 0, 1))
    assert one["train"].texts == same["train"].texts and one["train"].outcome.equal(same["train"].outcome)
    assert one["train"].texts != other["train"].texts and one["valid"].texts != other["valid"].texts
    assert one["test"].texts == other["test"].texts  # every seed is judged on the same mails
    sides = [set(one[name].texts) for name in ("train", "valid", "test")]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
