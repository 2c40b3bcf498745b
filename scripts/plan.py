"""Plan a week: who gets which offer through which channel, who gets nothing, and why.

Usage:

    python scripts/plan.py package=FOLDER customers=customers.csv log=log.parquet money=5000
    python scripts/plan.py package=FOLDER customers=customers.csv log=log.parquet money=5000 why=CUSTOMER

The plan is a Parquet file, plan/week=WEEK.parquet; beside it lie a CSV file for the sender and a page (docs/live.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.configuration import CONF
from envs.live.package import Package
from envs.live.plan.inputs.exported import ExportedPolicy
from envs.live.plan.output.summary import summary
from envs.live.plan.run import REQUEST_KEYS, PlanRequest, locked, make_plan
from envs.live.plan.weekly_plan import PlanViolation
from envs.live.plan.why import why
from scripts.shared.cli import guarded, launch, to_dict


@hydra.main(config_path=str(CONF), config_name="plan", version_base="1.3")
@guarded
def main(cfg: DictConfig) -> None:
    if cfg.package is None:
        raise ValueError("package: expected the folder of an exported policy, as in package=package")
    torch.set_num_threads(cfg.threads)
    keys = to_dict(cfg, resolve=True)
    request = PlanRequest(**{name: keys[name] for name in REQUEST_KEYS})
    policy = ExportedPolicy(Package.load(cfg.package, threads=cfg.threads))
    if cfg.why is not None:
        print("\n".join(why(policy, request, str(cfg.why))))
        return
    with locked(request.folder):
        try:
            planned = make_plan(policy, request)
        except PlanViolation as violation:
            print(f"stop: {violation}", file=sys.stderr)
            sys.exit(3)
        replaced = planned.replaces()
        written = planned.write()
    if replaced:
        print(f"{written[0]}: in place of an older plan, whose sends count no more: {replaced}")
    for warning in planned.plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(summary(planned)))
    print(", ".join(map(str, written)))


if __name__ == "__main__":
    launch(main)
