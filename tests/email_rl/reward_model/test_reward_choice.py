"""Which model may be a reward: the encoder, a bag of words, or none."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch

from email_rl.data import metrics
from email_rl.data.mails import Mails
from email_rl.data.splitting import groups_to_split, near_duplicate_groups
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.policy import LanguageModelPolicy
from email_rl.reward_model.baselines import WithMajority
from email_rl.reward_model.refresh import without_crossing
from email_rl.reward_model.reward_choice import (
    ChoiceSettings,
    choose_reward_model,
    fitters,
)
from mail_files import made_up_text
from rlcore.runs.logger import NullLogger
from tiny_email_trainer import policy, trainer

SETTINGS = {
    "seed": 0,
    "bootstrap_samples": 400,
    "folds": 5,
    "majority_share": 0.1,
    "few_mails": 100,
    "must_beat_majority": True,
}
BAG = {"lr": 0.05, "weight_decay": 0.0, "epochs": 1, "min_steps": 60, "batch_size": 64}


class Rule:
    """A model of outcomes that puts a probability on what a mail's last word, a number, leaves when divided by 3."""

    reads_context = True

    def __init__(self, strength):
        self.strength = strength

    def probabilities(self, contexts, texts):
        told = torch.tensor([int(text.split()[-1]) % 3 for text in texts])
        p = torch.full((len(texts), 3), (1 - self.strength) / 2)
        return p.scatter(1, told[:, None], self.strength)


def mails(n, tells=1.0, seed=0, in_words=False):
    """Draw n mails of noise and a number of its own, which tells the outcome with probability `tells`.

    With `in_words` a word tells it, too.
    """
    rng = random.Random(seed)
    outcome = [rng.choices((0, 1, 2), (6, 2, 2))[0] for _ in range(n)]
    told = [y if rng.random() < tells else rng.randrange(3) for y in outcome]
    hints = [("no", "maybe", "yes")[y] if in_words else "" for y in told]
    texts = [f"{made_up_text(rng, 12)} {hint} {3 * rng.randrange(10**9) + y}" for hint, y in zip(hints, told)]
    return Mails(["c"] * n, texts, torch.tensor(outcome))


def group(mails):
    return near_duplicate_groups(mails.texts, 0.8)


def fit_with(fit_encoder, group=group, fit_bag=None):
    fit = fitters(fit_encoder, 0, BAG, group, ChoiceSettings(**SETTINGS))
    return fit._replace(bag=fit_bag, bag_of_few=fit_bag) if fit_bag else fit


def choose(train, valid, strength, fit_bag=None, group=group, **changes):
    encoder = Rule(strength)
    settings = ChoiceSettings(**{**SETTINGS, **changes})
    return choose_reward_model(encoder, fit_with(lambda *_: encoder, group, fit_bag), train, valid, group, settings)


def test_an_encoder_that_is_ahead_of_the_bag_of_words_is_the_reward():
    model, verdict = choose(mails(200), mails(150, seed=1), 0.99)
    assert isinstance(model, Rule) and verdict.chosen == "encoder" and verdict.is_informed
    assert verdict.behind_bag < 0 and verdict.mails == 150


def test_the_bag_of_words_is_the_reward_where_the_encoder_is_not_ahead():
    model, verdict = choose(mails(200, in_words=True), mails(150, seed=1, in_words=True), 1 / 3)
    assert isinstance(model, BagOfWords) and verdict.chosen == "bag_of_words" and verdict.is_informed
    assert verdict.behind_bag > 0 and "the encoder is not ahead of it" in verdict.describe()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_where_nothing_tells_the_outcome_no_model_is_informed(seed):
    _, verdict = choose(mails(60, tells=0.0, seed=seed), mails(12, tells=0.0, seed=seed + 10), 1 / 3)
    assert not verdict.is_informed and verdict.low <= 0


