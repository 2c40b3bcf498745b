"""What a script leaves of a run: its logger, and its report in tables, files and figures."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rlcore.runs import checkpoint as checkpoints
from rlcore.runs.plots import entitle
from rlcore.runs.report import Report, RunResult
from rlcore.runs.run_logger import RunLogger
from rlcore.runs.writers import RunInfo
from scripts.shared.overrides import key_of


def make_logger(cfg: DictConfig, directory: Path, iterations: int, headline: str, resumed_at: int = 0) -> RunLogger:
    """Make the logger of a run of `iterations` in `directory`, which goes on from `resumed_at` steps."""
    chosen = HydraConfig.get().runtime.choices
    overrides: dict[str, Any] = {key: chosen[key] for key in ("algo", "env")}
    overrides["seed"] = cfg.seed
    for override in HydraConfig.get().overrides.task:
        key = key_of(override)
        overrides[key] = chosen[key] if key in chosen else OmegaConf.select(cfg, key)
    run = RunInfo(
        name=directory.name,
        command=f"python {' '.join(map(shlex.quote, [os.path.relpath(sys.argv[0]), *sys.argv[1:]]))}",
        config=OmegaConf.to_yaml(cfg, resolve=True),
        overrides=overrides,
        resumed_at=resumed_at,
    )
    writers = {name: instantiate(writer) for name, writer in cfg.logger.items()}
    return RunLogger(directory, writers, run, iterations, headline, redraws_per_second=cfg.progress.redraws_per_second)


def publish(
    report: Any, name: str | None, logger: RunLogger, directory: Path, further: dict[str, Report] | None = None
) -> RunResult:
    """Write a report to the console, by the logger, to metrics.json and to PNG files; return the headline figure.

    `further` reports by name come after it, without figures.
    """
    further = further or {}
    result: RunResult = report.result(name)
    figures = report.to_figures(name, logger.headline, logger.history)
    for title, figure in figures.items():
        entitle(
            figure,
            f"{title.replace('_', ' ')}: {name or 'baselines'}, seed {logger.run.overrides['seed']}; {report.sample}",
        )
        checkpoints.atomic(directory / f"{title}.png", partial(figure.savefig, format="png"))
        logger.log_figure(f"test/{title}", figure)
    tables = {**report.parts(), **further}
    for title, part in tables.items():
        logger.log_text(f"test/{title}", part.to_markdown())
    logger.log_results({f"test/{metric}": value for metric, value in result.metrics.items()})
    seconds = max(logger.seconds, 1e-9)
    checkpoints.save_json(
        directory / "metrics.json",
        {
            **report.to_metrics(),
            **{title: part.to_metrics() for title, part in further.items()},
            "headline": result._asdict(),
            "curve": {"metric": logger.headline, "points": logger.history.get(logger.headline, [])},
            "steps": logger.steps,
            "steps_per_second": logger.steps / seconds,
            "seconds": logger.seconds,
        },
    )
    logger.console.print(*(part.to_table() for part in tables.values()), sep="\n")
    logger.console.print(
        f"{directory}/: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}"
    )
    return result
