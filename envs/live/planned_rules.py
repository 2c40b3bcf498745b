"""Which rule decided each decision of a log: the arm of the customer in the plan of that week."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from envs.live.plan.arms import ARMS
from envs.live.plan.output.plan_file import plans_in, read_facts
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.offline.parquet_files import read_parquet


def with_planned_rules(dataset: LoggedDataset, ids: Sequence[str], weeks: int, folder: Path | str) -> LoggedDataset:
    """Return the decisions of planned weeks, each with the arm that its plan gave the customer.

    `ids` are those of the dataset's units, `weeks` the weeks of a season, `folder` has the plans. Raises ValueError
    where there is no plan, and where no plan is of a decision in the log.
    """
    place = {name: k for k, name in enumerate(ids)}
    units = len(place)
    week = dataset.episode * weeks + dataset.step
    arm_of = torch.full((int(week.amax()) + 1, units), -1, dtype=torch.long)
    paths = plans_in(Path(folder))
    if not paths:
        raise ValueError(f"plans: expected a folder of plans, week=….parquet, got {folder}")
    for path in paths:
        planned = read_facts(path)["week"]
        if planned >= len(arm_of):
            continue
        table = read_parquet(path, columns=["customer", "arm"])
        customer = torch.tensor([place.get(name, -1) for name in table["customer"].to_pylist()])
        arm = torch.tensor([ARMS.index(name) for name in table["arm"].to_pylist()])
        arm_of[planned, customer[customer >= 0]] = arm[customer >= 0]
    found = arm_of[week.cpu(), dataset.unit.cpu()].to(dataset.policy)
    if not bool((found >= 0).any()):
        raise ValueError(f"{folder}: expected plans of weeks and customers that are in the log, got none")
    return replace(dataset, policy=found.clamp_min(0), policies=ARMS)[found >= 0]