@pytest.mark.slow
def test_few_validation_mails_are_not_asked_alone_every_mail_is_held_out_once():
    """An encoder that has seen a mail, and only then, knows its outcome: cross-fitted it must know nothing."""
    train, valid = mails(60, tells=0.0), mails(12, tells=0.0, seed=9)
    fits = []

    class Memory(Rule):
        def __init__(self, *sides):
            self.seen = {text: y for side in sides for text, y in zip(side.texts, side.outcome.tolist())}
            fits.append((set(sides[0].texts), set(sides[1].texts)))
            self.asked = []

        def probabilities(self, contexts, texts):
            self.asked += texts
            p = torch.full((len(texts), 3), 1 / 3)
            for i, text in enumerate(texts):
                if text in self.seen:
                    p[i] = torch.nn.functional.one_hot(torch.tensor(self.seen[text]), 3) * 0.99 + 0.01 / 3
            return p

    made = []

    def fit(*sides):
        made.append(Memory(*sides))
        return made[-1]

    encoder = fit(train, valid)
    _, verdict = choose_reward_model(encoder, fit_with(fit), train, valid, group, ChoiceSettings(**SETTINGS))
    assert verdict.mails == 72 and not verdict.is_informed
    held_out = [text for model in made[1:] for text in model.asked]
    assert sorted(held_out) == sorted(train.texts + valid.texts)
    assert all(not set(model.asked) & set(model.seen) for model in made[1:])
    assert all(not trained & chosen for trained, chosen in fits)


@pytest.mark.slow
def test_an_encoder_that_is_lucky_on_few_validation_mails_gives_way_to_a_bag_of_words_that_knows():
    """Validation mails known by heart make an encoder look ahead; on mails that it has not seen it knows nothing."""
    train, valid = mails(60, in_words=True), mails(12, seed=9, in_words=True)
    lucky, blind = Rule(0.999), Rule(1 / 3)
    settings = ChoiceSettings(**SETTINGS)
    model, verdict = choose_reward_model(lucky, fit_with(lambda *_: blind), train, valid, group, settings)
    assert isinstance(model, BagOfWords) and verdict.is_informed and verdict.behind_bag > 0 and verdict.mails == 72


class Told:
    """A model whose log-loss is `gain` ± 0.19 nats below the majority's, with the signs of `signs` in turn."""

    reads_context = True

    def __init__(self, train, valid, gain, signs):
        shares = metrics.majority_shares(train, 1)[0]
        self.of = {}
        for i, (text, y) in enumerate(zip(valid.texts, valid.outcome.tolist())):
            told = shares[y] * math.exp(gain + 0.19 * signs[i % 4])
            p = shares * (1 - told) / (1 - shares[y])
            p[y] = told
            self.of[text] = p

    def probabilities(self, contexts, texts):
        return torch.stack([self.of[text] for text in texts])


def test_an_encoder_that_knows_is_the_reward_where_it_is_within_chance_of_a_bag_that_knows_nothing():
    """With many validation mails: encoder ahead of the majority by .05 ± .03, the bag by .02 ± .03."""
    train, valid = mails(300), mails(152, seed=1)
    encoder, bag = Told(train, valid, 0.05, (1, -1, 1, -1)), Told(train, valid, 0.02, (1, 1, -1, -1))
    model, verdict = choose_reward_model(
        encoder,
        fit_with(lambda *_: encoder, fit_bag=lambda *_: bag),
        train,
        valid,
        group,
        ChoiceSettings(**SETTINGS),
    )
    assert model is encoder and verdict.is_informed and not verdict.bag_knows
    assert verdict.ahead == pytest.approx(0.05) and verdict.behind_bag == pytest.approx(-0.03)
    assert "encoder (the bag of words is not ahead of the majority); ahead of the majority" in verdict.describe()


def test_a_refresh_leaves_out_near_duplicates_of_another_old_side_and_mails_that_it_has():
    rng = random.Random(0)
    texts = [made_up_text(rng, 40) for _ in range(4)]
    near = [text.replace(text.split()[0], "other", 1) for text in texts]

    def side(*rows):
        return Mails(["c"] * len(rows), list(rows), torch.zeros(len(rows), dtype=torch.long))

    old = {"train": side(texts[0]), "valid": side(texts[1]), "test": side(texts[2])}
    new = {
        "train": side(near[2], near[0], texts[0], texts[0], texts[3]),
        "valid": side(near[0]),
        "test": side(texts[2], near[2]),
    }
    kept = without_crossing(new, old, group)
    assert {name: mails.texts for name, mails in kept.items()} == {
        "train": [near[0], texts[0], texts[3]],  # the old mails have texts[0] once
        "valid": [],
        "test": [near[2]],
    }


