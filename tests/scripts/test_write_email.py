"""Mails for a user's contexts: features of a text, files in and out, the script."""

from __future__ import annotations

import csv
import io

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import script_runner
from configs import CONF, node
from email_rl import inference
from email_rl.data import phrases
from email_rl.data.gold_model import Market
from email_rl.data.mails import OUTCOMES
from email_rl.evaluation import text_features
from email_rl.models.outcome_classifier import OutcomeClassifier
from rlcore.runs import checkpoint
from scripts import write_email
from stored import save_state
from tiny_email_trainer import trainer


# ── what is seen in a text ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("size, paraphrases", [(4, False), (6, True)])
def test_calls_and_questions_are_those_of_the_market(size, paraphrases):
    """Every filled sentence of the market: those made as calls are found, no other; the same for questions."""
    market = Market.of(size, paraphrases)
    for part, written in phrases.SENTENCES.items():
        if part.endswith("_paraphrase") and not paraphrases:
            continue
        for sentence in (filled for s in written for filled in market.fillings(s, part)[:200]):
            assert (text_features.call_to_action(sentence) is not None) == (part == "call"), sentence
            assert (text_features.question(sentence) is not None) == (part == "question"), sentence


@pytest.mark.parametrize(
    "text",
    [
        "Please reply by Friday.",
        "If this is of use, book a demo.",
        "Hi Ann, could you send me your number?",
        "- Click here: https://x.test/?a=1",
        "Feel free to get in touch.",
        "Let me know what you think!",
        "REGISTER TODAY",
        "Thank you.\nSimply sign up for the trial.",
        "To see it, visit our page.",
        "You can schedule a call here.",
    ],
)
def test_calls_of_any_mail_are_found(text):
    assert text_features.call_to_action(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Thanks for your order.",
        "We book a gain of 3 percent.",
        "My reply was late.",
        "Our call centre is open.",
        "Teams plan and schedule with it.",
        "You visited our booth.",
        "I will send you the file.",
        "Book lovers like it.",
    ],
)
def test_what_only_sounds_like_a_call_is_none(text):
    assert text_features.call_to_action(text) is None


@pytest.mark.parametrize(
    "text, found",
    [
        ("Shall we? Good.", "Shall we?"),
        ('He asked "why?"', 'He asked "why?"'),
        ("See https://x.test/?a=1 now.", None),
        ("No.", None),
        ("Really?!", "Really?!"),
    ],
)
def test_a_question_ends_in_a_question_mark(text, found):
    assert text_features.question(text) == found


# ── a checkpoint at work ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a trainer with an untrained policy (8 words) and an untrained reward model, and that trainer."""
    torch.manual_seed(0)
    small = {
        **node("../algo/encoder/distilbert_tiny", "algo=reward_model"),
        "dim": 16,
        "ffn_dim": 16,
        "layers": 1,
        "heads": 2,
    }
    model, tokenizer = instantiate(small).build([""], ["a b c d e f g"])
    model.config.reads_context = True
    torch.nn.init.normal_(model.classifier.weight, std=3.0)  # so that mails differ in what they get
    agent = trainer(reward_model=OutcomeClassifier(model, tokenizer, torch.device("cpu"), 64))
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    config = {
        "algo": {"reward": "expected"},
        "env": {"outcome_values": [-1.0, 0.5, 2.0]},
    }
    save_state(path, "ppo_kl", agent.state_dict(), **config)
    return path, agent


def settings(path, **changes):
    return OmegaConf.merge(OmegaConf.load(CONF / "write_email.yaml"), {"checkpoint": path and str(path), **changes})


def main(path, **changes):
    """Run the script's own main in this process."""
    return write_email.main.__wrapped__.__wrapped__(settings(path, **changes))


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))


@pytest.mark.long
def test_a_csv_gets_its_mails_with_what_the_reward_model_says(saved, tmp_path):
    path, agent = saved
    (tmp_path / "in.csv").write_text('\ufeffid,Context\r\n7,"a, b"\r\n8,"c\nd ""e"""\r\n\r\n', "utf-8")
    main(path, contexts=str(tmp_path / "in.csv"), out=str(tmp_path / "out.csv"), mails_per_context=3)
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", *inference.COLUMNS]
    assert [row["id"] for row in rows] == ["7"] * 3 + ["8"] * 3
    assert [row["context"] for row in rows] == ["a, b"] * 3 + ['c\nd "e"'] * 3
    p = agent.reward_model.probabilities([row["context"] for row in rows], [row["email_text"] for row in rows]).double()
    reward = p @ torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    for row, probabilities, worth in zip(rows, p.tolist(), reward.tolist()):
        assert [float(row[f"p_{name.replace(' ', '_')}"]) for name in OUTCOMES] == pytest.approx(
            probabilities, abs=1e-4
        )
        assert float(row["reward"]) == pytest.approx(worth, abs=1e-4)
        assert row["predicted"] == OUTCOMES[probabilities.index(max(probabilities))]
        assert int(row["words"]) == len(row["email_text"].split()) and row["question"] == row["call_to_action"] == "no"
    before = (tmp_path / "out.csv").read_bytes()
    main(path, contexts=str(tmp_path / "in.csv"), out=str(tmp_path / "out.csv"), mails_per_context=3)
    assert (tmp_path / "out.csv").read_bytes() == before, "a seed writes the same mails"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.csv", "out.csv"]


