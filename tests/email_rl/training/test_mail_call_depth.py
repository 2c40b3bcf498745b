"""The number of calls from the start of a training to the loss of PPO on mails."""

from __future__ import annotations

from call_spy import calls_to_the_loss
from email_rl.training.ppo import LanguageModelPPO
from tiny_email_trainer import Taste, policy

TINY = [
    "algo=ppo_kl",
    "env=email",
    "env.corpus.train=40",
    "env.corpus.valid=8",
    "env.corpus.test=8",
    "algo.iterations=1",
    "algo.mails_per_iteration=16",
    "algo.minibatches=1",
    "algo.generation.prompt_tokens=4",
    "algo.generation.response_tokens=6",
    "device=cpu",
]


def test_the_loss_is_six_calls_from_the_start_of_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(LanguageModelPPO, "setup", lambda self, *_: self.set_models(policy(), Taste()))
    monkeypatch.setattr(LanguageModelPPO, "validates_at_start", False)
    calls = calls_to_the_loss(monkeypatch, tmp_path, *TINY)
    assert calls == [
        "training_loop.run",
        "ppo.iterate",
        "ppo.update",
        "ppo.train_minibatch",
        "ppo.accumulate_gradient",
        "losses.ppo",
    ]
