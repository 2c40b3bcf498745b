"""Say before a test of two arms how small a difference it would find, by how many weeks it runs.

Usage:

    python scripts/test_size.py -cd shop experiment=shop log=log.parquet
    python scripts/test_size.py -cd shop experiment=shop log=log.parquet rules=[rl,holdout] arms.holdout=0.3 arms.bau=0

The log is one of sends, from before the test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.live.plan.arms import expected_shares
from envs.live.planned_test import planned_test
from envs.offers.logs import send_log
from rlcore.runs import checkpoint
from scripts.shared.cli import choose_device, guarded, launch
from scripts.shared.overrides import check_nothing_is_trained, check_one_job

WIDTH = 120  # characters of the table


@hydra.main(config_path=str(CONF), config_name="test_size", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    check_one_job()
    check_nothing_is_trained()
    choose_device("cpu", cfg.threads, "highest")
    if cfg.log is None:
        raise ValueError("log: expected the path of a log of sends, as in log=log.parquet")
    if cfg.env.get("catalogue") is None:
        raise ValueError(f"env: expected the offers and channels of {cfg.log}, as in -cd shop experiment=shop")
    catalogue = instantiate(cfg.env.catalogue, _convert_="all")
    log, calendar = send_log.read(cfg.log, list(catalogue.offers), list(catalogue.channels))
    report = planned_test(
        log,
        calendar,
        catalogue.to("cpu", torch.float64),
        rules=list(cfg.rules),
        shares=expected_shares(**cfg.arms),
        weeks=list(cfg.weeks),
        level=cfg.level,
        power=cfg.power,
    )
    Console(width=WIDTH).print(report.to_table())
    directory = Path(HydraConfig.get().runtime.output_dir)
    checkpoint.save_json(directory / "metrics.json", {"weeks": report.rows, **report.extra})


if __name__ == "__main__":
    launch(main, groups=("env/catalogue",))