@pytest.mark.slow
def test_an_ab_test_has_each_rows_mail_by_an_arm_that_is_drawn(saved, tmp_path, capsys):
    state, path = checkpoint.load(saved[0]), tmp_path / "trained.pt"
    weights = state["agent"]["policy"]["weights"]
    for name, x in weights.items():  # a policy that is not its reference
        weights[name] = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    save_state(path, "ppo_kl", state["agent"], **state["config"])
    (tmp_path / "in.csv").write_text("id,context\n" + "".join(f"{i},a c\n" for i in range(40)))
    main(path, contexts=str(tmp_path / "in.csv"), out=str(tmp_path / "out.csv"), draw_arms=True)
    rows = table(tmp_path / "out.csv")
    assert [row["id"] for row in rows] == [str(i) for i in range(40)]
    drawn = [row["arm"] for row in rows]
    assert set(drawn) == set(inference.ARMS) and 10 <= drawn.count("policy") <= 30
    shown = capsys.readouterr().out
    written = {}
    for arm in inference.ARMS:  # the arm's own model wrote the row, with the seed's random numbers
        model = inference.MailGenerator.load(path, checkpoint.load(path), torch.device("cpu"), 64, 0, arm)
        texts = [row["email_text"] for row in rows if row["arm"] == arm]
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "batch_size": 64}  # as it was trained
        written[arm] = [mail.text for mail in model.generate(["a c"] * len(texts), 1, **sampling)]
        assert texts == written[arm]
        assert f"out.csv: {arm}: {len(texts)} mails; mean reward" in shown
    assert written["policy"][:10] != written["reference"][:10]
    for name, is_same in (("out.csv", True), ("second.csv", False)):  # a second test of the same rows has its own arms
        main(path, contexts=str(tmp_path / "in.csv"), out=str(tmp_path / name), draw_arms=True)
        assert ([row["arm"] for row in table(tmp_path / name)] == drawn) == is_same


def test_mails_are_drawn_as_the_policy_was_trained_unless_the_user_says_otherwise(saved, capsys):
    path, agent = saved
    drawn = {}
    for temperature in (None, agent.policy.temperature, 0.1):
        model = inference.MailGenerator.load(path, checkpoint.load(path), torch.device("cpu"), 64, 0)
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "batch_size": 64}
        drawn[temperature] = [mail.text for mail in model.generate(["a c"] * 20, 1, **sampling)]
        write_email.warn_of_sampling(model, sampling)
        assert ("sampling: not as in training (temperature 1.0" in capsys.readouterr().err) == (temperature == 0.1)
    assert drawn[None] == drawn[1.0] != drawn[0.1]
    own = {key: OmegaConf.load(CONF / "write_email.yaml").sampling[key] for key in ("temperature", "top_k", "top_p")}
    assert own == {"temperature": None, "top_k": 0, "top_p": 1.0}


