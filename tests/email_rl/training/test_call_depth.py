"""How far it is from the command line to the loss of PPO on mails."""
from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs import composed
from email_rl.training.ppo import LanguageModelPPO
from rlcore import losses
from scripts import train
from tiny_email_trainer import Taste, policy

ROOT = Path(__file__).parents[3]
TINY = ["algo=ppo_kl", "env=email", "env.corpus.train=40", "env.corpus.valid=8", "env.corpus.test=8", "algo.iterations=1",
        "algo.mails_per_iteration=16", "algo.minibatches=1", "algo.generation.prompt_tokens=4",
        "algo.generation.response_tokens=6", "device=cpu"]


class LossReached(Exception):
    """The loss was called: its callers, the first one first."""


def test_the_loss_is_six_calls_from_the_command_line(tmp_path, monkeypatch):
    def record_callers(*_, **__):
        callers, frame = [], sys._getframe(1)
        while frame.f_code is not main.__code__:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT):
                callers.insert(0, f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        raise LossReached(callers)
    main = train.main.__wrapped__.__wrapped__
    runtime = SimpleNamespace(output_dir=str(tmp_path), choices={"algo": "ppo_kl", "env": "email"})
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(LanguageModelPPO, "setup", lambda self, *_: self.set_models(policy(), Taste()))
    monkeypatch.setattr(LanguageModelPPO, "validates_at_start", False)
    monkeypatch.setattr(losses, "ppo", record_callers)
    with pytest.raises(LossReached) as reached:
        main(composed(*TINY))
    callers, = reached.value.args
    assert callers == ["algorithm.run", "ppo.iterate", "ppo.update", "ppo.train_minibatch", "ppo.accumulate_gradient"]
    assert len([*callers, "losses.ppo"]) <= 6
