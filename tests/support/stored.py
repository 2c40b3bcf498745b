"""Checkpoints as scripts/train.py writes them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlcore.runs import checkpoint


def save_state(path: Path | str, name: str, agent: dict, **config: Any) -> None:
    """Write an algorithm's state under a given name, with parts of its configuration."""
    checkpoint.save(path, {"name": name, "agent": agent, "config": config, "logger": {}})
