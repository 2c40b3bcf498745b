"""Guards of PPO on mails: each warning comes where its quantity leaves its limit, and only there."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from configs import composed
from email_rl.models.tokenized_mails import TokenizedMails
from email_rl.training.diagnostics import sample_table
from email_rl.training.guards import GuardLimits, Guards, length_correlation
from email_rl.training.rollout import MailRollout
from rlcore.runs import checkpoint
from rlcore.runs.logger import MemoryLogger
from rlcore.runs.run_logger import RunLogger
from rlcore.runs.writers import RunInfo
from stored import save_state
from tiny_email_trainer import Taste, train, trainer

LIMITS = GuardLimits(**OmegaConf.to_container(composed("algo=ppo_kl", "env=email").algo.guards))
TEXTS = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"]


def rollout(texts=TEXTS, log_ratio=0.0, tokens=(4, 4, 4, 4), reward=(0.0, 1.0, 2.0, 3.0)):
    """A rollout of four mails for four contexts, with a log-ratio to the reference on each token."""
    own = torch.arange(12)[None] < torch.tensor(tokens)[:, None]
    nothing = torch.zeros(4, 12)
    prompt = torch.zeros(4, 1, dtype=torch.long)
    return MailRollout(
        contexts=["a", "b", "c", "d"],
        texts=list(texts),
        mails=TokenizedMails(prompt, prompt + 1, own.long(), own),
        has_ended=own.any(1),
        proxy_reward=torch.tensor(reward),
        score=torch.zeros(4),
        log_prob=nothing + log_ratio,
        reference_log_prob=nothing,
        value=nothing,
        entropy=nothing,
    )


def warned(now, ratio=1.0, first=None):
    guards = Guards(LIMITS)
    assert guards.warnings(first or rollout(), 1.0) == []
    return guards.warnings(now, ratio)


def test_a_rollout_like_the_first_is_not_warned_of():
    assert warned(rollout(), ratio=9.9) == []


@pytest.mark.parametrize(
    "now, ratio, says",
    [
        (rollout(), 11.0, "tokens to the policy that wrote them is 11.0, above 10"),
        (rollout(log_ratio=-0.3), 1.0, "KL to the reference is -1.20 nats a mail, below -1"),
        (rollout(["one two three"] * 2 + ["one two three one"] * 2), 1.0, "distinct-2 is 0.300, 1.000 at first"),
        (rollout(tokens=(7, 7, 7, 7)), 1.0, "a mail has 7 tokens on average, 4 at first"),
        (rollout(tokens=(2, 2, 2, 2)), 1.0, "a mail has 2 tokens on average, 4 at first"),
    ],
)
def test_each_limit_has_its_warning(now, ratio, says):
    found = warned(now, ratio)
    assert len(found) == 1 and says in found[0]


def test_one_answer_for_all_contexts_is_warned_of_and_one_answer_for_a_context_is_not():
    now = rollout(["one two three"] * 3 + ["four five six"])
    assert any("3 of 4 mails, for 3 contexts, are one text" in warning for warning in warned(now))
    same_prompt = replace(now, contexts=["a"] * 3 + ["b"])
    assert not any("one text" in warning for warning in warned(same_prompt))


def test_what_the_first_rollout_was_survives_a_checkpoint():
    guards, restored = Guards(LIMITS), Guards(LIMITS)
    guards.warnings(rollout(), 1.0)
    restored.load_state_dict(guards.state_dict())
    assert restored.warnings(rollout(tokens=(7, 7, 7, 7)), 1.0) == guards.warnings(rollout(tokens=(7, 7, 7, 7)), 1.0)


def test_the_correlation_of_reward_and_length_is_pearsons():
    now = rollout(tokens=(1, 5, 2, 9), reward=(0.5, 0.1, 2.0, 1.0))
    expected = torch.corrcoef(torch.tensor([[1.0, 5.0, 2.0, 9.0], [0.5, 0.1, 2.0, 1.0]]))[0, 1].item()
    assert length_correlation(now).item() == pytest.approx(expected, abs=1e-6)
    assert length_correlation(rollout()).item() == 0  # all of one length


class Listening(MemoryLogger):
    """Keeps warnings and figures too."""

    def __init__(self):
        super().__init__()
        self.said, self.figures = [], []

    def log_warning(self, text):
        self.said.append(text)

    def log_figure(self, name, figure):
        self.figures.append(name)


@pytest.mark.long
def test_training_warns_of_an_update_that_is_too_large_and_draws_reward_over_length():
    made = trainer(
        "algo.guards.ratio=1.01", "algo.language_model.lr=0.1", "algo.iterations=2", "algo.log_samples_every=1"
    )
    logger = Listening()
    made.logger = logger
    for _ in range(2):
        made.iterate(0.0)
        made.iteration += 1
    assert any(text.startswith("iteration 1: the mean ratio") for text in logger.said)
    assert logger.figures == ["reward_over_length"] * 2
    quiet, logger = trainer(), Listening()
    quiet.logger = logger
    quiet.iterate(0.0)
    assert logger.said == []


def test_a_warning_is_in_the_log_and_on_the_console(tmp_path, capsys, caplog):
    with caplog.at_level(logging.INFO):
        logger = RunLogger(tmp_path, {}, RunInfo("run", "", "", {}, 0), 1, "x", redraws_per_second=2)
        logger.log_warning("iteration 3: [too] large")
        with logger.child("reward_model", 3) as child:
            child.log_evaluation(64, {"validation/log_loss": 0.5})
    assert "warning: iteration 3: [too] large" in capsys.readouterr().out
    assert "iteration 3: [too] large" in caplog.text and "reward_model, step 64: log_loss 0.500" in caplog.text


class Breaking(Taste):
    """Gives one mail of a batch no number once it is broken."""

    broken = False

    def probabilities(self, contexts, texts):
        found = super().probabilities(contexts, texts)
        if self.broken:
            found[0] = float("nan")
        return found

    def pack(self):
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_one_mail_without_a_finite_reward_ends_the_run_and_its_last_weights_stay(tmp_path, advantage):
    path, reward_model = tmp_path / "c.pt", Breaking()
    made = trainer(
        "algo.iterations=3", "algo.checkpoint_every=1", f"algo/advantage={advantage}", reward_model=reward_model
    )

    def save():
        save_state(path, "ppo_kl", made.state_dict())
        reward_model.broken = True

    with pytest.raises(ValueError, match=r"iteration 2: \S+ is nan.*: the training diverged"):
        train(made, save=save)
    assert checkpoint.load(path)["agent"]["iteration"] == 1


def test_a_sample_table_has_a_mail_of_each_sampled_context():
    shown = sample_table(rollout(), most=2, samples_per_context=2)
    assert [line.split("|")[2].strip() for line in shown.splitlines()[2:]] == [TEXTS[0], TEXTS[2]]
    assert len(sample_table(rollout(), most=3).splitlines()) == 2 + 3
