"""Several trainings of one job judged together, on the same test customers.

Usage:

    python scripts/bench.py learning/trainings 'benchmark.checkpoints=[PATH, PATH]'
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from envs.offers.evaluation import EvaluationMarket, OffersEvaluator, SeasonRecord
from envs.offers.evaluation.profit_decomposition import score_terms, share_of_gap, summarise_seasons
from envs.offers.evaluation.streams import TEST_SEASONS
from envs.offers.planning.lagrangian_bound import Bound
from envs.offers.policies.base import SeasonPolicy
from envs.offers.policies.information import ORACLE
from envs.offers.policies.rollover import planning_policy
from envs.offers.unlike.env import UnlikeEnv
from rlcore.network_algorithm import NetworkAlgorithm
from rlcore.runs.plots import text_table
from scripts.benchmarks.common.display import show
from scripts.benchmarks.common.trained import restore


class Setting(NamedTuple):
    """What all policies are compared in."""

    evaluator: OffersEvaluator
    market: EvaluationMarket
    tuning_market: EvaluationMarket
    bound: Bound

    def simulate(self, policy: SeasonPolicy) -> list[SeasonRecord]:
        """Simulate the test seasons with a policy."""
        return self.evaluator.simulate(policy, self.market, self.bound, self.evaluator.seasons, TEST_SEASONS)

    def deploy(self, algorithm: NetworkAlgorithm) -> list[SeasonRecord]:
        """Deploy an algorithm's policy, calibrated on the tuning market, and simulate the test seasons with it."""
        return self.simulate(self.evaluator.deploy(algorithm, self.market, self.tuning_market)[0])


def run(
    directory: Path,
    device: torch.device,
    seed: int,
    *,
    evaluation: Callable[..., OffersEvaluator],
    checkpoints: list[str],
    trusted_packages: list[str],
    rivals: list[str],
) -> dict:
    """Simulate all trained policies and rivals on the same customers; print and return scores and paired differences.

    A pooled difference is that of the trainings' mean, its interval one over customers. Each policy is judged twice:
    with the spend that it expects itself, and with the world's own at clearing. Raises ValueError where the checkpoints
    are not trainings of one job, or a rival is no row of the evaluation's table.
    """
    if not checkpoints:
        raise ValueError("benchmark.checkpoints: expected paths of trained policies, got none")
    if len(set(checkpoints)) < len(checkpoints):
        raise ValueError("benchmark.checkpoints: expected each path once")
    trainings = [restore(path, device, trusted_packages) for path in checkpoints]
    check_same_job(checkpoints, [training.config for training in trainings])
    algorithms = [training.agent for training in trainings]
    env = algorithms[0].env
    if isinstance(env, UnlikeEnv):  # its customers respond otherwise than those of the evaluation would
        raise ValueError(f"{checkpoints[0]}: expected a policy trained with env=offers, got {type(env).__name__}")
    evaluator = evaluation(env)
    market, tuning_market = evaluator.test_market(env.budget), evaluator.tuning_market(env.budget)
    setting = Setting(evaluator, market, tuning_market, evaluator.solve_bound(market))
    evaluator.bound_options = {**evaluator.bound_options, "first_price": setting.bound.prices.tolist()}  # of planners
    planners = planners_of(setting)
    if unknown := [name for name in rivals if name not in planners]:
        raise ValueError(f"benchmark.rivals: expected some of {', '.join(planners)}, got '{unknown[0]}'")
    compared = {name: setting.simulate(planners[name]()) for name in rivals}
    trained = {path: setting.deploy(algorithm) for path, algorithm in zip(checkpoints, algorithms)}
    by_true_spend = [setting.deploy(with_true_spend(algorithm)) for algorithm in algorithms]
    rows = {name: summarise_seasons(records, market, setting.bound) for name, records in (compared | trained).items()}
    for path, records in zip(checkpoints, by_true_spend):
        rows[path]["at true spend"] = summarise_seasons(records, market, setting.bound)
    pooled = {name: pooled_difference(list(trained.values()), theirs, setting) for name, theirs in compared.items()}
    show(score_table(rows, setting))
    show(difference_table(pooled, len(trainings)))
    return {"policies": rows, "ahead_of": pooled}


