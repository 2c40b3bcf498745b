"""Judge a trained policy again, on other customers or on a log.

Usage:

    python scripts/evaluate.py checkpoint=PATH env.evaluation.customers=4000
    python scripts/evaluate.py checkpoint=PATH log=PATH shop_rule.decisions=PATH
    python scripts/evaluate.py log=PATH rules=[rl,bau] plans=FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import VectorEnv
from envs.configuration import CONF
from envs.live.planned_rules import AssignedWeeks, assigned_weeks
from envs.logged.env import LoggedEnv
from envs.offers.env import OffersEnv
from envs.offers.logs import send_log
from envs.offers.logs.send_log import is_send_log
from envs.offers.twin.ensemble import TwinEnsemble
from envs.shop_rule import with_shop_rule
from rlcore.offline.logged_dataset import FIRST_ROW, LoggedDataset
from rlcore.ope.logged_rules import compare_rules, less
from rlcore.ope.report import OffPolicyReport, evaluate_dataset
from scripts.shared.cli import choose_device, guarded, launch, to_dict
from scripts.shared.results import make_logger, publish
from scripts.shared.seen_data import digest
from scripts.shared.stored_runs import Trained, fitting, trained


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> float:
    directory = Path(HydraConfig.get().runtime.output_dir)
    device = choose_device(cfg.device, cfg.threads, cfg.float32_matmul_precision)
    check_request(cfg)
    found: Trained | None = None
    if cfg.checkpoint:
        found = trained(cfg, device, ("env", "algo", "seed"))
        check_decides(found, cfg)
        env, cfg = found.env, found.config
        evaluator: Any = found.agent.make_evaluator()
    else:
        env = instantiate(cfg.env, _convert_="all")(device, cfg.seed)
        evaluator = env.evaluation(env)
    name = found.name if found else None
    with make_logger(cfg, directory, 0, evaluator.headline) as logger:
        if found:
            with fitting(cfg.checkpoint):
                logger.load_state_dict(found.logger)
        report: Any
        if cfg.rules:
            name = less(list(cfg.rules))
            assigned = logged_with_rules(env, cfg.log, cfg.plans, list(cfg.rules))
            report = compare_rules(assigned.decisions, list(cfg.rules), cfg.ope.level, assigned.before, assigned.notes)
        elif cfg.log:
            assert found  # a log comes with a checkpoint: checked above
            report = value_on_log(found, cfg)
        else:
            with logger.evaluating("evaluating on data that nothing was trained on"):
                report = evaluator.evaluate(found.agent if found else None, name)
        return publish(report, name, logger, directory).value


def check_request(cfg: DictConfig) -> None:
    """Raise ValueError where a key lacks another, or has no use here."""
    for key in ("resume", "init"):
        if cfg[key]:
            raise ValueError(f"{key}: evaluate.py trains nothing, expected checkpoint={cfg[key]}")
    if cfg.plans and not cfg.rules:
        raise ValueError("plans: expected rules=[a,b], whose weeks the plans tell apart")
    if cfg.rules and not cfg.log:
        raise ValueError("log: expected the path of the log in which the rules decided")
    if cfg.shop_rule.decisions and not (cfg.log and cfg.checkpoint):
        raise ValueError("shop_rule.decisions: expected log= and checkpoint= of a policy that the rule stands beside")
    if cfg.log and not cfg.checkpoint and not cfg.rules:
        raise ValueError("checkpoint: expected the path of the policy to value on the log")


def logged_with_rules(env: VectorEnv, path: str, plans: str | None, rules: list[str]) -> AssignedWeeks:
    """Read all decisions of a log, of both sides, with the rule of each.

    Of a log of sends, plans say the rule: their arms. Other logs have it in a column.
    """
    if not is_send_log(path):
        if plans is not None:
            raise ValueError(f"plans: expected log= to be a log of sends, which the plans are of, got {path}")
        sides = ("train", "test") if env.has_sides(path) else ("test",)  # without sides each reading has all decisions
        dataset = LoggedDataset.cat([env.read_log(path, side) for side in sides])
        decisions = in_weeks_of_the_log(dataset, env, path) if isinstance(env, LoggedEnv) else dataset
        return AssignedWeeks(decisions, before=None, notes=[])
    if plans is None:
        raise ValueError("plans: expected the folder of the plans that were handed over, as in plans=sent")
    if not isinstance(env, OffersEnv):
        raise ValueError(f"env: expected the offers and channels of {path}, as in -cd shop experiment=shop")
    catalogue = env.world.catalogue
    log, calendar = send_log.read(path, list(catalogue.offers), list(catalogue.channels))
    return assigned_weeks(log, calendar, catalogue.to("cpu", torch.float64), rules, plans)


def in_weeks_of_the_log(dataset: LoggedDataset, env: LoggedEnv, path: str) -> LoggedDataset:
    """Return decisions whose steps are the file's weeks, whenever a customer came; one step where it has none."""
    step = torch.zeros_like(dataset.step)
    if "week" in env.roles:
        week = torch.from_numpy(env.read(path)[env.roles["week"]])[dataset.row.cpu() - FIRST_ROW]
        step = torch.unique(week, return_inverse=True)[1].to(step)
    return replace(dataset, episode=torch.zeros_like(step), step=step)


def check_decides(found: Trained, cfg: DictConfig) -> None:
    """Raise ValueError where what a checkpoint holds decides nothing, or nothing that a log has."""
    if isinstance(found.agent, TwinEnsemble):
        raise ValueError(
            f"checkpoint={cfg.checkpoint}: expected a policy, got a twin, which decides nothing; metrics.json beside "
            "the checkpoint has the twin's fit"
        )
    if cfg.log and not isinstance(found.env, VectorEnv):
        raise ValueError(
            f"log={cfg.log}: expected a checkpoint of a policy that chooses logged actions, got {found.name}"
        )


def value_on_log(found: Trained, cfg: DictConfig) -> OffPolicyReport:
    """Value a policy on the decisions of the log, with a warning where the policy has learned from these decisions."""
    dataset = found.env.read_log(cfg.log, "test")
    warnings = []
    if not found.env.has_sides(cfg.log) and digest(cfg.log) in found.logs:
        warnings.append(
            f"{found.name} learned from this very log, itself or by a checkpoint that it came from, and numbered "
            "columns have no side for testing: the estimates flatter it; value it on another log"
        )
    if cfg.shop_rule.decisions:
        dataset, said = with_shop_rule(dataset, found.env, cfg.log, to_dict(cfg.shop_rule, resolve=True))
        warnings += said
    return evaluate_dataset(dataset, cfg.log, instantiate(cfg.ope, _convert_="all"), found.agent, found.name, warnings)


if __name__ == "__main__":
    launch(main, groups=("env", "ope/model", "logger"))
