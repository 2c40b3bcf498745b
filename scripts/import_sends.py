"""Turn a shop's sends and purchases into a log, or add a month to one.

Usage:

    python scripts/import_sends.py env/population=customer_table … sends.path=PATH out=log.parquet
    python scripts/import_sends.py env/population=customer_table … sends.path=PATH out=log.parquet plans=FOLDER

Where the log exists, what the files have after its last send is added; all else in them is left out. Without anything
new the log stays as it is, and the command succeeds. `plans` is a folder of weekly plans, whose propensities the log
then has; sends that differ from their plan are counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.live.planned_weeks import planned_weeks
from envs.offers.env import OffersEnv
from envs.offers.logs import send_log
from envs.offers.logs.send_import import Sends
from rlcore.runs.checkpoint import only_writer
from scripts.shared.cli import choose_device, guarded, launch
from scripts.shared.overrides import check_nothing_is_trained, check_one_log_a_job


@hydra.main(config_path=str(CONF), config_name="import_sends", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise ValueError("out: expected the path of a log to write, as in out=log.parquet")
    check_one_log_a_job(cfg)
    check_nothing_is_trained()
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    sends = instantiate(cfg.sends, _convert_="all")
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    with only_writer(cfg.out):
        add(sends, env, cfg.out, cfg.plans)


def add(sends: Sends, env: OffersEnv, out: str, plans: str | None) -> None:
    """Add what is new in the files to the log `out`, or begin it; say so in a line."""
    offers, channels = list(env.world.catalogue.offers), list(env.world.catalogue.channels)
    old = send_log.read(out, offers, channels) if Path(out).exists() else None
    imported = sends(env, old, () if plans is None else planned_weeks(plans, env.world.catalogue))
    last = imported.calendar.describe(imported.calendar.sends_to)
    for warning in imported.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for sentence in imported.planned:
        print(sentence)
    if not imported.is_changed:
        print(f"{out}: nothing to add: no send after {last} (sends.until: a later day, where nothing was sent)")
        return
    rows = send_log.write(out, imported.log, imported.calendar, offers, channels)
    log = imported.log
    customers = int((log.last >= log.first).sum())
    count = int((log.offer > 0).sum())
    print(f"{out}: {customers:,} customers, {log.weeks} weeks to {last}, {rows:,} rows, {count:,} sends")


if __name__ == "__main__":
    launch(main, groups=("env/population", "env/catalogue", "sends"))
