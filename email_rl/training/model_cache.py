"""A cache of trained models for other runs with the same mails and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from rlcore import checkpoint


def cached(root: Path | str, name: str, recipe: object, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Return the folder of `name` and a recipe (by its repr) under `root`, and whether it was there.

    Where it was not there, `make` fills it first.
    """
    folder = Path(root) / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    known = folder.is_dir()
    if not known:
        folder.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.atomic_folder(folder, make)
    return folder, known
