"""What a twin recovers from a log without states: every parameter, and what planning on it earns in the true world.

Usage:

    python scripts/bench.py learning/recovery
    python scripts/bench.py learning/recovery benchmark.env.population.r2=0.6
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from envs.data_collection import LoggingPolicy
from envs.offers.env import OffersEnv
from envs.offers.evaluation.profit_decomposition import summarise_seasons
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.populations.base import theta_to_matrix
from envs.offers.twin.checks.report import TwinEvaluator
from envs.offers.twin.ensemble import TwinEnsemble
from envs.offers.twin.hidden_states.identification import parameter_names
from envs.offers.twin.structural_fit import StructuralTwin
from envs.offers.twin.structural_model import mean_theta
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.logs import log_seasons
from scripts.benchmarks.common.planning import ESTIMATED, TRUE, estimates_of, planners
from scripts.benchmarks.common.shares import share_of_rival
from scripts.benchmarks.common.trained import store
from scripts.benchmarks.common.training import evaluator_of


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    env: Callable[..., OffersEnv],
    logging_policy: LoggingPolicy,
    twin: Callable[..., TwinEnsemble],
    decisions: int,
    agents: int,
    new: int,
    planning: bool,
) -> dict:
    """Fit a twin to a log; compare its θ with the truth of `new` customers and, where `planning`, plan on both."""
    world, log = log_seasons(env, logging_policy, decisions, agents, device, 1000 + seed)
    model = twin(world, seed)
    model.set_dataset(log)
    model.setup(None, lambda: False)
    seconds = []
    while model.iteration < model.iterations:
        started = time.process_time()
        model.iterate(0.0)
        model.iteration += 1
        seconds.append(time.process_time() - started)
        store(directory / "checkpoint.pt", "twin", model)
    assert isinstance(model.twin, StructuralTwin)
    evaluator = model.make_evaluator()
    assert isinstance(evaluator, TwinEvaluator)
    parameters = compare_parameters(model, model.twin, evaluator, new, device)
    show(parameter_table(parameters, decisions, seconds))
    warnings = evaluator.misfit(model, model.panel, model.held_out)
    print("can't be explained: " + ("; ".join(warnings) or "nothing"), flush=True)
    found = {"seconds": seconds, "warnings": warnings, "parameters": parameters}
    if planning:
        scores = planning_scores(env(device, seed), model)
        show(planning_table(scores))
        found["planning"] = scores
    return found


def compare_parameters(
    model: TwinEnsemble, kind: StructuralTwin, evaluator: TwinEvaluator, new: int, device: torch.device
) -> dict[str, dict]:
    """Return each parameter's correlation, error and bias over new customers, in standard deviations of the prior."""
    sample = model.env.population.draw(new, torch.Generator(device).manual_seed(99), "test")
    truth = theta_to_matrix(sample.customers)
    z = mean_theta(model.fitted_members, sample.features).double()
    names = parameter_names(kind.columns, model.env.world.catalogue.channels)
    report = evaluator.parameters(model)
    rows = {}
    for k, name in enumerate(names):
        apart = (z[:, k] - truth[:, k]) / truth[:, k].std()
        together = torch.corrcoef(torch.stack((z[:, k], truth[:, k])))[0, 1].item() if z[:, k].std() > 1e-9 else 0.0
        rows[name] = {
            "correlation": together,
            "error": apart.square().mean().sqrt().item(),
            "bias": apart.mean().item(),
            "promised": report.rows[name]["error"] if report else float("nan"),
        }
    return rows


def planning_scores(env: OffersEnv, model: TwinEnsemble) -> dict:
    """Return the scores of planning under the belief in the true world, and the share that the twin's θ̂ earns."""
    evaluator = evaluator_of(env)
    market = evaluator.test_market(env.budget)
    bound = evaluator.solve_bound(market)
    policies = planners(evaluator, market, bound, estimates_of(model, market.features))
    records = {
        name: evaluator.simulate(policy, market, bound, evaluator.seasons, TEST_SEASONS)
        for name, policy in policies.items()
    }
    return {
        "policies": {name: summarise_seasons(record, market, bound) for name, record in records.items()},
        "share": share_of_rival(records[ESTIMATED], records[TRUE], market, bound),
    }


def parameter_table(rows: dict[str, dict], decisions: int, seconds: list[float]):
    """Lay out what was recovered, the least error first."""
    lines = [
        [name, f"{row['correlation']:.2f}", f"{row['error']:.2f}", f"{row['bias']:+.2f}", f"{row['promised']:.2f}"]
        for name, row in sorted(rows.items(), key=lambda item: item[1]["error"])
    ]
    caption = (
        "error, bias: in standard deviations of the prior, over new customers (error 1: nothing learned); promised: "
        "the error that the fit itself expects, of one member on all customers; where features tell part of a customer "
        "(r2 below 1) the rest comes on top: the fit knows it of parameters with a random effect alone"
    )
    title = (
        f"{decisions:,} decisions without states; {len(seconds)} members of {max(seconds):.0f} CPU seconds or less each"
    )
    return text_table(title, ["parameter", "correlation", "error", "bias", "promised"], lines, caption)


def planning_table(found: dict):
    """Lay out what planning earns."""
    lines = [
        [name, f"{row['score']:.3f}", f"{row['score_ci'][0]:.3f}", f"{row['score_ci'][1]:.3f}"]
        for name, row in found["policies"].items()
    ]
    share, low, high = found["share"]
    caption = f"on the twin's θ̂: {share:.3f} of what it earns on the true θ ({low:.3f} to {high:.3f}, paired)"
    return text_table("planning in the true world, states unseen", ["on", "score", "from", "to"], lines, caption)
