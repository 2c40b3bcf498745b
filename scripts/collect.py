"""Log the decisions of a logging policy in a file.

Usage:

    python scripts/collect.py logging_policy=price_perturbed out=log.parquet decisions=2400000
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.data_collection import rollouts
from rlcore.algorithm import Algorithm
from rlcore.offline.log_files import check_writable, write_log
from scripts.shared.cli import choose_device, guarded, launch
from scripts.shared.overrides import check_nothing_is_trained, check_one_log_a_job
from scripts.shared.stored_runs import trained


@hydra.main(config_path=str(CONF), config_name="collect", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    if cfg.out is None:
        raise ValueError("out: expected the path of a log to write, as in out=log.parquet")
    check_one_log_a_job(cfg)
    check_nothing_is_trained()
    check_writable(Path(cfg.out))  # before the decisions are made
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    name = chosen = HydraConfig.get().runtime.choices["logging_policy"]
    policy = instantiate(cfg.logging_policy, _convert_="all")
    agent: Algorithm | None = None
    if cfg.checkpoint:
        env, agent, name, *_ = trained(cfg, device, ("env", "algo"))
    else:
        env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    if callable(policy):
        if agent is None:
            raise ValueError("checkpoint: expected the path of a policy that logging_policy=agent follows")
        policy = policy(agent.policy)
    elif agent is not None:
        raise ValueError(f"checkpoint: logging_policy={chosen} follows no checkpoint; expected logging_policy=agent")
    env.use_realised_outcomes()
    started = time.perf_counter()
    chunks = rollouts(
        env, policy, name, cfg.seed, decisions=cfg.decisions, steps=cfg.steps, all_propensities=cfg.all_propensities
    )
    rows = write_log(cfg.out, chunks)
    print(f"{cfg.out}: {rows:,} decisions of {name} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    launch(main, groups=("logging_policy", "env"))
