"""The reward model: figures against other implementations, calibration, resume, refresh, and the script in use."""

from __future__ import annotations

import json
import math
import random
import signal
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import script_runner
from configs import composed
from email_rl.data import metrics
from email_rl.data.learnt_mails import LearntMails
from email_rl.data.mails import Mails
from email_rl.models.bag_of_words import BagOfWords
from email_rl.models.encoders import PretrainedEncoder, token_overlap
from email_rl.models.hf_io import FromFolder, FromHub
from email_rl.models.outcome_classifier import REWARD_MODEL_FOLDER, OutcomeClassifier
from email_rl.models.outcome_model import load_outcome_model
from email_rl.reward_model.reward_model import RewardModel
from envs.offers.env import OffersEnv
from mail_files import mail_rows, write_csv
from rlcore.ppo import PPO
from rlcore.runs import checkpoint
from rlcore.runs.logger import NullLogger
from rlcore.schedules import linear_with_warmup
from rlcore.training_loop import TrainingLoop
from scripts.shared.stored_runs import check_fit
from stored import save_state

ROOT = Path(__file__).parents[3]
SMALL = [
    "algo=reward_model",
    "env=email",
    "env.corpus.train=320",
    "env.corpus.valid=64",
    "env.corpus.test=80",
    "algo.encoder.dim=16",
    "algo.encoder.ffn_dim=16",
    "algo.encoder.layers=1",
    "algo.encoder.heads=2",
    "algo.encoder.batch_size=16",
    "algo.encoder.steps=1",
    "algo.updates_per_iteration=4",
    "algo.eval_every=2",
    "algo.checkpoint_every=1",
    "env.evaluation.bootstrap_samples=50",
    "env.bag_of_words.epochs=1",
    "env.bag_of_words.min_steps=20",
    "env.evaluation.compare_inputs=false",
]


LEARN = ["algo.encoder.lr=0.01", "algo.refresh.steps=250", "algo.patience=1000000", "algo.patience_passes=1000000"]


@cache
def config(*overrides):
    return composed(*SMALL, *overrides)


def build(*overrides, env=None, seed=0):
    """Make environment and agent as scripts/train.py does, at a small size."""
    cfg = config(*overrides)
    env = env or instantiate(cfg.env, _convert_="all")("cpu", seed)
    return env, instantiate(cfg.algo, _convert_="all")(env, seed)


def train(agent, **how):
    """Run an agent in the loop, validated by itself."""
    TrainingLoop(agent, NullLogger(), validate=agent.validate, **how).run()


def trained(*overrides, **kwargs):
    env, agent = build(*overrides, **kwargs)
    train(agent)
    return env, agent


@pytest.fixture(scope="module")
def finished():
    """A trained small model."""
    return trained()


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def drawn(n=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, 3, generator=generator, dtype=torch.float64).pow(2) + 0.01
    p = p / p.sum(1, keepdim=True)
    return p, torch.multinomial(p, 1, generator=generator)[:, 0]


def test_figures_equal_a_plain_writing():
    p, y = drawn()
    rows_, said = p.tolist(), [max(range(3), key=row.__getitem__) for row in p.tolist()]
    truth = y.tolist()
    found = metrics.classification_metrics(p, y, 15)
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in zip(said, truth)) / 500)
    assert found["log_loss"] == pytest.approx(-sum(math.log(row[t]) for row, t in zip(rows_, truth)) / 500)
    f1 = []
    for k in range(3):
        hits = sum(a == b == k for a, b in zip(said, truth))
        precision, recall = hits / said.count(k), hits / truth.count(k)
        f1.append(2 * precision * recall / (precision + recall))
        assert found["confusion"][k] == [sum(t == k and s == j for t, s in zip(truth, said)) for j in range(3)]
    assert found["macro_f1"] == pytest.approx(sum(f1) / 3)
    gap = 0.0
    for b in range(15):
        here = [i for i in range(500) if b / 15 <= max(rows_[i]) < (b + 1) / 15]
        if here:
            gap += abs(sum(max(rows_[i]) for i in here) - sum(said[i] == truth[i] for i in here)) / 500
    assert found["ece"] == pytest.approx(gap)


