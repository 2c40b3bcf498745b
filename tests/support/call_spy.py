"""The path of a training to the loss: our functions between scripts/train.py's `train` and losses.ppo."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs import composed
from rlcore import losses
from scripts import train

ROOT = Path(__file__).parents[2]


class LossReached(Exception):
    """The loss was called: its callers, the first one first."""


def calls_to_the_loss(monkeypatch, tmp_path, *overrides: str) -> list[str]:
    """Run scripts/train.py's `train`, which the command line and Python share, up to the first call of losses.ppo.

    Returns the names of the calls from it to losses.ppo."""

    def record_callers(*_, **__):
        callers, frame = [], sys._getframe(1)
        while frame.f_code is not train.train.__code__:
            if Path(frame.f_code.co_filename).is_relative_to(ROOT):
                callers.insert(0, f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        raise LossReached(callers)

    choices = dict(override.split("=") for override in overrides if override.startswith(("algo=", "env=")))
    runtime = SimpleNamespace(output_dir=str(tmp_path), choices=choices)
    hydra = SimpleNamespace(runtime=runtime, overrides=SimpleNamespace(task=list(overrides)))
    monkeypatch.setattr(train.HydraConfig, "get", lambda: hydra)
    # The real one changes how this whole process computes: threads, and denormal numbers, which other tests draw.
    monkeypatch.setattr(train, "choose_device", lambda *_: torch.device("cpu"))
    monkeypatch.setattr(losses, "ppo", record_callers)
    with pytest.raises(LossReached) as reached:
        train.train(composed(*overrides), tmp_path)
    (callers,) = reached.value.args
    return [*callers, "losses.ppo"]
