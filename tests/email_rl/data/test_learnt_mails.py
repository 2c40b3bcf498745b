"""Which mails a model has learnt from: what is left of a file for those that judge it."""

from __future__ import annotations

import inspect

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
        sources(dataset, tmp_path / "bag")._check_unread(learnt)
    assert "\n" not in str(e.value) and "env.split.shares and env.split.seed" in str(e.value)
    dataset.min_rows = 3
    capsys.readouterr()
    sources(dataset, tmp_path / "bag")._check_unread(learnt)
    left_out = len(dataset.splits["judge"]) - len(judging)
    assert f"judge: {left_out} of {len(dataset.splits['judge'])} mails are left out" in capsys.readouterr().out


def test_a_reward_model_of_the_same_split_takes_no_mail_from_test_and_judge(tmp_path, capsys):
    path = write_csv(tmp_path / "mails.csv", mail_rows(100))
    dataset = environment(path, *SHARES, "+env.split.shares.judge=0.25")
    learnt = LearntMails.of(dataset.train, dataset.valid)
    capsys.readouterr()
    sources(dataset, tmp_path)._check_unread(learnt)
    assert capsys.readouterr().out == ""
    for side in ("test", "judge"):
        assert dataset.unread(side, learnt).texts == dataset.splits[side].texts
    assert dataset.unread("valid", learnt, fitted_only=True).texts == dataset.valid.texts


def test_of_a_sorted_file_mails_are_drawn_from_all_of_it_and_of_a_short_one_all_are_taken():
    """900 mails in the order of their outcomes, of which 100 are read: the first ones all got no answer."""
    sizes = [f"env.corpus.{side}=8" for side in ("train", "valid", "test")]
    dataset = instantiate(composed("algo=sft", "env=email", *sizes).env, _convert_="all")("cpu", 0)
    gold, dataset.gold = dataset.gold, None
    some = Mails(["c"] * 900, [str(i) for i in range(900)], torch.tensor([0] * 600 + [1] * 200 + [2] * 100))
    drawn = dataset.sample(some, 100)
    assert len(set(drawn.texts)) == 100 and 10 <= (drawn.outcome == 1).sum() <= 36 and (drawn.outcome == 2).any()
    assert dataset.sample(some, 900).texts == some.texts == dataset.sample(some, 10**6).texts
    assert sorted(dataset.shuffled_rows(some, 100)) == list(range(900)) == dataset.shuffled_rows(some, None)
    dataset.gold = gold  # the market's mails are in random order already
    assert dataset.sample(some, 100).texts == some.texts[:100]