def test_f1_counts_an_outcome_that_is_never_predicted():
    p, y = torch.tensor([[0.9, 0.1, 0.0]]).expand(4, 3), torch.tensor([0, 0, 0, 1])
    assert metrics.classification_metrics(p, y, 10)["macro_f1"] == pytest.approx((2 * 3 / (3 + 4) + 0) / 2)


@pytest.mark.slow
def test_temperature_undoes_a_scale_and_minimises():
    p, y = drawn(20000)
    ones = torch.ones(len(y))
    assert metrics.fit_temperature(3 * p.log(), y, ones) == pytest.approx(3, rel=0.05)
    t = metrics.fit_temperature(p.log() * 0.4, y, ones)
    at = [metrics.log_losses((p.log() * 0.4 / s).softmax(1), y).mean() for s in (t * 0.98, t, t * 1.02)]
    assert at[1] < at[0] and at[1] < at[2]
    weight = (y == 2).double()  # a weight of 0 leaves a mail out
    assert metrics.fit_temperature(p.log(), y, weight) == pytest.approx(
        metrics.fit_temperature(p.log()[y == 2], y[y == 2], torch.ones(int(weight.sum()))), rel=1e-6
    )


def test_mails_that_are_all_told_right_do_not_choose_certainty():
    logits, y = torch.tensor([[2.0, 0.0, 0.0]] * 9 + [[0.0, 2.0, 0.0]] * 6), torch.tensor([0] * 9 + [1] * 6)
    t = metrics.fit_temperature(logits, y, torch.ones(15))
    share = torch.tensor([0.6, 0.4, 0.0])
    target = torch.stack([(15 * torch.eye(3)[k] + share) / 16 for k in y.tolist()])

    def loss(scale):
        return -(target * (logits / scale).log_softmax(1)).sum().item()

    assert loss(t) == pytest.approx(min(loss(0.05 * 1.002**i) for i in range(3000)), abs=1e-5)
    assert (logits / t).softmax(1).max() < 0.97  # 15 of 16 and a share; without the prior, 1


def test_paired_bootstrap_matches_the_normal_interval():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    low, high = metrics.bootstrap_interval(x, 1000, 0)
    half = 1.96 * x.std().item() / 4000**0.5
    assert low == pytest.approx(x.mean().item() - half, abs=0.15 * half)
    assert high == pytest.approx(x.mean().item() + half, abs=0.15 * half)


def test_mails_of_a_group_are_drawn_together():
    """20 texts sent 50 times: the interval is that of the 20 texts' means, sd .1, not of 1,000 mails."""
    generator = torch.Generator().manual_seed(3)
    of_texts = 0.1 * torch.randn(20, generator=generator, dtype=torch.float64)
    x = of_texts.repeat_interleave(50) + 0.4 * torch.randn(1000, generator=generator, dtype=torch.float64)
    groups = [100 - i // 50 for i in range(1000)]
    low, high = metrics.bootstrap_interval(x, 1000, 0, groups)
    means = x.view(20, 50).mean(1)
    half = 1.96 * means.std(correction=0).item() / 20**0.5
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert half > 1.4 * 1.96 * x.std().item() / 1000**0.5
    alone = metrics.bootstrap_interval(x, 50, 0, list(range(1000)))
    assert metrics.bootstrap_interval(x, 50, 0) == alone
    uneven = torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64)  # a draw of one group alone has its mean
    assert metrics.bootstrap_interval(uneven, 400, 0, [0, 0, 0, 1]) == pytest.approx((1.0, 5.0))


@pytest.mark.slow
def test_bag_of_words_learns_words_and_not_matches():
    rng = random.Random(0)
    pairs = [(rng.choice("ab"), rng.choice("ab"), rng.choice(("good", "bad"))) for _ in range(3000)]
    contexts, texts = [f"context {c}" for c, _, _ in pairs], [f"text {t} {w}" for _, t, w in pairs]
    settings = {"lr": 0.1, "weight_decay": 0.0, "epochs": 4, "min_steps": 0, "batch_size": 100}
    for outcome, loss in (
        ([int(w == "good") for *_, w in pairs], 0.0),
        ([int(c == t) for c, t, _ in pairs], math.log(2)),
    ):
        mails = Mails(contexts, texts, torch.tensor(outcome))
        p = BagOfWords.fit(mails, mails, 0, **settings).probabilities(contexts, texts)
        assert metrics.log_losses(p, mails.outcome).mean().item() == pytest.approx(loss, abs=0.02)