def planners_of(setting: Setting) -> dict[str, Callable[[], SeasonPolicy]]:
    """Return how to make each policy that plans, by the name of its row; those on θ̂ solve a bound of their own."""
    evaluator, market, bound = setting.evaluator, setting.market, setting.bound
    planners: dict[str, Callable[[], SeasonPolicy]] = {
        "planning on θ̂": lambda: evaluator.on_estimates.certainty_equivalent_planner(market),
        "planning on θ̂, calibrated": lambda: evaluator.on_estimates.with_calibrated_spend(
            evaluator.on_estimates.certainty_equivalent_planner(market), setting.tuning_market
        ),
        "planning": lambda: planning_policy(market, bound, ORACLE),
    }
    if evaluator.env.codec.hides_state:
        blind = replace(ORACLE, season=("beliefs",))
        planners["planning, states unseen"] = lambda: planning_policy(
            market, bound, blind, evaluator.on_estimates.start_belief()
        )
    return planners


def check_same_job(paths: list[str], configs: list[dict]) -> None:
    """Raise ValueError where two configurations differ in the environment, its evaluation apart."""

    def world(config: dict) -> dict:
        return {key: value for key, value in config["env"].items() if key != "evaluation"}

    for path, config in zip(paths, configs):
        if world(config) != world(configs[0]):
            raise ValueError(f"{path}: expected a training in the environment of {paths[0]}, got another environment")


def with_true_spend(algorithm: NetworkAlgorithm) -> NetworkAlgorithm:
    """Return the algorithm without a model of spend of its own, so that the world's is used at clearing."""
    informed = copy(algorithm)
    informed.auxiliary = None
    return informed


def pooled_difference(ours: list[list[SeasonRecord]], theirs: list[SeasonRecord], setting: Setting) -> dict:
    """Return how far each training is ahead of a rival, and their mean, with 95 % intervals over customers."""
    bound = setting.bound
    their_terms = score_terms(theirs, setting.market, bound)
    by_customer: list[Tensor] = []
    used: list[float] = []
    for records in ours:
        terms = score_terms(records, setting.market, bound)
        by_customer.append(terms.mixed(bound) - their_terms.mixed(bound))
        used.append(terms.used - their_terms.used)
    return {
        "pooled": share_of_gap(torch.stack(by_customer).mean(0), sum(used) / len(used), bound),
        "each": [share_of_gap(x, constant, bound) for x, constant in zip(by_customer, used)],
    }


def score_table(rows: dict[str, dict], setting: Setting) -> Table:
    """Lay out the scores of all policies."""
    lines = []
    for name, row in rows.items():
        low, high = row["score_ci"]
        line = [name[-48:], f"{row['score']:.4f}", f"{(high - low) / 2:.4f}", f"{row['spend_ratio']:.4f}"]
        true = row.get("at true spend")
        lines.append([*line, *([f"{true['score']:.4f}", f"{true['spend_ratio']:.4f}"] if true else ["", ""])])
    return text_table(
        f"{len(setting.market):,} test customers, {setting.evaluator.seasons} seasons",
        ["policy", "score", "±", "spend", "at true spend", "spend"],
        lines,
        caption="spend: share of the budget; at true spend: messages are priced by the world itself at clearing",
    )


def difference_table(pooled: dict[str, dict], trainings: int) -> Table:
    """Lay out the paired differences of the trainings to each rival."""
    lines = []
    for name, row in pooled.items():
        mean, low, high = row["pooled"]
        each = ", ".join(f"{difference[0]:+.4f}" for difference in row["each"])
        lines.append([name, f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", each])
    return text_table(
        f"Mean of {trainings} trainings ahead of …, paired by customer",
        ["rival", "difference", "95 % interval", "each training"],
        lines,
    )
