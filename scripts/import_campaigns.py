"""Turn a shop's campaigns into logs that the learners read.

Usage:

    python scripts/import_campaigns.py env/population=customer_table … campaigns.path=PATH out=FOLDER
    python scripts/import_campaigns.py checkpoint=PATH +env.population.path=PATH campaigns.path=PATH out=FOLDER

With `checkpoint`, the logs have the features that a policy was trained on, to value that policy on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from rlcore.offline.log_files import write_log
from scripts.cli import choose_device, guarded, launch, trained


@hydra.main(config_path=str(CONF), config_name="import_campaigns", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise ValueError("out: expected the folder of the logs to write, as in out=log")
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    if cfg.checkpoint:
        env = trained(cfg, device, ("env", "algo")).env
    else:
        env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    for split, log in instantiate(cfg.campaigns, _convert_="all")(env, cfg.seed).items():
        path = Path(cfg.out) / f"{split}.parquet"
        print(f"{path}: {write_log(path, [log]):,} decisions on {int(log.unit.unique().numel()):,} customers")


if __name__ == "__main__":
    launch(main)
