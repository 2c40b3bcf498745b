"""Which mails a model has learnt from: what is left of a file for those that judge it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from email_rl.data.learnt_mails import FILE, LearntMails
from email_rl.data.mails import Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.outcome_model import export_outcome_model, load_outcome_model
from email_rl.training.model_sources import ModelSources
from mail_files import mail_rows, write_csv
from rlcore.runs.logger import NullLogger

SHARES = [f"env.split.shares.{side}={share}" for side, share in (("train", 0.5), ("valid", 0.1), ("test", 0.15))]
BAG = {"lr": 0.05, "weight_decay": 0.0, "epochs": 1, "min_steps": 2, "batch_size": 64}


def mails(*texts):
    return Mails(["c"] * len(texts), list(texts), torch.zeros(len(texts), dtype=torch.long))


def by_first_letter(some):
    return [ord(text[0]) for text in some.texts]


def test_a_mail_is_unread_where_the_model_knows_none_of_its_group(tmp_path):
    learnt = LearntMails.of(mails("a 1", "b 1"), mails("d 1"))
    some = mails("a 1", "a 2", "b 2", "c 1", "d 1", "d 2")
    assert learnt.unread(some, by_first_letter).texts == ["b 2", "c 1"]
    assert learnt.unread(some, by_first_letter, fitted_only=True).texts == ["b 2", "c 1", "d 1", "d 2"]
    other_context = Mails(["other"], ["a 1"], torch.tensor([0]))
    assert len(learnt.unread(other_context, by_first_letter)) == 1
    learnt.save(tmp_path)
    assert LearntMails.load(tmp_path) == learnt == LearntMails.unpack(learnt.pack())
    (tmp_path / FILE).write_text('{"fitted": 1}')
    with pytest.raises(ValueError, match="learnt_from.json: expected the hashes of mails"):
        LearntMails.load(tmp_path)
    (tmp_path / FILE).unlink()
    assert LearntMails.load(tmp_path) is None


def environment(path, *overrides):
    cfg = composed("algo=reward_model", "env=email", f"env.data={path}", *overrides)
    return instantiate(cfg.env, _convert_="all")("cpu", 0)


def reward_model(dataset, *overrides):
    """A reward model that has not trained yet."""
    cfg = composed("algo=reward_model", "env=email", *overrides)
    return instantiate(cfg.algo, _convert_="all")(dataset, 0)


def sources(dataset, folder):
    names = inspect.signature(ModelSources.__init__).parameters
    given = {"dataset": dataset, "seed": 0, "reward_model_folder": str(folder)}
    return ModelSources(**{**dict.fromkeys(list(names)[1:]), **given})


def test_a_reward_model_of_another_split_leaves_its_mails_out_of_test_and_judge_or_is_refused(tmp_path, capsys):
    """The model learns from 85 % of the file, as algo=reward_model splits it; PPO splits the same file otherwise."""
    path = write_csv(tmp_path / "mails.csv", mail_rows(400))
    alone = environment(path)
    bag = BagOfWords.fit(alone.train, alone.valid, 0, **BAG)
    export_outcome_model(bag, tmp_path / "bag")
    learnt = load_outcome_model(tmp_path / "bag", torch.device("cpu"), 8).learnt
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    read = set(alone.train.texts + alone.valid.texts)
    judge = dataset.judge_dataset(learnt)
    judging = set(judge.train.texts + judge.valid.texts)
    assert len(read & set(dataset.splits["judge"].texts)) > 50  # else the test would say nothing
    assert judging == set(dataset.splits["judge"].texts) - read
    unread = set(dataset.unread("valid", learnt, fitted_only=True).texts)
    assert unread == set(dataset.valid.texts) - set(alone.train.texts)
    with pytest.raises(
        ValueError, match=r"has learnt from \d+ of the \d+ mails of split (test|judge); expected 30 others"
    ) as e:
        sources(dataset, tmp_path / "bag")._check_unread(learnt, "here")
    assert "\n" not in str(e.value) and "env.split.shares and env.split.seed" in str(e.value)
    dataset.min_rows = 3
    capsys.readouterr()
    sources(dataset, tmp_path / "bag")._check_unread(learnt, "here")
    sources(dataset, tmp_path / "bag")._report_left_out(learnt)
    left_out = len(dataset.splits["judge"]) - len(judging)
    assert f"judge: {left_out} of {len(dataset.splits['judge'])} mails are left out" in capsys.readouterr().out


def test_a_reward_model_of_the_same_split_takes_no_mail_from_test_and_judge(tmp_path, capsys):
    path = write_csv(tmp_path / "mails.csv", mail_rows(100))
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    learnt = LearntMails.of(dataset.train, dataset.valid)
    capsys.readouterr()
    sources(dataset, tmp_path)._check_unread(learnt, "here")
    sources(dataset, tmp_path)._report_left_out(learnt)
    assert capsys.readouterr().out == ""
    for side in ("test", "judge"):
        assert dataset.unread(side, learnt).texts == dataset.splits[side].texts
    assert dataset.unread("valid", learnt, fitted_only=True).texts == dataset.valid.texts


def test_of_a_split_that_is_smaller_than_the_least_all_mails_are_expected(tmp_path):
    path = write_csv(tmp_path / "mails.csv", mail_rows(100))
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    n = len(dataset.test)
    assert n < dataset.min_rows
    read = LearntMails.of(dataset.test.rows([0]), dataset.test.rows([]))
    with pytest.raises(ValueError, match=rf"here: has learnt from \d of the {n} mails of split test; expected {n} oth"):
        sources(dataset, tmp_path)._check_unread(read, "here")


def test_weights_of_a_run_bring_the_mails_that_they_have_learnt_from(tmp_path, capsys):
    """A model that begins with the weights of another one, which had another split of the same file."""
    path = write_csv(tmp_path / "mails.csv", mail_rows(400))
    small = ["algo.encoder.dim=16", "algo.encoder.ffn_dim=16", "algo.encoder.layers=1", "algo.encoder.heads=2"]
    first = reward_model(environment(path), *small)
    capsys.readouterr()
    first.export_model(tmp_path / "first")
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    source = ["algo/encoder=local", f"algo.encoder.source.path={tmp_path / 'first'}"]
    second = reward_model(dataset, *source)
    warned = capsys.readouterr().err
    for side in ("valid", "test"):
        n, left = len(dataset.splits[side]), len(dataset.unread(side, first.classifier.learnt))
        assert f"the weights have learnt from {n - left} of the {n} mails of split {side}" in warned and left < n
    learnt = second.classifier.learnt
    assert learnt.fitted == LearntMails.of(first.env.train + dataset.train, dataset.valid).fitted
    assert learnt.chosen_by == LearntMails.of(dataset.train, first.env.valid + dataset.valid).chosen_by
    second.export_model(tmp_path / "second")
    assert load_outcome_model(tmp_path / "second", torch.device("cpu"), 8).learnt == learnt
    with pytest.raises(ValueError, match=r"algo.encoder.source.path: \S+first: has learnt from \d+ of the \d+ mails"):
        replace(sources(dataset, ""), encoder=second.encoder).load_or_train(NullLogger(), lambda: False, lambda x: x)


def test_a_judge_learns_from_no_mail_that_its_first_weights_know(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "mails.csv", mail_rows(400))
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    dataset.min_rows = 3
    alone = environment(path)
    before, learnt = LearntMails.of(alone.train, alone.valid), LearntMails.of(dataset.train, dataset.valid)
    asked = []

    def train(sources, name, mails, *_):
        asked.append(mails.train.texts + mails.valid.texts)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelSources, "_train_reward_model", train)
    for known in (learnt, None):
        with pytest.raises(KeyboardInterrupt):
            replace(sources(dataset, ""), encoder=SimpleNamespace(learnt=before)).judge(lambda x: x, known)
    read = set(alone.train.texts + alone.valid.texts)
    assert [set(texts) for texts in asked] == [set(dataset.splits["judge"].texts) - read] * 2


def test_of_a_sorted_file_mails_are_drawn_from_all_of_it_and_of_a_short_one_all_are_taken():
    """900 mails in the order of their outcomes, of which 100 are read: the first ones all got no answer."""
    sizes = [f"env.corpus.{side}=8" for side in ("train", "valid", "test")]
    dataset = instantiate(composed("algo=sft", "env=email", *sizes).env, _convert_="all")("cpu", 0)
    gold, dataset.gold = dataset.gold, None
    some = Mails(["c"] * 900, [str(i) for i in range(900)], torch.tensor([0] * 600 + [1] * 200 + [2] * 100))
    drawn = dataset.sample(some, 100)
    assert len(set(drawn.texts)) == 100 and 10 <= (drawn.outcome == 1).sum() <= 36 and (drawn.outcome == 2).any()
    assert dataset.sample(some, 900).texts == some.texts == dataset.sample(some, 10**6).texts
    assert sorted(dataset.rows_to_draw_from(some, 100)) == list(range(900)) == dataset.rows_to_draw_from(some, None)
    dataset.gold = gold  # the market's mails are in random order already
    assert dataset.sample(some, 100).texts == some.texts[:100]
