"""The user's CSV: reading, one-line refusals, near-duplicates on one side of a split, warnings."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from functools import cache

import pytest
import torch
from hydra.utils import instantiate

from configs import composed
from email_rl.data.dataset import MailDataset
from email_rl.data.leaks import label_leaks
from email_rl.data.mails import Mails, read_mails
from email_rl.data.splitting import near_duplicate_groups, stratified_split
from email_rl.training.model_sources import ModelSources
from mail_files import made_up_text, mail_rows, write_csv
from rlcore.runs.logger import NullLogger


@cache
def config(*overrides):
    return composed("algo=reward_model", "env=email", *overrides).env


def environment(path, *overrides):
    """Build the environment of a CSV as scripts/train.py would."""
    return instantiate(config(f"env.data={path}", *overrides), _convert_="all")("cpu", 0)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [False, True])
def test_every_way_to_write_a_file_reads_the_same(tmp_path, end, bom):
    lines = [
        ["CTO, retail", 'Hi "Anna",\nline two, größer', "0"],
        ["CFO", "Dear you\n\n— yours", "2"],
        ["CEO", "ok", "1"],
    ]
    if end == "\r":
        lines = [[c, t.replace("\n", " "), y] for c, t, y in lines]
    path = write_csv(tmp_path / "x.csv", lines, end=end, bom=bom)
    mails, numbers, given = read_mails(path)
    assert mails.contexts == [c for c, _, _ in lines] and mails.texts == [t for _, t, _ in lines]
    assert mails.outcome.tolist() == [0, 2, 1] and numbers == [2, 3, 4] and given == []


def test_columns_in_any_order_others_ignored_blank_lines_skipped(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(" Outcome ,id,email_text,context\n1,7,hello,CTO\n\n0,8,bye,CEO\n")
    mails, numbers, _ = read_mails(str(path))
    assert mails.texts == ["hello", "bye"] and mails.contexts == ["CTO", "CEO"] and numbers == [2, 4]


GOOD = "context,email_text,outcome\nCTO,hello,0\nCFO,bye,1\n"
BAD = {
    "missing column": ("context,email_text\nCTO,hello\n", ["row 1", "outcome", "missing"]),
    "another column twice": (
        "context,id,email_text,outcome,id\nCTO,1,hello,0,2\n",
        ["row 1", "column 'id' is there twice"],
    ),
    "split twice": (
        "context,email_text,outcome,split,Split\nCTO,hello,0,train,test\n",
        ["row 1", "column 'split' is there twice"],
    ),
    "column twice": ("context,email_text,outcome,outcome\nCTO,hello,0,1\n", ["row 1", "outcome", "twice"]),
    "semicolons": ("context;email_text;outcome\nCTO;hello;0\n", ["row 1", "context", "comma"]),
    "outcome 3": (GOOD + "CEO,hi,3\n", ["row 4", "column outcome", "'3'", "0 (no reply)"]),
    "outcome word": (GOOD + "CEO,hi,yes\n", ["row 4", "column outcome", "'yes'"]),
    "outcome empty": (GOOD + "CEO,hi,\n", ["row 4", "column outcome", "''"]),
    "empty text": (GOOD + "CEO,  ,1\n", ["row 4", "column email_text", "empty"]),
    "only marks": (GOOD + "CEO,?!,1\n", ["row 4", "column email_text", "empty"]),
    "empty context": (GOOD + ",hi,1\n", ["row 4", "column context", "empty"]),
    "after a quoted newline": (GOOD + '"CEO\nEU",hi,1\nCTO,yo,4\n', ["row 5 (line 6)", "column outcome", "'4'"]),
    "unquoted comma": (GOOD + "CEO,hi, there,1\n", ["row 4", "3 fields, got 4"]),
    "open quote": (GOOD + 'CEO,"hi,1\nCTO,a,0\n', ["row 4", "quote"]),
    "one class": ("context,email_text,outcome\nCTO,hello,1\nCFO,bye,1\n", ["column outcome", "only 1 (reply)"]),
    "no rows": ("context,email_text,outcome\n", ["column outcome", "no rows"]),
    "empty file": ("", ["empty", "context,email_text,outcome"]),
    "split": (
        "context,email_text,outcome,split\nCTO,hello,1,train\nCFO,bye,0,dev\n",
        ["row 3", "column split", "'dev'"],
    ),
}


@pytest.mark.parametrize("content, says", BAD.values(), ids=BAD)
def test_bad_files_are_told_where_and_what_was_expected(tmp_path, content, says):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_mails(str(path))
    told = str(error.value)
    assert told.startswith(str(path)) and all(words in told for words in says) and "\n" not in told, told


def test_wrong_encoding_and_no_file(tmp_path):
    for encoding in ("latin-1", "utf-16"):
        path = write_csv(tmp_path / "x.csv", [["CTO", "hello", "0"], ["CFO", "grüße", "1"]], encoding=encoding)
        with pytest.raises(ValueError, match=f"{path}: line {3 if encoding == 'latin-1' else 1}: not UTF-8"):
            read_mails(path)
    with pytest.raises(ValueError, match="nowhere.csv: no such file"):
        read_mails("nowhere.csv")


def jaccard(a, b):
    """Overlap of three-word shingles, written plainly."""
    one, two = ({tuple(t.strip(".").split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in (a, b))
    return len(one & two) / len(one | two)


@pytest.mark.long
def test_near_duplicates_are_those_that_overlap():
    rng = random.Random(3)
    texts = [made_up_text(rng, 40) for _ in range(60)]
    for i in range(60):
        words = texts[i].split()
        words[rng.choice((0, 1, -1))] = "changed"  # near: an end differs
        texts.append(" ".join(words))
        words = texts[i].split()
        for k in range(0, 40, 6):
            words[k] = "other"  # far: a word in six differs
        texts.append(" ".join(words))
    groups = near_duplicate_groups(texts, 0.8)
    for i in range(len(texts)):
        for j in range(i):
            if jaccard(texts[i], texts[j]) >= 0.8:
                assert groups[i] == groups[j]
    assert len(set(groups)) == 120  # and nothing else was joined


def test_case_punctuation_and_numbers_make_no_difference():
    groups = near_duplicate_groups(
        ["Hello Anna, offer 12!", "hello anna offer 99", "HELLO; Anna — Offer 7", "hello ben, offer 12"], 0.8
    )
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_split_keeps_groups_whole_and_shares_of_outcomes():
    rng = random.Random(0)
    outcome = torch.tensor([rng.choices((0, 1, 2), (80, 15, 5))[0] for _ in range(2000)])
    groups = [rng.randrange(1500) for _ in range(2000)]
    mails = Mails(["c"] * 2000, ["t"] * 2000, outcome)
    shares = {"train": 0.7, "valid": 0.15, "test": 0.15}
    split = stratified_split(mails, groups, shares, 0)
    assert sorted(i for part in split.values() for i in part) == list(range(2000))
    sides = {}
    for name, part in split.items():
        for i in part:
            assert sides.setdefault(groups[i], name) == name
        for y, n in Counter(outcome.tolist()).items():
            assert Counter(outcome[part].tolist())[y] == pytest.approx(shares[name] * n, abs=max(4, 0.02 * n))
    assert split == stratified_split(mails, groups, shares, 0) != stratified_split(mails, groups, shares, 1)


@pytest.mark.slow
def test_a_file_of_duplicates_keeps_them_on_one_side(tmp_path):
    lines = mail_rows(80)
    lines += [[c + " again", t.replace(".", "!"), y] for c, t, y in lines[:40]]
    env = environment(write_csv(tmp_path / "x.csv", lines))
    sides = [{text.strip(".!") for text in mails.texts} for mails in env.splits.values()]
    assert sum(map(len, sides)) == 80 and len(set.union(*sides)) == 80
    assert sum(map(len, env.splits.values())) == 120


def test_a_given_split_is_taken_and_duplicates_across_it_refused(tmp_path):
    header = ("context", "email_text", "outcome", "split")
    parts = ["train"] * 60 + ["valid"] * 20 + ["test"] * 20
    lines = [[*row, part] for row, part in zip(mail_rows(), parts)]
    env = environment(write_csv(tmp_path / "x.csv", lines, header))
    assert [len(env.splits[name]) for name in ("train", "valid", "test")] == [60, 20, 20]
    lines[90][1] = lines[3][1].upper()
    with pytest.raises(ValueError, match="row 92, column split: 'test'.*near-duplicate of row 5, which is 'train'"):
        environment(write_csv(tmp_path / "x.csv", lines, header))


FEWER = ("env.split.shares.train=0.5", "env.split.shares.valid=0.1")
JUDGED = (*FEWER, "+env.split.shares.judge=0.25")


def test_a_given_split_may_have_mails_for_a_judge_and_must_where_the_shares_do(tmp_path, capsys):
    header = ("context", "email_text", "outcome", "split")
    parts = ["train"] * 50 + ["valid"] * 10 + ["test"] * 15 + ["judge"] * 25
    lines = [[*row, part] for row, part in zip(mail_rows(), parts)]
    path = write_csv(tmp_path / "x.csv", lines, header)
    assert set(environment(path).splits) == {"train", "valid", "test"}  # no policy is judged here
    assert f"{path}: 25 rows of other sides than train, valid, test are left out" in capsys.readouterr().err
    env = environment(path, *JUDGED)
    assert "left out" not in capsys.readouterr().err
    assert env.splits["judge"].texts == [row[1] for row in lines[75:]]
    judge = env.judge_dataset()
    assert sorted(judge.train.texts + judge.valid.texts) == sorted(env.splits["judge"].texts)
    assert 2 <= len(judge.valid) <= 6 and judge.test.texts == judge.valid.texts  # a sixth of 25
    path = write_csv(tmp_path / "x.csv", [[*row[:3], row[3].replace("judge", "test")] for row in lines], header)
    with pytest.raises(
        ValueError, match="column split: no row says judge; expected rows for each of train, valid, tes"
    ):
        environment(path, *JUDGED)


def test_a_share_of_another_name_is_refused_and_a_file_without_a_judge_before_anything_trains(tmp_path):
    path = write_csv(tmp_path / "x.csv", mail_rows())
    with pytest.raises(ValueError, match="env.split.shares: expected shares of train, valid and test.*jugde"):
        environment(path, *FEWER, "+env.split.shares.jugde=0.25")
    names = inspect.signature(ModelSources.__init__).parameters
    sources = ModelSources(**{**dict.fromkeys(list(names)[1:]), "dataset": environment(path), "seed": 0})
    with pytest.raises(ValueError, match="no truth to judge mails by"):
        sources.load_or_train(NullLogger(), lambda: False, None)


def test_few_rows_are_warned_of_and_fewer_refused(tmp_path, capsys):
    env = environment(write_csv(tmp_path / "x.csv", mail_rows()))
    assert any("100 rows are few" in w for w in env.warnings) and "warning: " in capsys.readouterr().err
    assert sum(map(len, env.splits.values())) == 100 and set(env.test.outcome.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="29 rows; expected at least 30"):
        environment(write_csv(tmp_path / "x.csv", mail_rows(29)))


def test_an_outcome_that_never_occurs_is_warned_of(tmp_path):
    env = environment(write_csv(tmp_path / "x.csv", [[c, t, y.replace("2", "1")] for c, t, y in mail_rows()]))
    assert any("2 (conversion) occurs 0 times" in w for w in env.warnings)


def test_few_texts_sent_again_and_again_are_split_with_a_warning(tmp_path):
    texts = [made_up_text(random.Random(i)) for i in range(3)]
    lines = [[f"customer {'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}", texts[i % 3], str(i % 2)] for i in range(99)]
    env = environment(write_csv(tmp_path / "x.csv", lines))
    assert any("few texts sent again and again (3 that differ)" in w for w in env.warnings)
    assert all(len(mails) for mails in env.splits.values())


@pytest.mark.slow
def test_sentences_that_give_the_outcome_away_are_named(tmp_path):
    told = {"0": "We sell things.", "1": "Could we talk?", "2": "Your 20 percent discount is ready."}
    lines = [[c, f"{t} {told[y].replace('20', str(i))}", y] for i, (c, t, y) in enumerate(mail_rows(200))]
    env = environment(write_csv(tmp_path / "x.csv", lines))
    warning = next(w for w in env.warnings if "fixed sentences" in w)
    assert "100%" in warning and "We sell things." in warning and "Could we talk?" in warning and "→ 1" in warning
    assert "percent discount is ready" in warning  # whatever the number
    assert not any("fixed sentences" in w for w in environment(write_csv(tmp_path / "y.csv", mail_rows(200))).warnings)


def test_a_sentence_as_common_as_its_outcome_gives_nothing_away():
    rng = random.Random(0)
    outcome = torch.tensor([int(rng.random() < 0.03) for _ in range(3000)])
    texts = [made_up_text(rng) + (" Best wishes from us." if i % 30 == 0 else "") for i in range(3000)]
    assert label_leaks(Mails(["c"] * 3000, texts, outcome), min_count=3, purity=0.98, false_discovery=0.05) == []


@pytest.mark.long
def test_the_embedded_corpus_has_no_telling_sentences():
    env = instantiate(config("env.corpus.train=4000", "env.corpus.valid=100", "env.corpus.test=100"), _convert_="all")(
        "cpu", 0
    )
    assert label_leaks(env.train, min_count=3, purity=0.98, false_discovery=0.05) == []


def test_mails_survive_packing():
    mails = Mails(["a", "b ü"], ["x\ny", "z"], torch.tensor([2, 0]))
    assert Mails.unpack(mails.pack()).texts == mails.texts and Mails.unpack(mails.pack()).contexts == mails.contexts
    empty = mails.rows([])
    assert len(Mails.unpack(empty.pack())) == 0
    assert mails.without(Mails(["q"], ["X, y!"], torch.tensor([1]))).texts == ["z"]


def test_a_dataset_with_its_sides_exchanged_is_another_whatever_the_order_of_the_sides():
    """A model of the cache must not be tested on what it was trained on."""
    a, b, c = (Mails(["c"], [text], torch.tensor([0])) for text in "abc")
    dataset = MailDataset.__new__(MailDataset)

    def digest(**splits):
        dataset.splits = splits
        return dataset.digest

    one, turned, other = digest(train=a, valid=c, test=b), digest(train=b, valid=c, test=a), digest(train=a, valid=b)
    assert one == digest(test=b, valid=c, train=a) and len({one, turned, other}) == 3
    assert digest(train=a) != digest(train=Mails(["c"], ["a"], torch.tensor([1])))