def test_an_ab_file_of_two_texts_is_compared_by_contexts_and_one_of_one_mail_refused():
    rng = random.Random(0)
    outcome = [rng.choice((0, 1)) for _ in range(60)]
    contexts = [made_up_text(rng, 5) for _ in outcome]
    both = Mails(contexts, [f"text {3 + y}" for y in outcome], torch.tensor(outcome))
    grouping = {"similarity": 0.8, "min_distinct_texts": 10, "max_group_share": 0.5}

    def group(mails):
        return groups_to_split(mails, **grouping)[0]

    _, verdict = choose(both.rows(list(range(45))), both.rows(list(range(45, 60))), 0.9, group=group)
    assert verdict.mails == 60
    same = Mails(["c"] * 60, ["text 3"] * 60, torch.tensor(outcome))
    with pytest.raises(ValueError, match="60 mails make 1 groups of near-duplicates; expected 3 or more"):
        choose(same.rows(list(range(45))), same.rows(list(range(45, 60))), 0.9, group=group)


def test_a_model_mixed_with_the_majority_has_the_probabilities_that_its_verdict_is_of():
    train = Mails(["c"] * 5, ["1"] * 5, torch.tensor([0, 0, 0, 1, 2]))
    p = WithMajority(Rule(0.8), train, 0.25).probabilities(["c"], ["x 7"])  # 7 leaves 1
    shares = [4 / 8, 2 / 8, 2 / 8]
    assert p[0].tolist() == pytest.approx([0.75 * q + 0.25 * s for q, s in zip((0.1, 0.8, 0.1), shares)], abs=1e-6)
    assert choose(mails(60), mails(12, seed=1), 0.99)[1].majority_share == 0.1
    assert choose(mails(60), mails(12, seed=1), 0.99, few_mails=10)[1].majority_share == 0.0


class Constant:
    """A reward model that gives every mail the same."""

    reads_context = True

    def probabilities(self, contexts, texts):
        return torch.full((len(texts), 3), 1 / 3)


@pytest.mark.slow
def test_rewards_that_do_not_differ_are_refused_before_anything_is_optimised(monkeypatch):
    made = trainer("algo.normalization_mails=16", reward_model=Constant())
    made.has_models = False
    monkeypatch.setattr(type(made.sources), "load_or_train", lambda *_: (policy(), Constant()))
    with pytest.raises(ValueError, match="standard deviation of 0.0000, expected at least 0.05.*What would help") as e:
        made.setup(NullLogger(), lambda: False)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_what_the_context_alone_tells_is_no_reason_to_reward_a_text():
    """The outcome depends on which of 8 sources a mail was sent to; texts are random. No text can change that."""
    rng = random.Random(0)

    def sent(n):
        sources = [rng.randrange(8) for _ in range(n)]
        outcome = [rng.choices((0, 1, 2), ((8, 1, 1), (3, 3, 4))[source % 2])[0] for source in sources]
        contexts = [f"met through {'abcdefgh'[source]}" for source in sources]
        return Mails(contexts, [made_up_text(rng, 12) for _ in range(n)], torch.tensor(outcome))

    for few_mails in (100, 1000):  # on validation mails, and cross-fitted
        blind = Rule(1 / 3)
        settings = ChoiceSettings(**{**SETTINGS, "few_mails": few_mails})
        blind.probabilities = lambda contexts, texts: torch.full((len(texts), 3), 1 / 3)
        fit = fit_with(lambda *_: blind)
        _, verdict = choose_reward_model(blind, fit, sent(700), sent(300), group, settings)
        assert verdict.low > 0 and verdict.context_low <= 0 and verdict.context_is_rival and not verdict.is_informed
        assert verdict.gains.weakest().startswith("what the context alone tells: by ")
        assert "and of the context alone by" in verdict.describe()


