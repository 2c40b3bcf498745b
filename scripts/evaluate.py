"""Judge a trained policy again, on other customers or on a log.

Usage:

    python scripts/evaluate.py checkpoint=PATH env.evaluation.customers=4000
    python scripts/evaluate.py checkpoint=PATH log=PATH
    python scripts/evaluate.py log=PATH rules=[rl,bau] plans=FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import VectorEnv
from envs.configuration import CONF
from envs.live.planned_rules import with_planned_rules
from envs.offers.customer_env import CustomerEnv
from rlcore.algorithm import Algorithm
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.ope.logged_rules import compare_rules, less
from rlcore.ope.report import evaluate_dataset
from scripts.shared.cli import choose_device, guarded, launch
from scripts.shared.results import make_logger, publish
from scripts.shared.stored_runs import fitting, trained


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> float:
    directory = Path(HydraConfig.get().runtime.output_dir)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    if cfg.rules and not cfg.log:
        raise ValueError("log: expected the path of the log in which the rules decided")
    if cfg.log and not cfg.checkpoint and not cfg.rules:
        raise ValueError("checkpoint: expected the path of the policy to value on the log")
    agent: Algorithm | None = None
    name: str | None = None
    history: dict | None = None
    if cfg.checkpoint:
        env, agent, name, cfg, history = trained(cfg, device, ("env", "algo", "seed"))
    else:
        env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
    evaluator = env.evaluation(env)
    logger = make_logger(cfg, directory, 0, evaluator.headline)
    if history is not None:
        with fitting(cfg.checkpoint):
            logger.load_state_dict(history)
    if cfg.rules:
        report = compare_rules(logged_with_rules(env, cfg.log, cfg.plans), list(cfg.rules), cfg.ope.level)
        return publish(report, less(list(cfg.rules)), logger, directory).value
    if cfg.log:
        assert agent is not None and name is not None  # a log comes with a checkpoint: checked above
        dataset = env.read_log(cfg.log, "test")
        report = evaluate_dataset(dataset, cfg.log, instantiate(cfg.ope, _convert_="all"), agent, name)
    else:
        with logger.evaluating("evaluating on data that nothing was trained on"):
            report = evaluator.evaluate(agent, name)
    return publish(report, name, logger, directory).value


def logged_with_rules(env: VectorEnv, path: str, plans: str | None) -> LoggedDataset:
    """Read all decisions of a log, of both sides; where there are plans, those of planned weeks with their arms."""
    dataset = LoggedDataset.cat([env.read_log(path, split) for split in ("train", "test")])
    if plans is None:
        return dataset
    if not isinstance(env, CustomerEnv) or env.population.given is None:
        raise ValueError("plans: expected the customers that were planned for, as env/population=customer_table")
    return with_planned_rules(dataset, env.population.given.ids, env.world.weeks, plans)


if __name__ == "__main__":
    launch(main, groups=("env", "ope/model", "logger"))
