"""Files that are either complete or absent: they are written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch


def atomic(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_folder(path: Path | str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, then put it in its place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    replaced = path.with_name(f"{temporary.name}.old")
    try:
        temporary.mkdir()
        write(temporary)
        if path.exists():
            os.replace(path, replaced)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def save(path: Path | str, state: dict) -> None:
    """Write a checkpoint of tensors, numbers, strings and containers of them."""
    atomic(path, lambda temporary: torch.save(state, temporary))


def load(path: Path | str) -> dict:
    """Read a checkpoint onto the CPU without running code from it; raise ValueError where the file is no checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of this project ({type(error).__name__})") from error


def save_json(path: Path | str, value) -> None:
    """Write a result file."""
    text = json.dumps(value, indent=2) + "\n"
    atomic(path, lambda temporary: temporary.write_text(text))