def test_the_policy_is_the_trained_one_and_samples_as_told(saved):
    """The likeliest token alone (top_k=1) is what the restored policy's own logits say."""
    _path, agent = saved
    with torch.no_grad():
        for x in agent.policy.language_model.parameters():
            x.add_(0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    state = {
        "agent": agent.state_dict(),
        "name": "ppo_kl",
        "config": {
            "algo": {"reward": "argmax"},
            "env": {"outcome_values": [-1.0, 0.5, 2.0]},
        },
    }
    made = inference.MailGenerator.load("x", state, torch.device("cpu"), 8, 0)
    found = made.generate(["a b", "c"], 2, temperature=0.9, top_k=1, top_p=0.95, batch_size=4)
    for context, mails in (("a b", found[:2]), ("c", found[2:])):
        ids = agent.policy.tokenizer(context)["input_ids"]
        start = len(ids)
        while len(ids) - start < 6 and (len(ids) == start or ids[-1] != agent.policy.stop_token):
            with torch.no_grad():
                ids.append(int(agent.policy.language_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        text = agent.policy.tokenizer.decode([i for i in ids[start:] if i != agent.policy.stop_token]).strip()
        assert [mail.text for mail in mails] == [text] * 2
        assert [mail.ended for mail in mails] == [ids[-1] == agent.policy.stop_token] * 2
    assert {mail.reward for mail in found} <= {-1.0, 0.5, 2.0}


def test_contexts_of_the_checkpoint_are_printed_and_long_ones_warned_of(saved, capsys):
    """Without a file of contexts, those of the checkpoint's own test mails get mails, and a summary comes last."""
    path, agent = saved
    main(path, mails_per_context=2)
    shown, _ = capsys.readouterr()
    assert agent.example_contexts() == ["a", "a c", "d e f"]
    assert all(shown.count(f"── {context}\n") == 2 for context in agent.example_contexts())
    assert shown.count("call to action: ") == shown.count("question: ") == 6
    rewards = [float(line.split("reward ")[1].split(";")[0]) for line in shown.splitlines() if "; reward " in line]
    summary = shown.strip().splitlines()[-1]
    assert summary.startswith("6 mails; mean reward ") and "0% with a call to action" in summary
    assert float(summary.split("mean reward ")[1].split(";")[0]) == pytest.approx(sum(rewards) / 6, abs=0.01)
    predicted = [line.split("→ ")[1].split(";")[0] for line in shown.splitlines() if "→ " in line]
    assert all(f"{name} {predicted.count(name) / 6:.0%}" in summary for name in OUTCOMES)


def test_long_contexts_are_warned_of(saved, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("context\na b c d e f\na\n")
    main(saved[0], contexts=str(tmp_path / "in.csv"))
    assert "1 of 2 contexts are longer than the 4 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", "quit", " Exit ", "q"])
def test_interactive_asks_until_it_is_told_to_end(saved, capsys, monkeypatch, end):
    lines = iter(["a b", " c ", end, "d"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    main(saved[0], interactive=True)
    shown = capsys.readouterr().out
    assert "── a b\n" in shown and "── c\n" in shown and "── d\n" not in shown


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "empty; expected a header context and one context a row"),
        (b"kontext\nx\n", "row 1: column 'context' is missing: expected context, got kontext"),
        (b"context\na\n", None),
        (b"context,id\na,1\nb\n", r"row 3 \(line 3\): expected 2 fields, got 1"),
        (b"context\na\n \n", r"row 3 \(line 3\), column context: empty; expected text"),
        (b"context\n", "no rows; expected one context a row"),
        (b'context\n"a\n', r"row 2 \(line 2\): not CSV"),
        (b"context\n\xe4\n", "line 2: not UTF-8"),
        (b"context,id,id\na,1,2\n", "row 1: column 'id' is there twice"),
    ],
)
def test_bad_files_are_told_where_and_what_was_expected(tmp_path, content, says):
    (tmp_path / "in.csv").write_bytes(content)
    if says is None:
        assert inference.read_contexts(str(tmp_path / "in.csv")) == [{"context": "a"}]
    else:
        with pytest.raises(ValueError, match=f"in.csv: {says}"):
            inference.read_contexts(str(tmp_path / "in.csv"))


def test_names_of_columns_stay_as_written_and_those_that_are_written_are_refused_with_out_alone(tmp_path):
    path = str(tmp_path / "in.csv")
    (tmp_path / "in.csv").write_text("CustomerID,Context,\n7,a,\n")
    rows = inference.read_contexts(path)
    assert rows == [{"CustomerID": "7", "context": "a"}]
    mail = inference.ScoredMail("a", "b", [0.2, 0.3, 0.5], 1.0, None, None, ended=False)
    inference.save_mails(str(tmp_path / "out.csv"), rows, [mail])
    written = table(tmp_path / "out.csv")[0]
    assert list(written) == ["CustomerID", *inference.COLUMNS] and written["ended"] == "no"
    assert "cut: it has no end" in mail.to_text()
    assert "1 of 2 were cut" in inference.summarize([mail, mail._replace(ended=True)])
    (tmp_path / "in.csv").write_text("context,Reward\na,1\n")
    assert inference.read_contexts(path)[0]["Reward"] == "1"
    with pytest.raises(ValueError, match="row 1: column 'Reward' is one that will be written"):
        main("x.pt", contexts=path, out=str(tmp_path / "out.csv"))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"path": None}, "checkpoint: expected the path"),
        ({"interactive": True, "out": "x.csv"}, "interactive"),
        ({"out": "/nowhere/x.csv"}, "no such folder"),
        ({"contexts": "x.csv", "out": "./x.csv"}, "is the file of contexts"),
        ({"draw_arms": True, "out": "x.csv"}, "draw_arms: expected contexts"),
        ({"path": "/nowhere.pt"}, "no such checkpoint"),
    ],
)
def test_what_can_not_be_done_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        main(**{"path": "x.pt", **changes})


def test_a_checkpoint_of_another_algorithm_is_refused(tmp_path):
    save_state(tmp_path / "x.pt", "sft", {"policy": {}})
    with pytest.raises(ValueError, match="expected a checkpoint of algo=ppo_kl.*got one of algo=sft"):
        main(tmp_path / "x.pt")


@pytest.mark.slow
def test_the_script_ends_bad_input_with_one_line(saved, tmp_path):
    (tmp_path / "in.csv").write_text('context\na b\n""\n')
    bad = script_runner.run(
        tmp_path,
        "write_email",
        f"checkpoint={saved[0]}",
        "contexts=in.csv",
        "out=out.csv",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    assert bad.returncode == 2 and bad.stderr == "error: in.csv: row 3 (line 3), column context: empty; expected text\n"
    assert not (tmp_path / "out.csv").exists()
