"""Turn a shop's sends and purchases into a log, or add a month to one.

Usage:

    python scripts/import_sends.py env/population=customer_table … sends.path=PATH out=log.parquet

Where the log exists, what the files have after its last send is added; all else in them is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.offers.logs import send_log
from scripts.shared.cli import choose_device, guarded, launch


@hydra.main(config_path=str(CONF), config_name="import_sends", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise ValueError("out: expected the path of a log to write, as in out=log.parquet")
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    offers, channels = list(env.world.catalogue.offers), list(env.world.catalogue.channels)
    old = send_log.read(cfg.out, offers, channels) if Path(cfg.out).exists() else None
    imported = instantiate(cfg.sends, _convert_="all")(env, old)
    rows = send_log.write(cfg.out, imported.log, imported.calendar, offers, channels)
    for warning in imported.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    log = imported.log
    last = imported.calendar.describe(imported.calendar.sends_to)
    customers = int((log.last >= log.first).sum())
    sends = int((log.offer > 0).sum())
    print(f"{cfg.out}: {customers:,} customers, {log.weeks} weeks to {last}, {rows:,} rows, {sends:,} sends")


if __name__ == "__main__":
    launch(main, groups=("env/population", "env/catalogue", "sends"))