@pytest.mark.parametrize("few_mails", [100, 1000])  # on validation mails, and cross-fitted
def test_a_model_that_reads_the_text_alone_need_not_be_ahead_of_the_context(few_mails):
    """The source tells most of the outcome, and the text a little: that is no noise."""
    rng = random.Random(0)

    def sent(n):
        sources = [rng.randrange(3) for _ in range(n)]
        told = [rng.randrange(3) for _ in range(n)]
        outcome = [rng.choices((y, source), (4, 6))[0] for y, source in zip(told, sources)]
        texts = [f"{made_up_text(rng, 12)} {3 * rng.randrange(10**9) + y}" for y in told]
        return Mails([f"met through {'abc'[source]}" for source in sources], texts, torch.tensor(outcome))

    settings = ChoiceSettings(**{**SETTINGS, "few_mails": few_mails})
    for reads_context in (True, False):
        model = Rule(0.6)
        model.reads_context = reads_context
        fit = fit_with(lambda *_, model=model: model, fit_bag=lambda *_: Constant())
        chosen, verdict = choose_reward_model(model, fit, sent(700), sent(300), group, settings)
        assert chosen is model and verdict.low > 0 > verdict.context_high
        assert verdict.is_informed == (not reads_context) and verdict.context_is_rival == reads_context
        assert "and of the context alone by -" in verdict.describe()


class ByContext:
    """A reward model that gives a mail what its context is worth."""

    def probabilities(self, contexts, texts):
        share = torch.tensor([context.count("a") / 1.0 for context in contexts])
        return torch.stack((1 - share, torch.zeros_like(share), share), 1)


@pytest.mark.slow
def test_rewards_that_differ_by_context_alone_are_refused(monkeypatch, capsys):
    made = trainer("algo.normalization_mails=16", reward_model=ByContext())
    made.has_models = False
    monkeypatch.setattr(type(made.sources), "load_or_train", lambda *_: (policy(), ByContext()))
    with pytest.raises(ValueError, match="standard deviation of 0.0000, expected at least 0.05 where the text alone"):
        made.setup(NullLogger(), lambda: False)
    assert made.score_std > 1 and "and 0.000 where the text alone changes" in capsys.readouterr().out


class Fits:
    """A reward model by which a text is worth 2 where it begins as its context does, else −1; a b costs it .3."""

    def probabilities(self, contexts, texts):
        fits = [text.startswith(context[0]) for context, text in zip(contexts, texts)]
        values = torch.tensor([[1.0, 0, 0] if not fit else [0, 0, 1.0] for fit in fits])
        has_b = torch.tensor(["b" in text for text in texts])
        return torch.where(has_b[:, None], values * 0.8 + torch.tensor([0.0, 0.2, 0.0]), values)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_a_text_would_be_worth_in_another_context_is_no_spread(monkeypatch, capsys, share):
    """All texts fit their contexts: only the b that a share of them has makes rewards differ, 1.7 and 2."""
    made = trainer("algo.normalization_mails=4000", reward_model=Fits())
    made.has_models = False
    monkeypatch.setattr(type(made.sources), "load_or_train", lambda *_: (policy(), Fits()))

    def generate(policy, contexts, samples, generator, **_):
        has_b = torch.rand(len(contexts), generator=generator) < share
        return None, [context[0] + (" b" if b else "") for context, b in zip(contexts, has_b.tolist())]

    monkeypatch.setattr(LanguageModelPolicy, "generate", generate)
    monkeypatch.setattr(made, "_report_cut_mails", lambda *_: None)
    if not share:
        with pytest.raises(ValueError, match="standard deviation of 0.0000"):
            made.setup(NullLogger(), lambda: False)
        return
    made.setup(NullLogger(), lambda: False)
    by_text = float(re.search(r"and ([\d.]+) where the text alone", capsys.readouterr().out)[1])
    assert by_text == pytest.approx(0.15, abs=0.01) and made.score_std == pytest.approx(0.15, abs=0.01)
