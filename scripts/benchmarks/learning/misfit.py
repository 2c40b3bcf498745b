"""In how many logs a twin warns that the world's equations can't explain them: in the family, and outside of it.

Usage:

    python scripts/bench.py learning/misfit
    python scripts/bench.py learning/misfit benchmark.families.part.population.r2=0.3 benchmark.decisions=240000
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from envs.data_collection import LoggingPolicy
from envs.offers.env import OffersEnv
from envs.offers.twin.checks.report import TwinEvaluator
from envs.offers.twin.ensemble import TwinEnsemble
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.logs import log_seasons
from scripts.benchmarks.common.training import fit_to_log

CHECK, HELD_OUT = "warns", "by held-out customers alone"


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    worlds: dict[str, Callable[..., OffersEnv]],
    families: dict[str, Callable[..., OffersEnv]],
    logging_policy: LoggingPolicy,
    twin: Callable[..., TwinEnsemble],
    decisions: int,
    agents: int,
    logs: int,
) -> dict:
    """Fit a twin to `logs` logs of each world, and count the logs in which its check warns.

    The twin's equations and customers are those of the first of the `families`, or of the family itself. For
    comparison, the check is also made on the customers alone whom the report is about.
    """
    found: dict[str, list[dict]] = {}
    believed = next(iter(families.values()))
    for name, world in {**families, **worlds}.items():
        family = families.get(name, believed)
        for k in range(logs):
            number = seed + 100 * k
            _, log = log_seasons(world, logging_policy, decisions, agents, device, 1000 + number)
            model = twin(family(device, number), number)
            warnings = warnings_of(model, log)
            found.setdefault(name, []).append(warnings)
            print(f"{name}, log {k + 1}: " + ("; ".join(warnings[CHECK]) or "no warning"), flush=True)
            checkpoint.save_json(directory / "rows.json", found)
    rows = [
        [name, *(f"{sum(bool(x[side]) for x in each)} of {len(each)}" for side in (CHECK, HELD_OUT))]
        for name, each in found.items()
    ]
    title = f"logs of {decisions:,} decisions in which the twin warns"
    show(text_table(title, ["world", CHECK, HELD_OUT], rows))
    return {"worlds": found}


def warnings_of(model: TwinEnsemble, log: LoggedDataset) -> dict[str, list[str]]:
    """Fit a twin to a log, and return its warnings, and those by held-out customers alone."""
    check = fit_to_log(model, log).make_evaluator()
    assert isinstance(check, TwinEvaluator)
    alone = model.held_out_panel
    everybody = torch.ones(len(alone), dtype=torch.bool, device=alone.features.device)
    return {CHECK: check.misfit(model, model.panel, model.held_out), HELD_OUT: check.misfit(model, alone, everybody)}
