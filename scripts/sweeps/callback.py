"""Hydra's callback at both ends of a multirun: it names the jobs' folders, and sums the jobs up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from scripts.sweeps.report import summarize_sweep


class SweepSummary(Callback):
    """Names the folders by what is swept over; at the end prints and writes the summary of `summarize_sweep`."""

    def __init__(self, *, level: float, resamples: int, seed: int, beside: list[str]):
        self.level = level
        self.resamples = resamples
        self.seed = seed
        self.beside = beside

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Leave the overrides that all jobs share out of their folders' names.

        Hydra passes on to the jobs what is stated for itself, so what is added here reaches a job on another machine.
        """
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        shared = [override.key_or_group for override in overrides if not override.is_sweep_override()]
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys={shared}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the jobs that ended; a sweep of which none did has had its errors printed."""
        folder = Path(config.hydra.sweep.dir)
        if not any(folder.rglob("metrics.json")):
            return
        try:
            summarize_sweep(
                [folder], folder, level=self.level, resamples=self.resamples, seed=self.seed, beside=self.beside
            )
        except (ValueError, OSError) as error:  # the jobs themselves are kept
            print(f"error: {error}", file=sys.stderr)
