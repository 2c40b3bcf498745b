"""Which model may be a reward: the encoder, a bag of words, or none."""

from __future__ import annotations

import random

import pytest
import torch

from email_rl.data.mails import Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.reward_model.reward_choice import ChoiceSettings, bag_fitter, choose_reward_model
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


def choose(train, valid, strength, **changes):
    encoder = Rule(strength)
    settings = ChoiceSettings(**{**SETTINGS, **changes})
    return choose_reward_model(encoder, lambda *_: encoder, bag_fitter(0, BAG), train, valid, 0.8, settings)


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
    _, verdict = choose_reward_model(encoder, fit, bag_fitter(0, BAG), train, valid, 0.8, ChoiceSettings(**SETTINGS))
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
    fit = bag_fitter(0, BAG)
    settings = ChoiceSettings(**SETTINGS)
    model, verdict = choose_reward_model(lucky, lambda *_: blind, fit, train, valid, 0.8, settings)
    assert isinstance(model, BagOfWords) and verdict.is_informed and verdict.behind_bag > 0 and verdict.mails == 72


class Constant:
    """A reward model that gives every mail the same."""

    def probabilities(self, contexts, texts):
        return torch.full((len(texts), 3), 1 / 3)


@pytest.mark.slow
def test_rewards_that_do_not_differ_are_refused_before_anything_is_optimised(monkeypatch):
    made = trainer("algo.normalization_mails=16", reward_model=Constant())
    made.has_models = False
    monkeypatch.setattr(made.sources, "load_or_train", lambda *_: (policy(), Constant()))
    with pytest.raises(ValueError, match="standard deviation of 0.0000, expected at least 0.05.*What would help") as e:
        made.setup(NullLogger(), lambda: False)
    assert "\n" not in str(e.value)
