"""Analyse a randomised test of a mailing: whom it helps, and what treating them would have earned.

Usage:

    python scripts/uplift.py data=test.csv table.treatment=COLUMN table.control=ARM table.outcomes=[COLUMN,…]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.ab_test.report import tables, write_scores
from envs.configuration import CONF
from rlcore.runs import checkpoint
from scripts.shared.cli import choose_device, guarded, launch

WIDTH = 140  # characters of the widest table


@hydra.main(config_path=str(CONF), config_name="uplift", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    directory = Path(HydraConfig.get().runtime.output_dir)
    choose_device("cpu", cfg.threads, "highest")
    analyst = instantiate(cfg.ab_test, _convert_="all")
    trial = instantiate(cfg.table, _convert_="all").read()
    analysis = analyst(trial, cfg.seed)
    reports = tables(analysis, analyst.level, analyst.replications, analyst.bins, dict(cfg.shares), cfg.seed)
    console = Console(width=WIDTH)
    for report in reports.values():
        console.print(report.to_table())
        for name, figure in report.plots.items():
            checkpoint.atomic(directory / f"{name}.png", partial(figure.savefig, format="png"))
    write_scores(directory / "scores.csv", analysis)
    found = {name: {"rows": report.rows, **report.extra} for name, report in reports.items()}
    checkpoint.save_json(directory / "metrics.json", {"outcome": analysis.outcome, **found})
    print(f"{directory}/: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}")


if __name__ == "__main__":
    launch(main, groups=("uplift_learner", "ope/model"))