@pytest.mark.long
# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_training_never_sees_gold_or_test():
    class Guarded:
        def __init__(self, env):
            self.device, self.seed, self.outcome_values, self.name = env.device, env.seed, env.outcome_values, env.name
            self.train, self.valid, self.digest = env.train, env.valid, env.digest
            self.splits = {name: env.splits[name] for name in ("train", "valid")}

        def __getattr__(self, name):
            raise AssertionError(f"training asked for env.{name}")

    env, agent = build()
    guarded = RewardModel(Guarded(env), 0, **agent.settings)
    train(guarded)
    assert guarded.finished


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["text", "context_text"])
def test_input_is_what_the_model_sees(reads):
    env, agent = build(f"algo.input={reads}")
    text = env.test.texts[0]
    p = agent.classifier.probabilities([env.test.contexts[0], "CFO in banking", "CFO in banking"], [text, text, text])
    assert p[1].equal(p[2]) and p[0].equal(p[1]) is (reads == "text")
    ids = agent.classifier.token_ids([env.test.contexts[0]], [text])[0]
    said = agent.classifier.tokenizer.decode(ids)
    assert said.count("[SEP]") == (1 if reads == "text" else 2) and said.startswith("[CLS]")
    assert (env.test.contexts[0].split()[0].lower() in said.split("[SEP]")[0]) or reads == "text"


def test_the_auxiliary_task_marks_what_both_parts_have():
    x = torch.tensor([[2, 7, 8, 9, 3, 8, 5, 8, 3, 0], [2, 7, 3, 7, 7, 3, 0, 0, 0, 0]])
    shared, counts = token_overlap(x, (x > 0).long(), 2, 3)
    assert counts.int().tolist() == [[0, 1, 1, 1, 0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0, 0, 0]]
    assert shared.int().tolist() == [[0, 0, 1, 0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.slow
def test_padding_changes_no_probability():
    env, agent = build()
    for weight in agent.network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, 0, 0.3)  # so that what is attended to matters
    together = agent.classifier.probabilities(env.test.contexts, env.test.texts)
    alone = torch.cat(
        [agent.classifier.probabilities([c], [t]) for c, t in zip(env.test.contexts[:12], env.test.texts[:12])]
    )
    assert together.std(0).max() > 1e-3
    assert torch.allclose(together[:12], alone, atol=1e-5)


def test_an_epoch_has_every_mail_once_in_an_order_of_its_own():
    _, agent = build()
    epochs = [[i for rows_ in agent.batches(epoch) for i in rows_] for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(len(agent.train_ids))) for epoch in epochs) and epochs[0] != epochs[1]
    assert [i for rows_ in agent.batches(0) for i in rows_] == epochs[0]


def test_learning_rate_rises_and_falls():
    rates = [linear_with_warmup(step, 20, 0.25, 0.1) for step in range(21)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]) and rates[20] == pytest.approx(0.1)
    assert [a - b for a, b in pairwise(rates[5:])] == pytest.approx([0.06] * 15)


@pytest.mark.slow
def test_class_weights_are_taken_out_of_the_probabilities():
    """A network that knows only the outcomes' shares must give these, whatever the weights."""
    env, agent = build("algo.class_weight_power=1.0")
    share = torch.bincount(env.train.outcome, minlength=3).float() / len(env.train)
    assert (agent.class_weights * share).sum() == pytest.approx(1) and (agent.class_weights * share).std() < 1e-6
    with torch.no_grad():
        agent.output_layer.weight.zero_()
        agent.output_layer.bias.copy_((agent.class_weights * share).log())  # where weighted cross-entropy would end
    p = agent.valid_logits().softmax(1)
    assert torch.allclose(p, share.expand_as(p), atol=1e-6)
    agent.best = {name: x.clone() for name, x in agent.network.state_dict().items()}
    agent.finish()
    ratio = agent.probabilities(env.test)[0].log() * agent.temperature
    assert torch.allclose(ratio.softmax(0), share, atol=1e-5)


