"""Compare twins fitted to one log with the truth behind the log.

Usage:

    python scripts/bench.py learning/twins
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from envs.data_collection import LoggingPolicy
from envs.offers.env import OffersEnv
from envs.offers.logs.panel import Panel
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.twin.predictions import PanelPredictions
from envs.offers.twin.structural_predictions import StructuralPredictions
from rlcore.offline.logged_dataset import LoggedDataset
from rlcore.runs import checkpoint
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.logs import log_seasons
from scripts.benchmarks.common.timing import timed
from scripts.benchmarks.common.training import fit_to_log


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    logging_policy: LoggingPolicy,
    twins: dict,
    decisions: int,
    agents: int,
    new: int,
) -> dict:
    """Fit each twin to the log, and compare it with the truth of a season of `new` other customers."""
    world, log = log_seasons(env, logging_policy, decisions, agents, device, 1000 + seed)
    others, asked = log_seasons(env, logging_policy, 1, new, device, 2000 + seed)
    rows: dict[str, dict[str, float]] = {}
    for name, algo in twins.items():
        seconds, twin = timed(partial(fit_new, algo, world, log, seed))
        panel = twin.twin.to_panel(asked, others)
        with torch.no_grad():
            truth = StructuralPredictions(others.customers, others.world, panel)
            answers = [twin.twin.predict(member, others.world, panel) for member in twin.fitted_members]
            rows.setdefault("truth", compare_with_truth([truth], truth, panel))
            rows[name] = compare_with_truth(answers, truth, panel) | {"seconds": seconds}
        checkpoint.save_json(directory / "rows.json", rows)
        print(f"{name}: {seconds:.0f} s", flush=True)
    table = text_table(
        f"{decisions:,} decisions; {new:,} other customers, a contact adds {rows['truth']['mean']:.4f} to P(trip)",
        ["twin", "response", "adds", "error", "correlation"],
    )
    for name, found in rows.items():
        table.add_row(
            name, *(f"{found[key]:.4f}" for key in ("response", "mean", "error")), f"{found['correlation']:.3f}"
        )
    table.caption = (
        "response: log-likelihood a decision of trip and redemption; adds: to P(trip), a contact by any "
        "pair, on average; error: root mean square, customer by customer and week by week"
    )
    show(table)
    return {"rows": rows}


def fit_new(algo: Callable[..., TwinEnsemble], world: OffersEnv, log: LoggedDataset, seed: int) -> TwinEnsemble:
    """Make a twin and fit it to a log of a world."""
    return fit_to_log(algo(world, seed), log)


def compare_with_truth(members: list[PanelPredictions], truth: PanelPredictions, panel: Panel) -> dict[str, float]:
    """The members' mean predictions of a panel, against the truth."""
    at = panel.subscribed
    said = [member.log_likelihoods()["response"].sum().item() / int(panel.logged.sum()) for member in members]
    added: Tensor = torch.stack([member.contact_effect().uplift for member in members]).mean(0)[at].double()
    true = truth.contact_effect().uplift[at].double()
    return {
        "response": sum(said) / len(said),
        "mean": added.mean().item(),
        "error": (added - true).square().mean().sqrt().item(),
        "spread": true.std().item(),
        "correlation": torch.corrcoef(torch.stack((added, true)))[0, 1].item(),
    }