@pytest.mark.long
def test_finishing_takes_the_best_weights_and_folds_the_temperature(finished):
    _env, agent = build()
    agent.observe_validation(agent.validate())
    first = {name: x.clone() for name, x in agent.network.state_dict().items()}
    logits = agent.valid_logits()
    agent.iterate(0.0)
    agent.observe_validation({"validation/log_loss": float("inf")})
    assert (agent.best_at, agent.updates_done) == (0, 4)
    agent.finish()
    assert agent.network.state_dict()["distilbert.embeddings.word_embeddings.weight"].equal(
        first["distilbert.embeddings.word_embeddings.weight"]
    )
    assert torch.allclose(agent.valid_logits(), logits / agent.temperature, atol=1e-5)


def test_transformers_loads_what_was_saved_with_the_same_probabilities(finished, tmp_path):
    env, agent = finished
    agent.export(tmp_path)
    agent.export(tmp_path)  # a second time takes the first one's place
    assert [path.name for path in tmp_path.iterdir()] == [REWARD_MODEL_FOLDER]
    model, tokenizer = (
        kind.from_pretrained(tmp_path / REWARD_MODEL_FOLDER)
        for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    assert type(model).__name__ == "DistilBertForSequenceClassification" and model.config.id2label[2] == "conversion"
    batch = tokenizer(env.test.contexts, env.test.texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        p = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(1)
    assert torch.allclose(p, agent.probabilities(env.test), atol=1e-5)
    scorer = OutcomeClassifier.load(tmp_path / REWARD_MODEL_FOLDER, torch.device("cpu"), 32)
    assert torch.allclose(scorer.probabilities(env.test.contexts, env.test.texts), p, atol=1e-5)
    known = load_outcome_model(tmp_path / REWARD_MODEL_FOLDER, torch.device("cpu"), 32).learnt
    assert known == LearntMails.of(env.train, env.valid)
    local, _ = PretrainedEncoder(
        source=FromFolder(path=str(tmp_path / REWARD_MODEL_FOLDER)),
        max_length=64,
        lr=1.0,
        steps=1,
        batch_size=1,
        overlap_weight=0.0,
    ).build([], [])
    assert local.state_dict()["classifier.bias"].equal(agent.network.state_dict()["classifier.bias"])
    with pytest.raises(ValueError, match="algo.encoder.source.path"):
        PretrainedEncoder(
            source=FromFolder(path=str(tmp_path)), max_length=8, lr=1.0, steps=1, batch_size=1, overlap_weight=0.0
        ).build([], [])


@pytest.mark.long
def test_resumed_equals_uninterrupted(finished, tmp_path):
    env = finished[0]
    _, whole = trained("algo.encoder.dropout=0.1", env=env)
    _, cut = build("algo.encoder.dropout=0.1", env=env)
    states = []
    train(cut, save=lambda: states.append(cut.state_dict()), should_stop=lambda: cut.iteration == 3)
    assert cut.iteration == 3 and not cut.finished
    save_state(tmp_path / "checkpoint.pt", "reward_model", states[-1])
    torch.manual_seed(99)
    _, resumed = build("algo.encoder.dropout=0.1", env=env)
    resumed.load_state_dict(checkpoint.load(tmp_path / "checkpoint.pt")["agent"])
    train(resumed)
    assert resumed.probabilities(env.test).equal(whole.probabilities(env.test))
    assert resumed.temperature == whole.temperature


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_gets_no_better():
    _env, agent = build("algo.encoder.lr=0", "algo.patience=8", "algo.encoder.steps=1000", "algo.eval_every=1")
    train(agent)
    assert agent.finished and agent.iteration == 3


def test_a_run_that_diverged_says_so():
    _, agent = build()
    agent.observe_validation({"validation/log_loss": float("nan")})
    with pytest.raises(ValueError, match="algo.encoder.lr.*diverged"):
        agent.finish()


@pytest.mark.long
def test_refresh_learns_the_new_and_keeps_the_old(finished):
    """New mails in words the model has never seen, whose outcome one word tells."""
    env, agent = finished
    state = agent.state_dict()
    rng = random.Random(0)

    def news(n):
        outcome = [rng.randrange(3) for _ in range(n)]
        return Mails(
            ["new customer"] * n,
            [f"{('no', 'dull', 'yes')[y]} {rng.randrange(100)}" for y in outcome],
            torch.tensor(outcome),
        )

    fresh = instantiate(config().env, _convert_="all")("cpu", 0)
    fresh.splits = {
        "train": news(200) + env.test.rows([0, 1]),
        "valid": news(40),
        "test": news(60) + env.train.rows([5]),
    }
    _, refreshed = build(*LEARN, env=fresh)
    refreshed.load_state_dict(state)
    assert len(refreshed.train_mails) == 400  # 200 new, 200 old; the two that stand in the old test are left out
    old_test = set(env.test.texts)
    assert not old_test & set(refreshed.train_mails.texts) and not set(refreshed.new_splits()["test"].texts) & set(
        env.train.texts
    )
    assert refreshed.before_refresh["old"].equal(agent.probabilities(env.test))
    learnt = refreshed.classifier.learnt  # of all old training mails, though half of them are replayed
    assert learnt.fitted >= LearntMails.of(env.train, env.valid).fitted and len(learnt.fitted) > len(env.train)
    train(refreshed)
    report = fresh.evaluation(fresh).evaluate(refreshed, "reward_model")
    found = {(row["split"], row["when"]): row["log_loss"] for row in report.refresh}
    assert found["new", "after"] < found["new", "before"] - 0.1 and found["old", "after"] < found["old", "before"] + 0.1
    lines = report.parts()["refresh"].to_markdown().splitlines()[2:]
    cells = {(age, when): [x.strip() for x in line.split("|")[1:-1]] for (age, when), line in zip(found, lines)}
    for age in ("old", "new"):
        assert cells[age, "before"][0] == f"{age}, before" and cells[age, "before"][5] == ""
        gained = found[age, "before"] - found[age, "after"]
        assert float(cells[age, "after"][5]) == pytest.approx(gained, abs=6e-4)
    again = refreshed.state_dict()  # and a second refresh replays both
    assert again["refreshed"] and len(again["mails"]["old"]["train"]["outcome"]) == len(env.train)
    _, resumed = build(*LEARN, env=fresh)
    resumed.load_state_dict(again)
    assert (
        resumed.probabilities(env.test).equal(refreshed.probabilities(env.test))
        and resumed.iterations == refreshed.iterations
    )


@pytest.mark.long
def test_a_run_whose_training_and_test_mails_changed_places_is_refreshed(finished):
    """The same mails on other sides are other mails; as nothing of them is new, there is nothing to refresh with."""
    env, agent = finished
    turned = env.with_splits({"train": env.test, "valid": env.valid, "test": env.train})
    _, other = build(env=turned)
    with pytest.raises(ValueError, match="nothing new for train"):
        other.load_state_dict(agent.state_dict())


@pytest.mark.long
def test_an_unfinished_run_or_another_input_cannot_be_refreshed(finished):
    _env, agent = build()
    agent.iterate(0.0)
    other = build(seed=1)[1]
    with pytest.raises(ValueError, match="had not finished"):
        other.load_state_dict(agent.state_dict())
    with pytest.raises(ValueError, match="algo.input"):
        build("algo.input=text")[1].load_state_dict(finished[1].state_dict())


# ── the script ──────────────────────────────────────────────────────────────────────────────────────────────────────
def run(tmp_path, *overrides, small=SMALL):
    """Run scripts/train.py in a folder of its own."""
    return script_runner.run(tmp_path, "train", *small, "device=cpu", *overrides)


@pytest.mark.long
def test_a_hundred_rows_end_to_end_then_refreshed(tmp_path):
    path = write_csv(tmp_path / "hundred.csv", mail_rows())
    done = run(tmp_path, f"env.data={path}", "hydra.run.dir=out", "env.evaluation.compare_inputs=true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "100 rows are few" in done.stderr and "bag of words" in done.stdout
    folder = tmp_path / "out"
    assert {
        "checkpoint.pt",
        "metrics.json",
        "confusion.png",
        "calibration.png",
        "training.png",
        REWARD_MODEL_FOLDER,
    } <= {p.name for p in folder.iterdir()}
    found = json.loads((folder / "metrics.json").read_text())
    for row in ("reward_model", "reward_model_text", "bag_of_words", "majority"):
        assert {"accuracy", "macro_f1", "log_loss", "ece"} <= set(found[row])
    assert found["data"]["warnings"] and found["seconds"] > 0 and "gold" not in found
    more = write_csv(tmp_path / "new.csv", mail_rows(60, seed=9))
    again = run(tmp_path, f"env.data={more}", "hydra.run.dir=again", "resume=out/checkpoint.pt")
    assert again.returncode == 0, again.stderr[-2000:]
    assert "before and after the refresh" in again.stdout
    assert [
        (row["split"], row["when"]) for row in json.loads((tmp_path / "again" / "metrics.json").read_text())["refresh"]
    ] == [("old", "before"), ("old", "after"), ("new", "before"), ("new", "after")]


def test_an_unreachable_hub_is_one_line_with_the_ways_out(monkeypatch):
    def unreachable(*_):
        raise OSError("no route\nto host")

    monkeypatch.setattr("email_rl.models.encoders.read_classifier", unreachable)
    with pytest.raises(ValueError, match="distilbert-base.*algo/encoder=local.*algo/encoder=distilbert_tiny") as error:
        PretrainedEncoder(
            source=FromHub(name="distilbert-base-uncased"),
            max_length=8,
            lr=1.0,
            steps=1,
            batch_size=1,
            overlap_weight=0.0,
        ).build([], [])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_bad_input_gets_one_line_and_code_2(tmp_path):
    (tmp_path / "bad.csv").write_text("context,email_text,outcome\nCTO,hello,0\nCFO,bye,3\n")
    done = run(tmp_path, "hydra.mode=MULTIRUN", "env.data=nowhere.csv,bad.csv", "hydra.sweep.dir=sweep")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: nowhere.csv: no such file; expected a CSV with a header context,email_text,outcome and one mail a row "
        "(env.data)",
        "error: bad.csv: row 3 (line 3), column outcome: expected 0 (no reply), 1 (reply) or 2 (conversion), got '3'",
    ]


def test_what_does_not_fit_is_refused(finished, monkeypatch):
    choices = {"algo": "A", "env": "E"}
    monkeypatch.setattr(
        "scripts.shared.stored_runs.HydraConfig.get", lambda: SimpleNamespace(runtime=SimpleNamespace(choices=choices))
    )
    mails, decisions = finished[0], object.__new__(OffersEnv)
    check_fit(partial(RewardModel), mails)
    check_fit(partial(PPO), decisions)
    for algo, env in ((PPO, mails), (RewardModel, decisions)):
        with pytest.raises(ValueError, match=f"algo=A env=E: do not fit: expected .*, got {type(env).__name__}"):
            check_fit(partial(algo), env)


@pytest.mark.long
def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    long = [
        *SMALL,
        "algo.encoder.steps=40000",
        "algo.patience=1000000",
        "algo.patience_passes=1000000",
        "device=cpu",
        "hydra.run.dir=out",
    ]
    process = script_runner.launch_training(tmp_path, *long)
    script_runner.wait_until((tmp_path / "out" / "checkpoint.pt").exists, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=script_runner.PATIENCE)
    assert process.returncode == 130 and "Traceback" not in err and "resume=" in out
    assert checkpoint.load(tmp_path / "out" / "checkpoint.pt")["agent"]["iteration"] >= 1


@pytest.mark.long
# ── few mails ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_trainings_are_as_long_as_their_gradient_steps_in_whole_passes():
    """Few mails are read again and again, in smaller batches; many are read once, however many steps that takes."""
    _, few = build("env.corpus.train=40", "algo.encoder.steps=23", "algo.updates_per_iteration=50")
    assert (few.batch_size, few.updates_per_epoch, few.total_updates) == (5, 8, 24)
    assert few.updates_per_iteration == 8 and few.patience == 8 * few.patience_passes
    _, many = build("algo.encoder.steps=3")
    assert (many.batch_size, many.updates_per_epoch, many.total_updates) == (16, 20, 20)


@pytest.mark.slow
def test_mails_that_the_reward_model_cuts_are_counted(capsys):
    env, agent = build()
    whole = agent.classifier.tokenizer(env.train.contexts, env.train.texts, truncation=False)["input_ids"]
    most = sorted(map(len, whole))[160]
    agent.classifier.tokenizer.model_max_length = most
    agent._set_mails(env.train, [env.valid], 0.1, 1)
    cut = sum(len(row) > most for row in whole)
    assert 0 < cut < 160 and f"{cut} of 320 training mails have more than the {most} tokens" in capsys.readouterr().err
